"""The hostile bucket of the harness: the mirror is rid of what was planted, and what stays is found out."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.harness import hostile_bucket as module
from tests.harness.hostile_bucket import hostile_bucket, hostile_objects
from tests.harness.operations import run_backup
from tests.harness.retention import RetentionSettings
from tests.harness.statistics import Statistics
from tests.harness.world import World, WorldSettings
from tests.stores.seaweedfs import StoreServer

# Those with which objects of every kind are planted.
_SEEDS = [seed for seed in range(40) if random.Random(seed).randint(1, 5) == 5]
_HOLDING = RetentionSettings(delete_after=3600, max_delete_fraction=0.3)


@pytest.fixture(params=[RetentionSettings()], ids=str)
def world(store: StoreServer, shared_bucket: str, prefix: str, request: pytest.FixtureRequest) -> Iterator[World]:
    base = Path(tempfile.mkdtemp(prefix="mirrorfs-test-", dir="/dev/shm"))
    try:
        settings = WorldSettings(base, store, shared_bucket, prefix, {}, retention=request.param)
        with World(settings, Statistics(), seed=1) as world:
            yield world
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.mark.parametrize("world", [RetentionSettings(), _HOLDING], indirect=True, ids=str)
def test_the_mirror_is_rid_of_it(world: World) -> None:
    choice = random.Random(4)
    run_backup(world, choice)
    hostile_bucket(world, random.Random(_SEEDS[0]))
    world.finish(choice, restore=False)
    assert world.violations() == []
    assert world.statistics.faults["hostile bucket: objects"] > 0
    assert "Traceback" not in world.log()


def test_what_stays_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nothing has the bucket read anew, it is not found."""
    monkeypatch.setattr(module, "_UNTIL_IT_IS_GONE", 0.0)
    monkeypatch.setattr(module, "shutil", SimpleNamespace(rmtree=lambda *_, **__: None))
    monkeypatch.setattr(module, "some_operations", lambda *_: None)
    hostile_bucket(world, random.Random(3))
    assert any("others have put it there" in violation for violation in world.violations())


def test_every_kind_is_drawn(world: World) -> None:
    keys = {key for seed in range(12) for key in hostile_objects(world, random.Random(seed))}
    for part in (".mirrorfs/staging/", ".mirrorfs/deleted/", "/index.json.blob", "/owner", "/notes"):
        assert any(part in key for key in keys)
    assert hostile_objects(world, random.Random(7)) == hostile_objects(world, random.Random(7))
