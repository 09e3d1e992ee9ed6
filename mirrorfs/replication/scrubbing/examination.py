"""One object of the bucket: read whole and checked, and sent again from the datastore where it is not sound."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import TypeVar

import trio

from mirrorfs.checking.chunks import read_chunk
from mirrorfs.checking.reading import Limit, StoreReader, read_checked
from mirrorfs.datastore.blob import check_encryption
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import BlobError, DatastoreError, TooMuch
from mirrorfs.datastore.names import ChunkName, classify
from mirrorfs.events import EventName, about
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.objectstore.errors import ObjectMissing, StoreError
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

Result = TypeVar("Result")

UNREADABLE = (StoreError, TooMuch)
"""What is raised where an object could not be looked at, which says nothing of what the bucket holds."""

_GONE = "it is missing in the bucket"
_NOT_SENT = "it could not be sent; see 'mirrorfs status'"
_DOUBTED = "it is not known to be sound in the bucket"
# A store may need so many seconds until all of it knows what one part of it has acknowledged.
_LAG = 1.0


@dataclass(frozen=True, slots=True)
class Fault:
    """An object that is damaged or gone: its datastore path, what was known of it, and what is wrong with it."""

    path: str
    known: ChunkState | ContentState
    reason: str


class Outcome(Enum):
    """What has become of an object that was looked at."""

    GOOD = auto()
    """It is sound, or nobody needs it."""
    SENT = auto()
    """It was not sound, and has been sent again."""
    LOST = auto()
    """It is not sound, and could not be sent."""
    IN_DOUBT = auto()
    """It is not confirmed: somebody else has to do with it, and that tells."""


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
            TooMuch: there is no memory or disk space here to hold it, which says nothing of it either.
        """
        digest = digest_of(path)
        try:
            return await self._examine_content(path) if digest is None else await self._examine_chunk(path, digest)
        except TooMuch as error:
            raise TooMuch(f"{path} in the bucket cannot be checked for now: {error}") from error

    async def _examine_chunk(self, path: str, digest: bytes) -> Fault | None:
        known = self._chunk(digest)
        if known is None or not self.is_needed(path):
            return None
        try:
            key = self._bucket.layout.chunk_key(digest)
            data = await past_lag(lambda: read_chunk(self._reader, key, digest))
            if known.confirmed:
                await trio.to_thread.run_sync(_compare_chunk, data, digest, known)
        except TooMuch:
            raise
        except UNUSABLE as error:
            now = self._chunk(digest)
            # What was handled meanwhile was perhaps read before, or is just being removed.
            is_same = now is not None and (now.size, now.crc32c) == (known.size, known.crc32c)
            return Fault(path, known, reason_of(error)) if is_same else None
        if not known.confirmed:
            await self._chunks.confirm_if_sound(digest)
        return None

    async def _examine_content(self, path: str) -> Fault | None:
        known = self._content(path)
        if known is None or not known.confirmed:
            return None
        try:
            key, limit = self._bucket.layout.content_key(path), Limit(known.size)
            await past_lag(lambda: read_checked(self._reader, key, limit, lambda data: _compare(data, known)))
        except TooMuch:
            raise
        except UNUSABLE as error:
            return Fault(path, known, reason_of(error)) if self._content(path) == known else None
        return None

    async def is_gone(self, path: str) -> bool:
        """Ask the store whether the object of a datastore path is missing, without reading it. Raises StoreError."""
        digest, layout = digest_of(path), self._bucket.layout
        key = layout.content_key(path) if digest is None else layout.chunk_key(digest)
        return await self._bucket.store.head(key) is None

    async def mend(self, faults: Sequence[Fault]) -> dict[Fault, Outcome]:
        """Have objects sent again as far as the datastore has them good; returns what has become of each.

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
        outcomes = {fault: self._outcome(fault, item) for fault, item in items.items()}
        for fault, outcome in outcomes.items():
            if outcome is Outcome.SENT:
                found = about(EventName.SCRUB_FOUND, object=fault.path)
                log.warning("%s has been sent again: %s", fault.path, fault.reason, extra=found)
        return outcomes

    def _outcome(self, fault: Fault, item: Item | None) -> Outcome:
        is_left = item is None and isinstance(fault.known, ContentState)
        if is_left or self.is_in_doubt(fault.path):
            return Outcome.LOST
        return Outcome.SENT if self._is_confirmed(fault.path) else Outcome.GOOD

    async def _distrust(self, fault: Fault) -> Item | None:
        """Note that an object is not what was confirmed; returns the item to be handled, None if that would not help.

        A content that the datastore has no more, or not as it was confirmed, is left as it is: to handle it would be to
        remove it, or never to confirm again what may have been good all the time.
        """
        digest = digest_of(fault.path)
        if digest is not None:
            assert isinstance(fault.known, ChunkState)
            await self._chunks.distrust(digest, fault.known)
            is_here = await trio.to_thread.run_sync(self._closures.has_chunk, digest)
            return ChunkItem(digest) if is_here else None
        assert isinstance(fault.known, ContentState)
        if await trio.to_thread.run_sync(self._content_obstacle, fault.known) is not None:
            return None
        await self._replica.distrust(fault.known)
        return item_of_content(fault.path)

    async def obstacle(self, path: str) -> str | None:
        """Say why the datastore cannot give what the object of a path is to hold; None if it can."""
        digest = digest_of(path)
        if digest is not None:
            return await trio.to_thread.run_sync(self._chunks.local_fault, digest)
        known = self._content(path) or ContentState(path, 0, 0, confirmed=False)
        return await trio.to_thread.run_sync(self._content_obstacle, known)

    async def loss(self, fault: Fault) -> str:
        """Say what is wrong with an object, and why it was not sent again."""
        return f"{fault.reason}; {await self.obstacle(fault.path) or _NOT_SENT}"

    def _content_obstacle(self, known: ContentState) -> str | None:
        if not self._closures.has_content(known.path):
            return "it is missing in the datastore"
        return self._closures.content_fault(known) if known.confirmed else None

    async def is_lost(self, path: str) -> bool:
        """Tell whether an object that was found to be lost still is, as far as that can be told without the store."""
        if self.is_in_doubt(path):
            return True
        if digest_of(path) is not None or self._content(path) is None:
            return False
        return await self.obstacle(path) is not None

    def doubt(self, path: str) -> Fault | None:
        """Return as a fault that an object is in doubt: for `examine` it is none, as nothing tells what it is to be."""
        digest = digest_of(path)
        known = self._content(path) if digest is None else self._chunk(digest)
        return Fault(path, known, _DOUBTED) if known is not None and self.is_in_doubt(path) else None

    def is_needed(self, path: str) -> bool:
        """Tell whether the state knows of somebody who needs the object of a datastore path."""
        digest = digest_of(path)
        if digest is None:
            return self._content(path) is not None
        chunk = self._chunk(digest)
        return chunk is not None and (chunk.confirmed or chunk.references > 0)

    def is_in_doubt(self, path: str) -> bool:
        """Tell whether the object of a datastore path is needed, and not confirmed."""
        digest = digest_of(path)
        if digest is not None:
            chunk = self._chunk(digest)
            return chunk is not None and not chunk.confirmed and chunk.references > 0
        content = self._content(path)
        return content is not None and not content.confirmed

    def _is_confirmed(self, path: str) -> bool:
        digest = digest_of(path)
        known = self._content(path) if digest is None else self._chunk(digest)
        return known is not None and known.confirmed

    def _chunk(self, digest: bytes) -> ChunkState | None:
        return self._state.view(lambda transaction: transaction.chunks.get(digest))

    def _content(self, path: str) -> ContentState | None:
        return self._state.view(lambda transaction: transaction.contents.get(path))


async def past_lag(read: Callable[[], Awaitable[Result]]) -> Result:
    """Read an object, and one that is missing once more after a while: one answer of a store that lags is no proof."""
    try:
        return await read()
    except ObjectMissing:
        await trio.sleep(_LAG)
    return await read()


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


def reason_of(error: Exception) -> str:
    """Say of one of UNUSABLE what is wrong with the object that was read."""
    return _GONE if isinstance(error, ObjectMissing) else f"it is damaged in the bucket: {error}"
