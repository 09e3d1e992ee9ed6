"""Making a datastore, as PBS does it once: 65,536 chunk directories, each made and given to PBS's user."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.bench.file_systems import new_file_system
from tests.bench.rounds import HUNG_SECONDS
from tests.bench.targets import Mirror, Target, sync_file_system
from tests.bench.uploads import Say
from tests.harness.store import create_datastore
from tests.harness.system_calls import SystemCalls
from tests.stores.seaweedfs import StoreServer
from tests.watchdog import killing_mounts_after


@dataclass(frozen=True, slots=True)
class Creations:
    """Seconds of each round, in the backing directory and through a mount."""

    backing: tuple[float, ...]
    mirrorfs: tuple[float, ...]


def measure_creations(
    base: Path, store: StoreServer, bucket: str, *, directories: int, rounds: int, say: Say
) -> Creations:
    """Make so many chunk directories in each round, in turns, on a new file system each time.

    `base` is made, and stays. Raises BenchFailed.
    """
    disk = base / "disk"
    disk.mkdir(parents=True)
    backing: list[float] = []
    mirrorfs: list[float] = []
    for number in range(rounds):
        say(f"creation, round {number + 1} of {rounds}")
        mirror = partial(Mirror, disk / "mirrorfs", store, bucket, name=f"creation-{number}")
        pairs: list[tuple[list[float], Callable[[], Target]]] = [
            (backing, partial(Target, disk / "backing")),
            (mirrorfs, mirror),
        ]
        for seconds, make in pairs if number % 2 == 0 else reversed(pairs):
            with new_file_system(base / "image", disk), killing_mounts_after(HUNG_SECONDS):
                seconds.append(_create(make(), directories))
    return Creations(tuple(backing), tuple(mirrorfs))


def _create(target: Target, directories: int) -> float:
    calls = SystemCalls()
    try:
        target.mount()
        target.drain()
        sync_file_system(target.base)
        began = time.perf_counter()
        create_datastore(str(target.path), calls, chunk_directories="when needed")
        for number in range(directories):
            path = f"{target.path}/.chunks/{number:04x}"
            calls.make_directory("datastore", path, 0o750)
            calls.change_owner_of_path("datastore", path)
        return time.perf_counter() - began
    finally:
        target.unmount()
