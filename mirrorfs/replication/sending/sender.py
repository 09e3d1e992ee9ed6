"""Which hands send which chunks, how many at a time, and when it is better not done in one go."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

import trio

from mirrorfs.objectstore.at_once import can_store_at_once
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.sending.attempt import LOST, NOT_BEGUN, Attempt

CHUNKS_A_HAND = 16
"""How many chunks each hand may have before it, so that none waits for what comes between: two batches."""
_LARGEST_BATCH = 8
# So long a hand may be busy with a batch, going by how long the latest chunks took.
_BATCH_SECONDS = 0.05
_WEIGHT_OF_LATEST = 0.2
_SHORTEST = 1e-4
# What did not work is found out about step by step; meanwhile nothing else is tried in one go.
_PAUSE_SECONDS = 1.0


class Hand(Protocol):
    """Whoever sends one chunk after the other: a thread of this process, or of another one."""

    @property
    def is_ready(self) -> bool:
        """Whether it can be given anything now."""

    async def ready(self) -> None:
        """Return when it can be given something."""

    async def send(self, digests: Sequence[bytes], capabilities: StoreCapabilities) -> Sequence[Attempt]:
        """Send chunks in this order, at least one; tells of each what came of it, or of all if the hand was lost.

        What is begun is brought to its end, also when this is cancelled.
        """


@dataclass(slots=True, eq=False)
class _Entry:
    """A chunk that somebody waits for; `is_taken` while a hand has it, `is_unwanted` when nobody waits any more."""

    digest: bytes
    is_taken: bool = False
    is_unwanted: bool = False
    attempt: Attempt | None = None
    finished: trio.Event = field(default_factory=trio.Event)

    def finish(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.finished.set()


class ChunkSender:
    """Sends chunks by several hands. `run` must be running for `send` to return."""

    def __init__(self, hands: Sequence[Hand], store: ObjectStore) -> None:
        """`store` is the one that the hands send to: it tells what it honours and how it is, and counts."""
        self._hands = hands
        self._store = store
        self._waiting: deque[_Entry] = deque()
        self._arrived = trio.Event()
        self._seconds_a_chunk = _BATCH_SECONDS
        self._closed_until = 0.0

    @property
    def is_open(self) -> bool:
        """Whether sending in one go is likely to work now."""
        return (
            self._store.condition.is_up
            and trio.current_time() >= self._closed_until
            and can_store_at_once(self._store.capabilities)
            and self._has_ready_hand()
        )

    def _has_ready_hand(self) -> bool:
        return any(hand.is_ready for hand in self._hands)

    async def send(self, digest: bytes) -> Attempt:
        """Send the chunk; to be called for one that the bucket is not known to have, its intention noted before."""
        if not self._has_ready_hand():
            return NOT_BEGUN
        entry, condition = _Entry(digest), self._store.condition
        series = condition.begin(writes=True)
        self._waiting.append(entry)
        self._arrived.set()
        attempt = await self._finished(entry)
        if attempt.is_stored:
            condition.succeeded(series)
            self._store.count_upload(attempt.size)
        elif attempt.began:
            self._closed_until = trio.current_time() + _PAUSE_SECONDS
        return attempt

    async def _finished(self, entry: _Entry) -> Attempt:
        try:
            await entry.finished.wait()
        except trio.Cancelled:
            if entry.is_taken:
                entry.is_unwanted = True
                # Nothing else may happen to the object before the PUT has come to its end.
                with trio.CancelScope(shield=True):
                    await entry.finished.wait()
            elif not entry.finished.is_set():
                self._waiting.remove(entry)
            raise
        assert entry.attempt is not None
        return entry.attempt

    async def run(self) -> None:
        """Have the hands work, until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                for hand in self._hands:
                    nursery.start_soon(self._keep_busy, hand)
        finally:
            self._give_back()

    def _give_back(self) -> None:
        while self._waiting:
            self._waiting.popleft().finish(NOT_BEGUN)

    async def _keep_busy(self, hand: Hand) -> None:
        while True:
            if not hand.is_ready:
                if not self._has_ready_hand():
                    self._give_back()
                await hand.ready()
            # What is begun is brought to its end; nothing more is begun after that.
            await trio.lowlevel.checkpoint()
            if self._waiting:
                await self._send_batch(hand, self._batch())
                continue
            # All idle hands wait for one event: each that had its own would miss what comes for the others.
            if self._arrived.is_set():
                self._arrived = trio.Event()
            await self._arrived.wait()

    def _batch(self) -> list[_Entry]:
        share = -(-len(self._waiting) // len(self._hands))
        size = min(share, _LARGEST_BATCH, max(1, int(_BATCH_SECONDS / self._seconds_a_chunk)))
        batch = [self._waiting.popleft() for _ in range(size)]
        for entry in batch:
            entry.is_taken = True
        return batch

    async def _send_batch(self, hand: Hand, batch: Sequence[_Entry]) -> None:
        began = trio.current_time()
        attempts: Sequence[Attempt] = [LOST] * len(batch)
        try:
            attempts = await hand.send([entry.digest for entry in batch], self._store.capabilities)
        finally:
            for entry, attempt in zip(batch, attempts, strict=False):
                entry.finish(attempt)
            self._put_back(batch[len(attempts) :])
        latest = max(_SHORTEST, (trio.current_time() - began) / len(attempts))
        self._seconds_a_chunk += _WEIGHT_OF_LATEST * (latest - self._seconds_a_chunk)

    def _put_back(self, entries: Sequence[_Entry]) -> None:
        """Have entries that there was no time for come next."""
        for entry in reversed(entries):
            if entry.is_unwanted:
                entry.finish(NOT_BEGUN)
                continue
            entry.is_taken = False
            self._waiting.appendleft(entry)
            self._arrived.set()
