"""What grows with the number of chunks: a start over a datastore that has not changed, publishing a snapshot that names
all of them, and `mirrorfs status`.

The chunks are a few bytes each, their number is what counts. None of them is sent: state and store are told that all
were.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from mirrorfs.database.directory import StateDirectory
from mirrorfs.state.state import State
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


def measure_growth(base: Path, stub: RunningStub, bucket: str, *, chunks: int, rounds: int, say: Say) -> Growth:
    """Measure with so many chunks. `base` is made, and stays. Raises BenchFailed."""
    mirror = Mirror(base, cast(StoreServer, stub), bucket, name=base.name)
    say(f"growth: making {chunks:,} chunks")
    with killing_mounts_after(HUNG_SECONDS):
        image = Image(mirror.backing, 0)
        # A state that has a claim in the bucket, and then all chunks, as if they had been sent.
        _start(mirror)
        image.digests += [image.make_chunk() for _ in range(chunks)]
        state = State(StateDirectory(str(mirror.base / "state")).state)
        confirm_all(state, image)
        state.close()
        beginning = f"{bucket}/{base.name}"
        stub.take_in((f"{beginning}/{chunk_path(digest.hex())}", blob) for digest, blob in image.blobs())
        image.path = mirror.path
        sync_file_system(base)
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
