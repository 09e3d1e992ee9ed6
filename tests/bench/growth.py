"""What grows with the number of chunks: a start over a datastore that has not changed, publishing a snapshot that names
all of them, and `mirrorfs status`.

The chunks are a few bytes each, their number is what counts. None of them is sent: state and store are told that all
were. They stand on an ext4 of their own, in a file below the directory that is given: a million files are made and
taken away there in a fraction of the time. It grows from one number of chunks to the next.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mirrorfs.database.directory import StateDirectory
from mirrorfs.state.state import State
from tests.bench.file_systems import file_system_for_small_files
from tests.bench.publication import Image, confirm_all
from tests.bench.rounds import HUNG_SECONDS
from tests.bench.stub_store import RunningStub
from tests.bench.targets import Mirror, sync_file_system
from tests.bench.uploads import Say
from tests.harness.names import chunk_path
from tests.stores.seaweedfs import StoreServer
from tests.watchdog import killing_mounts_after


@dataclass(frozen=True, slots=True)
class Growth:
    """Seconds, each round by itself, with so many chunks: from the command that mounts until nothing waits, of the
    command `status`, and from the end of a snapshot's manifest until it is published."""

    chunks: int
    start_seconds: tuple[float, ...]
    status_seconds: tuple[float, ...]
    publish_seconds: tuple[float, ...]


def measure_growth(
    base: Path, stub: RunningStub, bucket: str, *, counts: Sequence[int], rounds: int, say: Say
) -> list[Growth]:
    """Measure with each of these numbers of chunks, which grow. `base` is made, and stays. Raises BenchFailed."""
    disk = base / "disk"
    disk.mkdir(parents=True)
    with file_system_for_small_files(base / "image", disk, files=max(counts)):
        mirror = Mirror(disk / "mirror", cast(StoreServer, stub), bucket, name=base.name)
        mirror.put_state(base / "state")
        # A state that has a claim in the bucket, and then all chunks, as if they had been sent.
        image = Image(mirror.backing, 0)
        with killing_mounts_after(HUNG_SECONDS):
            _start(mirror)
        found = []
        for chunks in counts:
            say(f"growth: making {chunks - len(image.digests):,} chunks")
            with killing_mounts_after(HUNG_SECONDS):
                _grow(image, mirror, stub, f"{bucket}/{base.name}", chunks)
            found.append(_measure(image, mirror, rounds, say))
        return found


def _grow(image: Image, mirror: Mirror, stub: RunningStub, beginning: str, chunks: int) -> None:
    """Make the image one of so many chunks, all of which are in the state and in the store."""
    before = len(image.digests)
    image.path = mirror.backing
    image.digests += image.make_chunks(chunks - before)
    new = list(image.blobs(before))
    state = State(StateDirectory(str(mirror.state)).state)
    confirm_all(state, new)
    state.close()
    stub.take_in((f"{beginning}/{chunk_path(digest.hex())}", blob) for digest, blob in new)
    image.path = mirror.path
    sync_file_system(mirror.backing)


def _measure(image: Image, mirror: Mirror, rounds: int, say: Say) -> Growth:
    chunks = len(image.digests)
    starts, statuses, publications = [], [], []
    for number in range(rounds):
        say(f"growth: {chunks:,} chunks, round {number + 1} of {rounds}")
        with killing_mounts_after(HUNG_SECONDS):
            try:
                starts.append(_mount(mirror))
                statuses.append(_status(mirror))
                image.write_snapshot()
                publications.append(mirror.drain())
            finally:
                mirror.unmount()
    return Growth(chunks, tuple(starts), tuple(statuses), tuple(publications))


def _start(mirror: Mirror) -> None:
    try:
        _mount(mirror)
    finally:
        mirror.unmount()


def _mount(mirror: Mirror) -> float:
    began = time.perf_counter()
    mirror.mount()
    mirror.drain()
    return time.perf_counter() - began


def _status(mirror: Mirror) -> float:
    began = time.perf_counter()
    mirror.show_status()
    return time.perf_counter() - began
