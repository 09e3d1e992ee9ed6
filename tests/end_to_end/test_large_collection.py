"""A garbage collection of many chunks: the bucket ends with exactly those that the datastore has, also when whoever
hears of them natively is stopped half of the time."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.bulk import generate_bulk
from tests.harness.names import CHUNK_NAME

_SNAPSHOTS = 4
# Of 2,200 chunks of this seed none begins with ffff, by which a datastore that has all chunk directories is told.
_SEED = 5


_PAUSE_SECONDS = 0.3
_CHUNK_STORES = pytest.mark.parametrize("chunk_store", ["native", "fuse"])


@pytest.mark.parametrize("chunk_store", ["native", pytest.param("fuse", marks=pytest.mark.long)])
@pytest.mark.timeout(600)
def test_a_garbage_collection_of_2200_chunks_leaves_exactly_what_is_needed(
    mirror: MirrorUnderTest, chunk_store: str
) -> None:
    # Half of them go, which is more than a request deletes.
    _collect(mirror, 2_200, seconds=120, chunk_store=chunk_store)


@_CHUNK_STORES
@pytest.mark.long
@pytest.mark.timeout(7200)
def test_a_garbage_collection_of_100000_chunks_leaves_exactly_what_is_needed(
    mirror: MirrorUnderTest, chunk_store: str
) -> None:
    with mirror.writer() as writer:
        writer.create(chunk_directories="all")
    _collect(mirror, 100_000, seconds=3000, chunk_store=chunk_store)


def _collect(mirror: MirrorUnderTest, chunks: int, *, seconds: float, chunk_store: str) -> None:
    """Mirror four snapshots, forget two of them, collect, and look into the bucket. Waits for `seconds` at most."""
    made = generate_bulk(str(mirror.datastore), _SEED, snapshots=_SNAPSHOTS, chunks=chunks)
    mirror.mount("--chunk-store", chunk_store)
    mirror.wait(seconds)
    assert len(_in_bucket(mirror)) == chunks
    first, second, third, fourth = made.snapshots
    with mirror.writer() as writer:
        writer.forget(first)
        writer.forget(third)
        with _half_stopped(mirror.mount_pid()) if chunk_store == "native" else nullcontext():
            collected = writer.collect_garbage(age_seconds=0, safety_seconds=0)
    # All of two snapshots but the chunks that those after them share.
    assert 0.49 * chunks < len(collected.removed) < 0.5 * chunks
    mirror.wait(seconds)
    left = _in_bucket(mirror)
    assert left == _in_datastore(mirror)
    assert left.isdisjoint(collected.removed)
    assert len(left) == chunks - len(collected.removed)
    assert mirror.published() == sorted([second, fourth])
    assert mirror.audit() == []


@contextmanager
def _half_stopped(pid: int) -> Iterator[None]:
    """A process that gets processor time only half of the time."""
    ended = threading.Event()

    def stop_and_go() -> None:
        while not ended.is_set():
            os.kill(pid, signal.SIGSTOP)
            ended.wait(_PAUSE_SECONDS)
            os.kill(pid, signal.SIGCONT)
            ended.wait(_PAUSE_SECONDS)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _in_bucket(mirror: MirrorUnderTest) -> set[str]:
    keys = mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.chunks/")
    return {key.rpartition("/")[2] for key in keys}


def _in_datastore(mirror: MirrorUnderTest) -> set[str]:
    return {path.name for path in mirror.datastore.glob(".chunks/*/*") if CHUNK_NAME.match(path.name)}
