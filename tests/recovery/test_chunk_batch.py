"""Chunks brought in one go: what works is there, everything else is left, and an abandoned thread writes nothing."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Iterable

import trio

from mirrorfs.datastore.content import Content
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.recovery.chunk_batch import ChunkBatch
from tests.datastore.formats import plain_blob

BLOBS = {hashlib.sha256(content).digest(): plain_blob(content) for content in (b"one", b"two", b"three")}
DIGESTS = list(BLOBS)
PATIENT_SECONDS = 60.0


class Chunks:
    """Where chunks come to."""

    def __init__(self, present: Iterable[bytes] = ()) -> None:
        self.present = set(present)
        self.written: dict[bytes, bytes] = {}

    def to_look_at(self, digests: Iterable[bytes], *, are_encrypted: bool) -> list[bytes]:
        return [digest for digest in digests if digest not in self.written]

    def has_chunk(self, digest: bytes, *, is_encrypted: bool) -> bool:
        return digest in self.present

    def write_chunk(self, digest: bytes, data: bytes, *, is_encrypted: bool) -> None:
        self.written[digest] = data


def test_what_is_there_is_kept_and_the_rest_is_fetched_and_written() -> None:
    chunks = Chunks(DIGESTS[:1])
    in_flight: dict[bytes, trio.Event] = {}
    batch = ChunkBatch(deque(DIGESTS), in_flight, chunks, BLOBS.__getitem__, are_encrypted=False)
    batch.run(PATIENT_SECONDS)
    assert in_flight.keys() == BLOBS.keys()
    batch.end()
    assert chunks.written == {digest: BLOBS[digest] for digest in DIGESTS[1:]}
    assert (batch.kept, batch.left) == (1, [])
    assert batch.sizes == [len(BLOBS[digest]) for digest in DIGESTS[1:]]
    assert not in_flight


def test_one_is_brought_however_short_the_time() -> None:
    remaining = deque(DIGESTS)
    batch = ChunkBatch(remaining, {}, Chunks(), BLOBS.__getitem__, are_encrypted=False)
    batch.run(0.0)
    batch.end()
    assert len(batch.sizes) == 1
    assert list(remaining) == DIGESTS[1:]


def test_what_fails_is_left_and_ends_the_batch() -> None:
    def fetch(digest: bytes) -> Content:
        if digest == DIGESTS[0]:
            raise ObjectMissing("read it", "it is not there")
        return plain_blob(b"something else")

    chunks, remaining = Chunks(), deque(DIGESTS)
    for taken in (1, 2):
        batch = ChunkBatch(remaining, {}, chunks, fetch, are_encrypted=False)
        batch.run(PATIENT_SECONDS)
        batch.end()
        assert batch.left == [DIGESTS[taken - 1]]
        assert list(remaining) == DIGESTS[taken:]
    assert not chunks.written


def test_an_encrypted_chunk_is_not_taken_for_a_plain_one() -> None:
    chunks = Chunks()
    batch = ChunkBatch(deque(DIGESTS[:1]), {}, chunks, BLOBS.__getitem__, are_encrypted=True)
    batch.run(PATIENT_SECONDS)
    batch.end()
    assert batch.left == DIGESTS[:1]
    assert not chunks.written


def test_what_somebody_else_brings_is_left() -> None:
    somebody = trio.Event()
    in_flight = {DIGESTS[0]: somebody}
    chunks = Chunks()
    batch = ChunkBatch(deque(DIGESTS), in_flight, chunks, BLOBS.__getitem__, are_encrypted=False)
    batch.run(PATIENT_SECONDS)
    batch.end()
    assert batch.left == DIGESTS[:1]
    assert sorted(chunks.written) == sorted(DIGESTS[1:])
    assert in_flight == {DIGESTS[0]: somebody}


def test_nothing_is_written_after_the_end() -> None:
    asked, may_answer = threading.Event(), threading.Event()

    def fetch(digest: bytes) -> Content:
        asked.set()
        assert may_answer.wait(PATIENT_SECONDS)
        return BLOBS[digest]

    chunks, remaining = Chunks(), deque(DIGESTS)
    in_flight: dict[bytes, trio.Event] = {}
    batch = ChunkBatch(remaining, in_flight, chunks, fetch, are_encrypted=False)
    thread = threading.Thread(target=batch.run, args=(PATIENT_SECONDS,))
    thread.start()
    assert asked.wait(PATIENT_SECONDS)
    batch.end()
    assert not in_flight
    may_answer.set()
    thread.join(PATIENT_SECONDS)
    assert not thread.is_alive()
    assert not chunks.written
    assert list(remaining) == DIGESTS[1:]
