"""The state with millions of chunks: bytes on disk for each, time, and memory that must not grow with their number.

`python -m tests.bench.state_growth DIRECTORY CHUNKS` fills a state as the uploader does: chunks of random digests are
noted and then confirmed in batches, and each 262,144 of them counted as references of a snapshot. It prints one line
of JSON.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import trio

from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.publishing.references import References, Unreferenced
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import State, StateTransaction
from tests.bench.processes import answer_and_memory, own_memory

CHUNKS_A_SNAPSHOT = 262_144
# Eight chunks at a time, as an uploader commits them, would take hours of disk syncs; the pages come out equally full.
_CHUNKS_A_COMMIT = 1_000
_SIZE = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class StateGrowth:
    """What a state of `chunks` chunks came to. Bytes are those of the file; `memory` is the most that the process took
    beyond what it had before, in bytes, without the pages of the file that the kernel shows it. Times in seconds."""

    chunks: int
    file_bytes: int
    seconds: float
    reference_seconds: tuple[float, ...]
    memory: int

    @property
    def bytes_per_chunk(self) -> float:
        """What the promise is about."""
        return self.file_bytes / self.chunks


def measure_state_growth(directory: Path, chunks: int) -> StateGrowth:
    """Fill a state in `directory`, which is made, in a process of its own. Raises BenchFailed."""
    directory.mkdir()
    program = [sys.executable, "-m", "tests.bench.state_growth", str(directory), str(chunks)]
    answer, most = answer_and_memory(program)
    return StateGrowth(
        chunks, answer["file_bytes"], answer["seconds"], tuple(answer["reference_seconds"]), most - answer["memory"]
    )


@dataclass(frozen=True, slots=True)
class _Filled:
    file_bytes: int
    seconds: float
    reference_seconds: Sequence[float]
    memory: int


def _fill(directory: str, chunks: int) -> _Filled:
    state = State(directory)
    source = random.Random(chunks)
    before = own_memory()
    began = time.perf_counter()
    seconds = []
    for start in range(0, chunks, CHUNKS_A_SNAPSHOT):
        digests = [source.randbytes(32) for _ in range(min(CHUNKS_A_SNAPSHOT, chunks - start))]
        for first in range(0, len(digests), _CHUNKS_A_COMMIT):
            _confirm(state, digests[first : first + _CHUNKS_A_COMMIT])
        seconds.append(_reference(state, f"vm/{start}/2026-01-01T00:00:00Z", digests))
    elapsed = time.perf_counter() - began
    state.close()
    return _Filled((Path(directory) / "data.mdb").stat().st_size, elapsed, seconds, before)


def _confirm(state: State, digests: list[bytes]) -> None:
    def confirm(transaction: StateTransaction) -> None:
        for digest in digests:
            transaction.chunks.confirm(digest, _SIZE, 0)

    state.update(lambda transaction: transaction.chunks.intend(digests))
    state.update(confirm)


def _reference(state: State, path: str, digests: list[bytes]) -> float:
    """Count the references as a publication does; no object is read for that."""
    began = time.perf_counter()
    trio.run(_count, state, path, digests)
    return time.perf_counter() - began


async def _count(state: State, path: str, digests: list[bytes]) -> None:
    shared = CommittedState(state)
    bucket = Bucket(BucketLayout("bench"), cast(ObjectStore, None))
    references = References(bucket, shared, cast(Unreferenced, None))
    files = {"drive-scsi0.img.fidx": path}
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shared.run)
        left = await references.count_all_but_last(ReferenceHolder(path), files, Digests.of(digests))
        committed = SnapshotState(SnapshotPhase.COMMITTED, files, time.time())
        await shared.apply(lambda transaction: transaction.commit_snapshot(path, committed, left))
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    print(json.dumps(asdict(_fill(sys.argv[1], int(sys.argv[2])))))
