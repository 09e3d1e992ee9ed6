"""Chunks from a bucket in one go: several in one thread, one after the other, each looked for, fetched, checked and
written.

For what nearly always works: to hand each step of each chunk to a thread costs as much as a small chunk itself. Nothing
is repeated here, and no failure is told: whoever asks brings what is left once more, with all patience.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

import trio

from mirrorfs.checking.chunks import check_chunk_for
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import DatastoreError, contained
from mirrorfs.objectstore.errors import StoreError


class Chunks(Protocol):
    """Where chunks come to; see Target and LivingDatastore. The methods block, and raise RestoreError."""

    def to_look_at(self, digests: Iterable[bytes], *, are_encrypted: bool) -> list[bytes]:
        """Which of these are not known to be there and good. Raises BlobError."""
        ...

    def has_chunk(self, digest: bytes, *, is_encrypted: bool) -> bool:
        """Whether a chunk is there and good. Raises BlobError."""
        ...

    def write_chunk(self, digest: bytes, data: bytes, *, is_encrypted: bool) -> None:
        """Put a chunk in place, unchecked."""
        ...


class ChunkBatch:
    """Chunks that one thread takes off what remains, until its time is over."""

    def __init__(
        self,
        remaining: deque[bytes],
        in_flight: dict[bytes, trio.Event],
        chunks: Chunks,
        fetch: Callable[[bytes], Content],
        *,
        are_encrypted: bool,
    ) -> None:
        """`remaining` is shared with other batches, and `in_flight` too: what is in there is somebody else's to bring.

        `fetch` gets an object in the thread that calls it, tried once. Raises StoreError, DatastoreError.
        """
        self.left: list[bytes] = []
        """What was taken and is not there: by a failure, or because somebody else is about to bring it."""
        self.kept = 0
        """How many were there."""
        self.sizes: list[int] = []
        """How many bytes each had that was fetched and written."""
        self._remaining = remaining
        self._in_flight = in_flight
        self._chunks = chunks
        self._fetch = fetch
        self._are_encrypted = are_encrypted
        self._finished = trio.Event()
        self._claimed: list[bytes] = []
        self._lock = threading.Lock()
        self._is_over = False

    def run(self, seconds: float) -> None:
        """Bring chunks, at least one where one remains; no further one is begun after so many seconds.

        To be run in a thread, which may be abandoned: nothing is looked at or written after `end`. Raises RestoreError.
        """
        until = time.monotonic() + seconds
        goes_on = True
        while goes_on:
            try:
                digest = self._remaining.popleft()
            except IndexError:
                return
            goes_on = self._bring(digest) and time.monotonic() < until

    def end(self) -> None:
        """Has to be called at the end, in the trio thread: let go of what was claimed."""
        with self._lock:
            self._is_over = True
        for digest in self._claimed:
            del self._in_flight[digest]
        self._finished.set()

    def _bring(self, digest: bytes) -> bool:
        """Bring one; whether to go on with others."""
        try:
            if not self._is_to_be_fetched(digest):
                return True
            data = self._fetch(digest)
            with contained("it takes more memory than there is"):
                check_chunk_for(data, digest, uses=(self._are_encrypted,))
        except (DatastoreError, StoreError):
            self.left.append(digest)
            return False
        with self._lock:
            if self._is_over:
                return False
            self._chunks.write_chunk(digest, bytes(data), is_encrypted=self._are_encrypted)
        self.sizes.append(len(data))
        return True

    def _is_to_be_fetched(self, digest: bytes) -> bool:
        """Claim a chunk and look for it. Raises DatastoreError."""
        with self._lock:
            if self._is_over:
                return False
            if self._in_flight.setdefault(digest, self._finished) is not self._finished:
                self.left.append(digest)
                return False
            self._claimed.append(digest)
            if not self._chunks.to_look_at([digest], are_encrypted=self._are_encrypted):
                # Somebody else has brought it meanwhile.
                return False
            is_there = self._chunks.has_chunk(digest, is_encrypted=self._are_encrypted)
            self.kept += is_there
            return not is_there
