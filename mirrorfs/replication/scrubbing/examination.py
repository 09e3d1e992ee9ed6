"""One object of the bucket: read whole and checked, and sent again from the datastore where it is not sound."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import trio

from mirrorfs.checking.chunks import read_chunk
from mirrorfs.checking.reading import Limit, StoreReader, read_checked
from mirrorfs.datastore.blob import check_encryption
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import BlobError, DatastoreError
from mirrorfs.datastore.names import ChunkName, classify
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.replication.publishing.chunks import ChunkMirror
from mirrorfs.replication.publishing.closures import Closures
from mirrorfs.replication.publishing.replica import Replica
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import ChunkItem, Item, item_of_content
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.stored import UNUSABLE
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.chunks import ChunkState
from mirrorfs.state.contents import ContentState

log = logging.getLogger(__name__)

_GONE = "it is missing in the bucket"
NOT_SENT = "it could not be sent; see 'mirrorfs status'"
_DOUBTED = "it is not known to be sound in the bucket"


@dataclass(frozen=True, slots=True)
class Fault:
    """An object that is damaged or gone: its datastore path, what was known of it, and what is wrong with it."""

    path: str
    known: ChunkState | ContentState
    reason: str


def digest_of(path: str) -> bytes | None:
    """Return the digest of the chunk at a datastore path, None for what is no chunk."""
    name = classify(path.encode())
    return name.digest if isinstance(name, ChunkName) else None


class Examination:
    """Reads objects of the bucket, and has what is not sound there sent again by whoever sends such items."""

    def __init__(
        self,
        bucket: Bucket,
        state: CommittedState,
        worklist: Worklist,
        chunks: ChunkMirror,
        replica: Replica,
        closures: Closures,
        ownership: Ownership,
    ) -> None:
        self._bucket = bucket
        self._state = state
        self._worklist = worklist
        self._chunks = chunks
        self._replica = replica
        self._closures = closures
        self._ownership = ownership
        self._reader = StoreReader(bucket.store)

    async def examine(self, path: str) -> Fault | None:
        """Read the object of a datastore path; returns what is wrong with it, None if nothing is, or nobody needs it.

        Raises:
            StoreRejected: the store refuses to give it, which says nothing of what it holds.
        """
        digest = digest_of(path)
        return await self._examine_content(path) if digest is None else await self._examine_chunk(path, digest)

    async def _examine_chunk(self, path: str, digest: bytes) -> Fault | None:
        known = self._chunk(digest)
        if known is None or not (known.confirmed or known.references):
            return None
        try:
            data = await read_chunk(self._reader, self._bucket.layout.chunk_key(digest), digest)
            if known.confirmed:
                await trio.to_thread.run_sync(_compare_chunk, data, digest, known)
        except UNUSABLE as error:
            now = self._chunk(digest)
            # What was handled meanwhile was perhaps read before, or is just being removed.
            is_same = now is not None and (now.size, now.crc32c) == (known.size, known.crc32c)
            return Fault(path, known, _reason(error)) if is_same else None
        if not known.confirmed:
            await self._chunks.confirm_if_sound(digest)
        return None

    async def _examine_content(self, path: str) -> Fault | None:
        known = self._content(path)
        if known is None or not known.confirmed:
            return None
        try:
            key = self._bucket.layout.content_key(path)
            await read_checked(self._reader, key, Limit(known.size), lambda data: _compare(data, known))
        except UNUSABLE as error:
            return Fault(path, known, _reason(error)) if self._content(path) == known else None
        return None

    async def mend(self, faults: Sequence[Fault]) -> list[Fault]:
        """Have objects sent again as far as the datastore has them good; returns those that stay as they are.

        What becomes of the others is waited for.

        Raises:
            StoreError: the store refuses to be read.
        """
        # Damage may be the first sign that the bucket is not this mirror's any more.
        await self._ownership.confirm()
        items = {fault: await self._distrust(fault) for fault in faults}
        listed = [item for item in items.values() if item is not None]
        for item in listed:
            self._worklist.add(item, self._worklist.inherited())
        while any(map(self._worklist.is_listed, listed)):
            await self._worklist.changed()
        left = []
        for fault in faults:
            is_left = items[fault] is None and isinstance(fault.known, ContentState)
            if is_left or self.is_in_doubt(fault.path):
                left.append(fault)
            elif items[fault] is not None:
                log.warning("%s has been sent again: %s", fault.path, fault.reason)
        return left

    async def _distrust(self, fault: Fault) -> Item | None:
        """Note that an object is not what was confirmed; returns the item to be handled, None if that would not help.

        What a snapshot needs that the datastore has no more is left as it is: to handle it would be to remove it.
        """
        digest = digest_of(fault.path)
        if digest is not None:
            assert isinstance(fault.known, ChunkState)
            await self._chunks.distrust(digest, fault.known)
            is_here = await trio.to_thread.run_sync(self._closures.has_chunk, digest)
            return ChunkItem(digest) if is_here else None
        assert isinstance(fault.known, ContentState)
        if not await trio.to_thread.run_sync(self._closures.has_content, fault.path):
            return None
        await self._replica.distrust(fault.known)
        return item_of_content(fault.path)

    async def obstacle(self, path: str) -> str | None:
        """Say why the datastore cannot give what the object of a path is to hold; None if it can."""
        digest = digest_of(path)
        if digest is not None:
            return await trio.to_thread.run_sync(self._chunks.local_fault, digest)
        is_here = await trio.to_thread.run_sync(self._closures.has_content, path)
        if not is_here:
            return "it is missing in the datastore"
        return NOT_SENT if self.is_in_doubt(path) else None

    def doubt(self, path: str) -> Fault | None:
        """Return as a fault that an object is in doubt: for `examine` it is none, as nothing tells what it is to be."""
        digest = digest_of(path)
        known = self._content(path) if digest is None else self._chunk(digest)
        return Fault(path, known, _DOUBTED) if known is not None and self.is_in_doubt(path) else None

    def is_in_doubt(self, path: str) -> bool:
        """Tell whether the object of a datastore path is needed, and not confirmed."""
        digest = digest_of(path)
        if digest is not None:
            chunk = self._chunk(digest)
            return chunk is not None and not chunk.confirmed and chunk.references > 0
        content = self._content(path)
        return content is not None and not content.confirmed

    def _chunk(self, digest: bytes) -> ChunkState | None:
        return self._state.view(lambda transaction: transaction.chunks.get(digest))

    def _content(self, path: str) -> ContentState | None:
        return self._state.view(lambda transaction: transaction.contents.get(path))


def _compare_chunk(data: Content, digest: bytes, known: ChunkState) -> None:
    """Raise DatastoreError for another encrypted chunk than was confirmed: nothing else tells it from the right one.

    Of one that is not encrypted its content tells, in whatever compression somebody has put it.
    """
    if (len(data), calculate_crc32c(data)) == (known.size, known.crc32c):
        return
    try:
        check_encryption(data, digest, is_encrypted=False)
    except BlobError:
        raise DatastoreError("it is another encrypted chunk than was confirmed") from None


def _compare(data: Content, known: ContentState) -> None:
    if (len(data), calculate_crc32c(data)) != (known.size, known.crc32c):
        raise DatastoreError("it has another content than was confirmed")


def _reason(error: Exception) -> str:
    return _GONE if isinstance(error, ObjectMissing) else f"it is damaged in the bucket: {error}"
