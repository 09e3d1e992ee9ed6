"""Bringing single objects and chunks from a bucket to where they belong, each checked before it is written."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from functools import partial
from itertools import islice
from typing import TypeVar

import trio

from mirrorfs.checking.chunks import CHUNK_LIMIT, check_chunk_for
from mirrorfs.checking.reading import Limit, read_checked
from mirrorfs.concurrency import for_each
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import chunk_path
from mirrorfs.objectstore.errors import ObjectMissing, StoreRejected
from mirrorfs.recovery.chunk_batch import ChunkBatch, Chunks
from mirrorfs.recovery.pace import Pace, Slots
from mirrorfs.recovery.progress import Account, Damages, RestoreObserver
from mirrorfs.recovery.source import Source

Result = TypeVar("Result")
Referenced = Callable[[int], None]
"""Hears of how many more references the chunks are there."""

# So many digests of an index are in memory at a time.
_DIGESTS_AT_ONCE = 16 * 1024
# Then a thread gives way, to what is more urgent or to an end.
_BATCH_SECONDS = 0.1


class Fetcher:
    """Fetches objects, in the order of the ranks that are given, at most `parallelism` at a time."""

    def __init__(
        self,
        source: Source,
        layout: BucketLayout,
        parallelism: int,
        pace: Pace,
        account: Account,
        observer: RestoreObserver,
    ) -> None:
        self.source = source
        self.layout = layout
        self.parallelism = parallelism
        self.slots = Slots(parallelism)
        self._pace = pace
        self._account = account
        self._observer = observer

    async def fetch(
        self, key: str, limit: Limit, check: Callable[[Content], Result], write: Callable[[Content], None]
    ) -> Result:
        """Download an object, check it and write it, in this order; to be called with a slot.

        Raises DatastoreError, StoreError.
        """

        def check_and_write(data: Content) -> Result:
            result = check(data)
            write(data)
            return result

        await self._pace.keep()
        return await read_checked(self.source, key, limit, check_and_write, self._count)

    async def bring_at_once(self, batch: ChunkBatch, threads: trio.CapacityLimiter) -> None:
        """Run a batch in a thread and end it; to be called with a slot. Raises RestoreError."""
        # A whole batch would be too much at once where there is a limit.
        seconds = 0.0 if self._pace.is_limited else _BATCH_SECONDS
        await self._pace.keep()
        try:
            await trio.to_thread.run_sync(batch.run, seconds, abandon_on_cancel=True, limiter=threads)
        finally:
            batch.end()
        for size in batch.sizes:
            self._count(size)

    def _count(self, size: int) -> None:
        self._pace.fetched(size)
        self._account.bytes_downloaded += size
        self._observer.downloaded(size)


class ChunkFetcher:
    """Brings chunks to where they belong, each once, although snapshots worked on at the same time share many."""

    def __init__(self, fetcher: Fetcher, chunks: Chunks, account: Account, *, may_fetch: bool) -> None:
        """Without `may_fetch` what is not there is missing."""
        self._fetcher = fetcher
        self._chunks = chunks
        self._account = account
        self._may_fetch = may_fetch
        self._in_flight: dict[bytes, trio.Event] = {}
        self._threads = trio.CapacityLimiter(fetcher.parallelism)

    async def bring(
        self,
        digests: Iterable[bytes],
        rank: int,
        damages: Damages | None,
        referenced: Referenced,
        *,
        are_encrypted: bool,
    ) -> None:
        """Have all of these there. What is damaged or missing goes to `damages`, or is raised where that is None.

        Raises DatastoreError, StoreError.
        """

        async def bring(digest: bytes) -> None:
            try:
                await self._bring(digest, rank, is_encrypted=are_encrypted)
            except (DatastoreError, ObjectMissing, StoreRejected) as error:
                if damages is None:
                    raise
                damages.note(chunk_path(digest), str(error))

        for part in parts(digests):
            different = dict.fromkeys(part)
            look = partial(self._chunks.to_look_at, different, are_encrypted=are_encrypted)
            missing = await trio.to_thread.run_sync(look)
            await self._bring_all(missing, rank, bring, are_encrypted=are_encrypted)
            referenced(len(part))

    async def bring_again(self, digests: Iterable[bytes], rank: int, *, are_encrypted: bool) -> None:
        """Have these there, although they were found to be. Raises DatastoreError, StoreError."""
        bring = partial(self._bring, rank=rank, is_encrypted=are_encrypted, anew=True)
        await for_each(dict.fromkeys(digests), bring, self._fetcher.parallelism)

    async def _bring_all(
        self, digests: Iterable[bytes], rank: int, bring: Callable[[bytes], Awaitable[None]], *, are_encrypted: bool
    ) -> None:
        """Have these there: in one go where that works, else by `bring`, one after the other."""
        if not self._may_fetch:
            return await for_each(digests, bring, self._fetcher.parallelism)
        remaining = deque(digests)

        async def work(_number: int) -> None:
            while remaining:
                for digest in await self._bring_at_once(remaining, rank, are_encrypted=are_encrypted):
                    await bring(digest)

        await for_each(range(min(self._fetcher.parallelism, len(remaining))), work, self._fetcher.parallelism)

    async def _bring_at_once(self, remaining: deque[bytes], rank: int, *, are_encrypted: bool) -> list[bytes]:
        """Bring some of what remains; returns what is left of those."""
        async with self._fetcher.slots.taken(rank):
            batch = ChunkBatch(remaining, self._in_flight, self._chunks, self._get_at_once, are_encrypted=are_encrypted)
            await self._fetcher.bring_at_once(batch, self._threads)
        self._account.chunks_kept += batch.kept
        self._account.chunks_downloaded += len(batch.sizes)
        return batch.left

    def _get_at_once(self, digest: bytes) -> Content:
        return self._fetcher.source.get_at_once(self._fetcher.layout.chunk_key(digest), CHUNK_LIMIT)

    async def _bring(self, digest: bytes, rank: int, *, is_encrypted: bool, anew: bool = False) -> None:
        def look() -> bool | None:
            """Whether it is there; None when somebody else has brought it meanwhile."""
            if not anew and not self._chunks.to_look_at([digest], are_encrypted=is_encrypted):
                return None
            return self._chunks.has_chunk(digest, is_encrypted=is_encrypted)

        while digest in self._in_flight:
            await self._in_flight[digest].wait()
        self._in_flight[digest] = finished = trio.Event()
        try:
            async with self._fetcher.slots.taken(rank):
                is_there = await trio.to_thread.run_sync(look)
                if is_there:
                    self._account.chunks_kept += 1
                elif is_there is False and self._may_fetch:
                    await self._fetch(digest, is_encrypted=is_encrypted)
                    self._account.chunks_downloaded += 1
                elif is_there is False:
                    raise DatastoreError(f"chunk {digest.hex()} is missing or damaged in the datastore")
        finally:
            del self._in_flight[digest]
            finished.set()

    async def _fetch(self, digest: bytes, *, is_encrypted: bool) -> None:
        await self._fetcher.fetch(
            self._fetcher.layout.chunk_key(digest),
            CHUNK_LIMIT,
            lambda data: check_chunk_for(data, digest, uses=(is_encrypted,)),
            lambda data: self._chunks.write_chunk(digest, bytes(data), is_encrypted=is_encrypted),
        )


def parts(digests: Iterable[bytes]) -> Iterator[list[bytes]]:
    """The digests of an index, so many at a time as may be in memory."""
    remaining = iter(digests)
    while part := list(islice(remaining, _DIGESTS_AT_ONCE)):
        yield part
