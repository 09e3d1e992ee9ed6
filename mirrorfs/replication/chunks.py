"""Chunks: each is sent once, as soon as it is due, and goes when the datastore and every snapshot are done with it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import crc32c
import trio

from mirrorfs.datastore.blob import check_chunk
from mirrorfs.datastore.errors import BlobError, DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import chunk_path
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.state import ChunkState, State
from mirrorfs.objectstore.errors import ConfirmationFailed, ObjectMissing, StoreRejected
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.commits import StateCommits
from mirrorfs.replication.exclusion import Exclusion
from mirrorfs.replication.problems import CannotMirror
from mirrorfs.replication.replica import holds
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_QUARANTINE_NUMBERS = range(10)


class ChunkMirror:
    """The chunk objects of the bucket.

    A chunk is deleted only while it is neither referenced in the state nor pinned by a publication that is under way;
    whoever pins looks afterwards at what is being handled at that moment, so that no deletion slips in between (P5).
    """

    def __init__(
        self,
        tree: Tree,
        layout: BucketLayout,
        store: ObjectStore,
        state: State,
        commits: StateCommits,
        *,
        parallel: int,
        healed: Callable[[bytes], None],
        unpinned: Callable[[bytes], None],
        postpone: Callable[[bytes], bool],
    ) -> None:
        """`parallel` bounds the chunks in memory.

        `healed` is called with each digest that has become confirmed, `unpinned` with each that a publication alone
        has kept from being deleted, when it does so no more. `postpone` is asked before a deletion whether that
        shall wait: a snapshot that moves goes under one name and comes under another, and its chunks, which perhaps
        only the bucket has any more, must not go in between.
        """
        self._tree = tree
        self._layout = layout
        self._store = store
        self._state = state
        self._commits = commits
        self._healed = healed
        self._unpinned = unpinned
        self._postpone = postpone
        self._kept_by_pins: set[bytes] = set()
        self._busy = Exclusion[bytes]()
        self._pins: list[set[bytes]] = []
        self._in_memory = trio.CapacityLimiter(parallel)

    @asynccontextmanager
    async def pinned(self, digests: set[bytes]) -> AsyncIterator[list[bytes]]:
        """Keep `digests` from being deleted, and give those that `ensure` must see to, sorted."""
        self._pins.append(digests)
        busy = self._busy.held() & digests
        try:
            missing = await trio.to_thread.run_sync(
                lambda: self._state.view(lambda transaction: transaction.unconfirmed(digests))
            )
            yield sorted(busy.union(missing))
        finally:
            # By identity: two publications may pin equal sets.
            self._pins = [pin for pin in self._pins if pin is not digests]
            self._look_again_at(digests & self._kept_by_pins)

    def _look_again_at(self, unpinned: set[bytes]) -> None:
        for digest in unpinned:
            if not self._is_pinned(digest):
                self._kept_by_pins.discard(digest)
                self._unpinned(digest)

    def _is_pinned(self, digest: bytes) -> bool:
        return any(digest in pin for pin in self._pins)

    async def ensure(self, digest: bytes) -> None:
        """Have the chunk confirmed in the bucket, from the local file if it is not yet.

        Raises:
            CannotMirror: the local file is missing or damaged, or the store refuses it.
        """
        async with self._busy.hold(digest):
            known = self._known(digest)
            if known is not None and known.confirmed:
                return
            try:
                await self._upload(digest, known)
            except CannotMirror:
                # What the datastore has lost or damaged may be whole in the bucket: adopted, or doubted by a crash.
                if known is None or not await self._confirm_object(digest):
                    raise

    async def settle(self, digest: bytes) -> None:
        """Have the bucket agree with what the datastore holds now under the chunk's name.

        Raises:
            CannotMirror: see `ensure`.
        """
        async with self._busy.hold(digest):
            while True:
                known = self._known(digest)
                if await trio.to_thread.run_sync(self._tree.chunk_size, digest) is not None:
                    await self._upload(digest, known)
                    return
                if known is None or await self._needed(digest) or self._postpone(digest):
                    return
                if await self._delete(digest):
                    return

    def _known(self, digest: bytes) -> ChunkState | None:
        return self._state.view(lambda transaction: transaction.chunk(digest))

    async def _needed(self, digest: bytes) -> bool:
        if await trio.to_thread.run_sync(self._quarantined, digest):
            return True
        known = self._known(digest)
        if known is None or known.references > 0:
            return known is not None
        if self._is_pinned(digest):
            self._kept_by_pins.add(digest)
            return True
        return False

    def _quarantined(self, digest: bytes) -> bool:
        return any(self._tree.exists(f"{chunk_path(digest)}.{number}.bad") for number in _QUARANTINE_NUMBERS)

    async def _delete(self, digest: bytes) -> bool:
        await self._commits.apply(lambda transaction: transaction.doubt_chunk(digest))
        reach("chunk.before-delete")
        await self._store.delete([self._layout.chunk_key(digest)])
        reach("chunk.after-delete")
        await self._commits.apply(lambda transaction: transaction.forget_chunk(digest))
        reach("chunk.forgotten")
        return await trio.to_thread.run_sync(self._tree.chunk_size, digest) is None

    async def _upload(self, digest: bytes, known: ChunkState | None) -> None:
        async with self._in_memory:
            data = await trio.to_thread.run_sync(self._read, digest)
            checksum = crc32c.crc32c(data)
            if known is not None and (known.size, known.crc32c) == (len(data), checksum):
                return
            key = self._layout.chunk_key(digest)
            try:
                there = known is not None and not known.confirmed and await holds(self._store, key, data)
                if not there:
                    await self._put(digest, key, data, known)
            except (StoreRejected, ConfirmationFailed) as error:
                raise CannotMirror(chunk_path(digest), str(error), (digest,)) from error
            await self._commits.apply(lambda transaction: transaction.confirm_chunk(digest, len(data), checksum))
        reach("chunk.recorded")
        self._healed(digest)

    async def _confirm_object(self, digest: bytes) -> bool:
        """Read the chunk's object and confirm it if it is sound."""
        async with self._in_memory:
            try:
                data = await self._store.get(self._layout.chunk_key(digest))
                await trio.to_thread.run_sync(lambda: check_chunk(data, digest, content=True))
            except (ObjectMissing, StoreRejected, BlobError):
                return False
            checksum = crc32c.crc32c(data)
            await self._commits.apply(lambda transaction: transaction.confirm_chunk(digest, len(data), checksum))
        reach("chunk.recorded")
        return True

    async def _put(self, digest: bytes, key: str, data: bytes, known: ChunkState | None) -> None:
        reach("chunk.before-intention")
        if known is None:
            await self._commits.apply(lambda transaction: transaction.intend_chunks([digest]))
        elif known.confirmed:
            await self._commits.apply(lambda transaction: transaction.doubt_chunk(digest))
        reach("chunk.before-put")
        await self._store.put(key, data)
        reach("chunk.after-put")

    def _read(self, digest: bytes) -> bytes:
        try:
            data = self._tree.read_chunk(digest)
            # Also the content: a store would confirm wrong content under a good name, and the good object be gone.
            check_chunk(data, digest, content=True)
        except FileNotFoundError as error:
            raise CannotMirror(chunk_path(digest), "the chunk is missing in the datastore", (digest,)) from error
        except BlobError as error:
            reason = f"it is not sound in the datastore: {error}"
            raise CannotMirror(chunk_path(digest), reason, (digest,)) from error
        except (DatastoreError, OSError) as error:
            raise CannotMirror(chunk_path(digest), f"the chunk cannot be read: {error}", (digest,)) from error
        return data
