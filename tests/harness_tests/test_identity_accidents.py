"""Clones, second mirrors, disks that were put back, odd ends of a mount and bad small files, as soak rounds draw them:
the product as it is survives them."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.harness.ends_of_mounts import stray_signals, unmounted_by_hand, unmounted_while_a_copy_is_kept
from tests.harness.identity_accidents import (
    clone_of_the_host,
    newest_snapshots_lost,
    rollback,
    second_mirror_over_one_directory,
)
from tests.harness.operations import run_backup
from tests.harness.prefix_accidents import server_that_claims_collects_and_leaves, take_over_while_running
from tests.harness.rotten_bucket import rot_in_the_bucket
from tests.harness.small_files import small_file_of_anything
from tests.harness.soak import MEMORY
from tests.harness.statistics import Statistics
from tests.harness.world import World, WorldSettings
from tests.stores.seaweedfs import StoreServer

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def base() -> Iterator[Path]:
    """Where the disks of a world stand."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-identity-", dir=MEMORY if MEMORY.is_dir() else None) as path:
        yield Path(path)


@pytest.mark.parametrize(
    "happening",
    [
        clone_of_the_host,
        second_mirror_over_one_directory,
        newest_snapshots_lost,
        rollback,
        take_over_while_running,
        server_that_claims_collects_and_leaves,
        rot_in_the_bucket,
        # What these do has tests of its own, of the commands and of the files.
        *(
            pytest.param(happening, marks=pytest.mark.long)
            for happening in (
                small_file_of_anything,
                stray_signals,
                unmounted_by_hand,
                unmounted_while_a_copy_is_kept,
            )
        ),
    ],
)
def test_it_happens_and_nothing_is_violated(
    happening: Callable[[World, random.Random], None], base: Path, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    statistics = Statistics()
    with World(WorldSettings(base, store, shared_bucket, prefix, {}), statistics, seed=1) as world:
        for number in range(6):
            run_backup(world, random.Random(number))
        happening(world, random.Random(3))
        world.settle()
        assert world.violations() == []
    assert sum(statistics.faults.values()) >= 1


def test_a_mirror_that_follows_every_absence_is_found(
    base: Path, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    statistics = Statistics()
    with World(WorldSettings(base, store, shared_bucket, prefix, {}), statistics, seed=1) as world:
        for number in range(6):
            run_backup(world, random.Random(number))
        world.mirror.mount_options = (*world.mirror.mount_options, "--retention-unseen-after", "0")
        newest_snapshots_lost(world, random.Random(3))
        assert any("it was not seen to go" in violation for violation in world.violations())
