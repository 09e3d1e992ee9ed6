"""Deleting the objects of chunks that nobody needs any more, many with one request."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import trio

from mirrorfs.datastore.names import chunk_path
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.client import MAX_KEYS_PER_DELETE
from mirrorfs.objectstore.errors import StoreError, StoreRejected
from mirrorfs.replication.publishing.chunks import ChunkMirror
from mirrorfs.replication.retention.refusals import asked_again_at
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.problems import Problems
from mirrorfs.state.chunks import ChunkState
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

CHUNKS_A_BATCH = MAX_KEYS_PER_DELETE
_ALL = sys.maxsize


@dataclass(frozen=True, slots=True)
class _Found:
    """Which chunks of a batch are gone, which the datastore has, also in quarantine, and which it cannot tell of."""

    gone: list[bytes] = field(default_factory=list)
    here: list[bytes] = field(default_factory=list)
    unreadable: dict[bytes, OSError] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Before:
    """What was known of a chunk's object before it was to go, also until when it is locked."""

    chunk: ChunkState
    locked_until: float

    def restore(self, transaction: StateTransaction, digest: bytes) -> None:
        if self.chunk.confirmed:
            transaction.chunks.confirm(digest, self.chunk.size, self.chunk.crc32c)
        if self.locked_until > 0:
            transaction.locks.set_chunks_locked([digest], self.locked_until)


@dataclass(frozen=True, slots=True)
class _Refusals:
    """Which chunks the store has refused to delete, and why; `leave_all`: it is sure that those are still there."""

    errors: dict[bytes, StoreError]
    leave_all: bool


class ChunkRemoval:
    """Removes chunks in batches, as carefully as one by one (P5).

    Nobody else works on a chunk of the batch while it is under way. Its file is gone and it is not in quarantine when
    that is looked at; no publication pins it then, and whoever pins it later waits for the end of the batch, and sends
    it again. That it is not referenced is seen in the very commit after which it may be deleted.
    """

    def __init__(
        self,
        tree: Tree,
        bucket: Bucket,
        state: CommittedState,
        chunks: ChunkMirror,
        problems: Problems,
        ownership: Ownership,
        *,
        look_again: Callable[[bytes], None],
        now: Callable[[], float] = time.time,
    ) -> None:
        """`look_again` is called with each digest that the datastore has again."""
        self._tree = tree
        self._bucket = bucket
        self._state = state
        self._chunks = chunks
        self._problems = problems
        self._ownership = ownership
        self._look_again = look_again
        self._now = now

    async def remove(self, digests: Sequence[bytes]) -> None:
        """Delete the objects of those chunks that are gone from the datastore and that nobody needs.

        One that the store refuses to delete stays as it is, and is not asked for again for a while.
        """
        with self._chunks.deletable(digests) as deletable:
            found = await trio.to_thread.run_sync(self._look, deletable)
            unneeded = await trio.to_thread.run_sync(self._unneeded, found.gone)
            deleted = await self._delete(unneeded) if unneeded else []
        returned = (await trio.to_thread.run_sync(self._look, deleted)).here
        for digest in (*found.here, *returned):
            self._look_again(digest)
        await self._note_problems(found.unreadable, deleted)

    def _look(self, digests: Iterable[bytes]) -> _Found:
        found = _Found()
        for digest in digests:
            try:
                file = self._tree.chunk(digest)
            except OSError as error:
                found.unreadable[digest] = error
            else:
                is_gone = file.size is None and not file.is_quarantined
                (found.gone if is_gone else found.here).append(digest)
        return found

    def _unneeded(self, digests: list[bytes]) -> list[bytes]:
        return self._state.view(lambda transaction: [digest for digest in digests if self._may_go(transaction, digest)])

    def _may_go(self, transaction: StateTransaction, digest: bytes) -> bool:
        known = transaction.chunks.get(digest)
        if known is None or known.references:
            return False
        refusal = transaction.retention.refused(self._bucket.layout.chunk_key(digest))
        return refusal is None or refusal.retry_at <= self._now()

    async def _delete(self, unneeded: list[bytes]) -> list[bytes]:
        await self._ownership.confirm_for_removal()
        reach("chunk-removal.before-doubt")
        doubted = await self._state.apply(lambda transaction: _doubt_unreferenced(transaction, unneeded))
        reach("chunk-removal.before-delete")
        refusals = await self._delete_objects(list(doubted))
        reach("chunk-removal.after-delete")
        await self._state.apply(lambda transaction: self._record(transaction, doubted, refusals))
        reach("chunk-removal.recorded")
        if refusals.errors:
            _tell(refusals, len(doubted))
        return [digest for digest in doubted if digest not in refusals.errors]

    async def _delete_objects(self, digests: list[bytes]) -> _Refusals:
        keys = {self._bucket.layout.chunk_key(digest): digest for digest in digests}
        try:
            refused = await self._bucket.store.delete_each(list(keys))
        except StoreRejected as error:
            return _Refusals(dict.fromkeys(digests, error), leave_all=False)
        return _Refusals({keys[key]: error for key, error in refused.items()}, leave_all=True)

    def _record(self, transaction: StateTransaction, doubted: dict[bytes, _Before], refusals: _Refusals) -> None:
        deleted = doubted.keys() - refusals.errors.keys()
        for digest in sorted(deleted):
            now = transaction.chunks.get(digest)
            # A snapshot that needs it may have been found in the bucket meanwhile: then that has to stay known.
            if now is not None and not now.references:
                transaction.chunks.forget(digest)
        transaction.retention.clear_refused(map(self._bucket.layout.chunk_key, deleted))
        for digest, error in refusals.errors.items():
            before = doubted[digest]
            if refusals.leave_all:
                before.restore(transaction, digest)
            retry_at = asked_again_at(self._now(), before.locked_until)
            transaction.retention.set_refused(self._bucket.layout.chunk_key(digest), str(error), retry_at)

    async def look_again_at_refused(self) -> None:
        """Have those chunks looked at anew that the store may be asked for again by now."""
        due = await trio.to_thread.run_sync(lambda: self._state.view(self._due))
        if due:
            # Noted anew if it is refused again, and over for those that somebody needs again.
            await self._state.apply(lambda transaction: transaction.retention.clear_refused(due))
            reach("chunk-removal.refusals-over")
        for digest in due.values():
            self._look_again(digest)

    def _due(self, transaction: StateTransaction) -> dict[str, bytes]:
        now = self._now()
        _, refusals = transaction.retention.refusals(_ALL)
        found = {
            refusal.key: self._bucket.layout.chunk_digest(refusal.key)
            for refusal in refusals
            if refusal.retry_at <= now
        }
        return {key: digest for key, digest in found.items() if digest is not None}

    async def _note_problems(self, unreadable: dict[bytes, OSError], deleted: list[bytes]) -> None:
        for digest, error in unreadable.items():
            await self._problems.note(chunk_path(digest), f"it cannot be read: {error.strerror}")
        for name in await trio.to_thread.run_sync(self._names_with_problems, deleted):
            await self._problems.clear(name)

    def _names_with_problems(self, digests: list[bytes]) -> list[str]:
        names = map(chunk_path, digests)
        return self._state.view(
            lambda transaction: [name for name in names if transaction.problems.get(name) is not None]
        )


def _doubt_unreferenced(transaction: StateTransaction, digests: list[bytes]) -> dict[bytes, _Before]:
    """Note that the objects are about to go, unless somebody references them; returns what was known of those."""
    doubted = {}
    for digest in sorted(digests):
        known = transaction.chunks.get(digest)
        if known is not None and not known.references:
            doubted[digest] = _Before(known, transaction.locks.chunk_locked_until(digest))
            transaction.chunks.doubt(digest)
    return doubted


def _tell(refusals: _Refusals, asked: int) -> None:
    log.warning(
        "the store refuses to delete %d of %d chunks that nobody needs; it is asked again later: %s",
        len(refusals.errors),
        asked,
        next(iter(refusals.errors.values())),
    )
