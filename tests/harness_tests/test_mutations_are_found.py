"""The harness finds a product that was broken on purpose, each time, by the promise that it then breaks; and finds
nothing in the same scenes with the product as it is."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.mutation import MUTATIONS, environment_of
from tests.harness.operations import OPERATIONS, rot_a_chunk, run_backup
from tests.harness.prefix_accidents import take_over_while_running
from tests.harness.soak import MEMORY
from tests.harness.statistics import Statistics
from tests.harness.world import World, WorldSettings
from tests.stores.fault_rules import Fault
from tests.stores.seaweedfs import StoreServer

Scene = Callable[[World], None]


def requests_are_lost(world: World) -> None:
    """A store acknowledges what it does not store."""
    world.proxy.storm(1, [Fault.LOSE], probability=0.4)
    for number in range(3):
        run_backup(world, random.Random(number))
    world.settle()


def backups(world: World) -> None:
    """Nothing but backups."""
    for number in range(4):
        run_backup(world, random.Random(number))
    world.settle()


def chunk_is_quarantined(world: World) -> None:
    """A chunk rots and is renamed by a verification, while a published snapshot needs it."""
    run_backup(world, random.Random(1))
    world.settle()
    (path,) = world.model.snapshots
    assert rot_a_chunk(world, random.Random(1), path) is not None
    world.perform("verify", [path], lambda: world.pbs("verify", path) and None)
    world.settle()


def names_change(world: World) -> None:
    """Backups, notes, logs and removals, and no look at anything but what the journal tells."""
    for number in range(3):
        run_backup(world, random.Random(number))
    for name in ("notes", "client log", "group notes or owner", "forget", "garbage collection"):
        OPERATIONS[name].run(world, random.Random(7))
    world.settle()


def power_goes_right_after_the_answer(world: World) -> None:
    """The last rename of a manifest is answered, and there is no power any more."""
    for number in range(3):
        run_backup(world, random.Random(number), on_answer=world.lose_power)
        world.restore_power(random.Random(number))
    world.settle()


def taken_over_while_running(world: World) -> None:
    """Another machine claims the name."""
    run_backup(world, random.Random(1))
    take_over_while_running(world, random.Random(1))


SCENES: dict[str, tuple[Scene, tuple[str, ...]]] = {
    "skip-confirmation": (requests_are_lost, ("P1", "P6")),
    "publish-early": (backups, ("P1",)),
    "delete-without-reference-check": (chunk_is_quarantined, ("P1", "P5")),
    "drop-journal-record": (names_change, ("P2",)),
    "no-syncfs": (power_goes_right_after_the_answer, ("P3",)),
    "share-the-name": (taken_over_while_running, ("P5",)),
    "stumble": (backups, ("P2 crash loop",)),
}


@pytest.fixture
def base() -> Iterator[Path]:
    """Where the disks of a world stand."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-mutation-", dir=MEMORY if MEMORY.is_dir() else None) as path:
        yield Path(path)


def test_every_mutation_has_a_scene() -> None:
    assert set(SCENES) == set(MUTATIONS)


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_broken_product_is_found(
    mutation: str, base: Path, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    scene, promises = SCENES[mutation]
    settings = WorldSettings(base, store, shared_bucket, prefix, environment_of(mutation), convergence_seconds=12.0)
    statistics = Statistics()
    with World(settings, statistics, seed=1) as world:
        scene(world)
        violations = world.violations()
        assert f"mutation {mutation} is active" in world.log()
    assert any(violation.startswith(promises) for violation in violations), violations


@pytest.mark.long
@pytest.mark.parametrize("mutation", MUTATIONS)
def test_product_as_it_is_passes_the_same_scene(
    mutation: str, base: Path, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    statistics = Statistics()
    with World(WorldSettings(base, store, shared_bucket, prefix, {}), statistics, seed=1) as world:
        SCENES[mutation][0](world)
        assert world.violations() == []
