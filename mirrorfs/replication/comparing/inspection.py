"""Comparing what the state says of the bucket with the bucket itself, by listing it: `mirrorfs reconcile --deep`.

The inspection corrects the state, and nothing else. What follows from that is found by reconciling datastore and state,
which has to come after it. It may run while the mirror works: to doubt an object that is good costs a request later,
and each correction is made only if the state still says what was compared.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar

import trio

from mirrorfs.concurrency import for_each
from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import SnapshotFileName, SnapshotId, classify
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.answers import StoredObject
from mirrorfs.objectstore.checksums import calculate_crc32c, calculate_md5
from mirrorfs.replication.comparing.adoption import Adoption
from mirrorfs.replication.comparing.differences import Difference, Remedy, Report
from mirrorfs.replication.publishing.closures import Closures
from mirrorfs.replication.publishing.publication import SnapshotPublication
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.chunks import ChunkState
from mirrorfs.state.contents import ContentState
from mirrorfs.state.snapshots import SnapshotPhase
from mirrorfs.state.state import StateTransaction

log = logging.getLogger(__name__)

_OBJECTS_AT_ONCE = 10_000
# Chunks that only the bucket knows are noted when all that needs them is known, and so have to be kept in memory.
_MOST_UNKNOWN = 100_000
_MOST_LOST = 100_000
_MISSING = "the bucket does not have it, though it was confirmed"

Known = TypeVar("Known", bound=ChunkState | ContentState)


@dataclass(frozen=True, slots=True)
class _Pair(Generic[Known]):
    """A digest or path with what the state says of its object, and what the bucket lists; one of them may be None."""

    name: bytes
    known: Known | None
    stored: StoredObject | None


class _Listing(Generic[Known]):
    """Joins a listing of the bucket with the state, in bounded memory.

    The listing is taken to be sorted, as S3 has it. Where it is not, nothing but speed is lost: whoever gets a pair
    without an object asks for that object.
    """

    def __init__(
        self, known_after: Callable[[bytes, int], list[tuple[bytes, Known]]], known_of: Callable[[bytes], Known | None]
    ) -> None:
        self._known_after = known_after
        self._known_of = known_of
        self._after = b""
        self._until = b""
        self._listed: dict[bytes, StoredObject] = {}

    def add(self, name: bytes, stored: StoredObject) -> bool:
        """Take in an object; tells whether it is time for `pairs`."""
        self._listed[name] = stored
        self._until = max(self._until, name)
        return len(self._listed) >= _OBJECTS_AT_ONCE

    def pairs(self, *, at_end: bool) -> tuple[list[_Pair[Known]], bool]:
        """Return pairs up to what was listed last, `at_end` up to the end of the state, and whether there are more."""
        found: list[_Pair[Known]] = []
        known_ones = self._known_after(self._after, _OBJECTS_AT_ONCE)
        for name, known in known_ones:
            if name > self._until and not at_end:
                break
            self._after = name
            found.append(_Pair(name, known, self._listed.pop(name, None)))
        else:
            if len(known_ones) == _OBJECTS_AT_ONCE:
                return found, True
        found += [_Pair(name, self._known_of(name), stored) for name, stored in self._listed.items()]
        self._listed = {}
        self._after = max(self._after, self._until)
        return found, False


@dataclass(slots=True)
class _Inspection:
    """One inspection under way. `lost` is filled where nothing is corrected: the state then cannot tell."""

    report: Report
    corrects: bool
    doubted_chunks: bool = False
    lost: set[bytes] = field(default_factory=set)
    unknown_chunks: list[bytes] = field(default_factory=list)
    left_out_chunks: bool = False
    unknown_snapshots: list[SnapshotId] = field(default_factory=list)


class BucketInspection:
    """Makes the state true again when the bucket was changed behind its back, or when the state itself is in doubt."""

    def __init__(
        self,
        tree: Tree,
        bucket: Bucket,
        state: CommittedState,
        publication: SnapshotPublication,
        adoption: Adoption,
        *,
        parallel: int,
    ) -> None:
        """`parallel` is how many objects are asked for, or read in the datastore, at once."""
        self._tree = tree
        self._bucket = bucket
        self._closures = Closures(tree, bucket)
        self._state = state
        self._publication = publication
        self._parallel = parallel
        self._adoption = adoption
        self._lock = trio.Lock()

    async def inspect(self, report: Report, *, corrects: bool = True) -> None:
        """List the whole prefix, and correct the state where the bucket is otherwise; or, not `corrects`, only tell.

        What is noted as begun before the first correction is noted as ended after the last, so that a crash in between
        has it done again.

        Raises:
            StoreError: the store refuses to be listed or read.
        """
        async with self._lock:
            # If that was interrupted, it is not known which chunks were doubted before.
            was_interrupted = self._state.view(lambda transaction: transaction.progress.inspecting())
            inspection = _Inspection(report, corrects, doubted_chunks=was_interrupted)
            if corrects:
                await self._state.apply(lambda transaction: transaction.progress.set_inspecting(True))
            await self._compare_all(inspection)
            if corrects:
                await self._take_in(inspection)
            if inspection.doubted_chunks:
                await self._doubt_snapshots(inspection)
            if corrects:
                await self._state.apply(lambda transaction: transaction.progress.set_inspecting(False))

    async def _compare_all(self, inspection: _Inspection) -> None:
        chunks = _Listing(self._chunks_after, self._chunk)
        contents = _Listing(self._contents_after, self._content)
        layout = self._bucket.layout
        async with aclosing(self._bucket.store.list(f"{layout.prefix}/")) as objects:
            async for stored in objects:
                digest, path = layout.chunk_digest(stored.key), layout.content_path(stored.key)
                if digest is not None:
                    if chunks.add(digest, stored):
                        await self._compare_chunks(inspection, chunks)
                elif path is not None:
                    if contents.add(path.encode(), stored):
                        await self._compare_contents(inspection, contents)
                elif not self._is_own(stored.key):
                    await inspection.report(Difference(stored.key, "it is none of this mirror's", Remedy.LEAVE))
        await self._compare_chunks(inspection, chunks, at_end=True)
        await self._compare_contents(inspection, contents, at_end=True)

    def _is_own(self, key: str) -> bool:
        return key == self._bucket.layout.in_use_key or key.startswith(self._bucket.layout.own_key(""))

    # --- chunks

    def _chunks_after(self, digest: bytes, maximum: int) -> list[tuple[bytes, ChunkState]]:
        return self._state.view(lambda transaction: transaction.chunks.after(digest, maximum))

    def _chunk(self, digest: bytes) -> ChunkState | None:
        return self._state.view(lambda transaction: transaction.chunks.get(digest))

    async def _compare_chunks(
        self, inspection: _Inspection, listing: _Listing[ChunkState], *, at_end: bool = False
    ) -> None:
        more = True
        while more:
            pairs, more = await trio.to_thread.run_sync(lambda: listing.pairs(at_end=at_end))
            differing = [pair for pair in pairs if _chunk_differs(pair)]
            await for_each(differing, lambda pair: self._look_at_chunk(inspection, pair), self._parallel)

    async def _look_at_chunk(self, inspection: _Inspection, pair: _Pair[ChunkState]) -> None:
        digest, known = pair.name, pair.known
        key = self._bucket.layout.chunk_key(digest)
        if known is None:
            await self._meet_unknown_chunk(inspection, digest, key)
            return
        # The listing may be older than what the state says.
        found = _fault(known, await self._bucket.store.head(key))
        if found is None:
            return
        if self._chunk(digest) != known:
            # Somebody has handled it meanwhile.
            return
        is_here = await trio.to_thread.run_sync(self._closures.has_chunk, digest)
        if inspection.corrects:
            if not await self._state.apply(lambda transaction: transaction.chunks.doubt_if_still(digest, known)):
                return
        elif not is_here and len(inspection.lost) < _MOST_LOST:
            inspection.lost.add(digest)
        inspection.doubted_chunks = True
        if is_here:
            await inspection.report(Difference(key, found, Remedy.SEND))
        elif known.references:
            await inspection.report(Difference(key, f"{found}, and the datastore has it no more", Remedy.NONE))
        else:
            await inspection.report(Difference(key, f"{found}, and nobody needs it", Remedy.DELETE))

    async def _meet_unknown_chunk(self, inspection: _Inspection, digest: bytes, key: str) -> None:
        if self._chunk(digest) is not None:
            return
        if len(inspection.unknown_chunks) < _MOST_UNKNOWN:
            inspection.unknown_chunks.append(digest)
        else:
            inspection.left_out_chunks = True
        is_here = await trio.to_thread.run_sync(self._closures.has_chunk, digest)
        remedy = Remedy.COMPARE if is_here else Remedy.DELETE
        beside = "" if is_here else ", the datastore does not have it, and no known snapshot needs it"
        await inspection.report(Difference(key, f"the state does not know it{beside}", remedy))

    # --- objects below .cnt

    def _contents_after(self, path: bytes, maximum: int) -> list[tuple[bytes, ContentState]]:
        known = self._state.view(lambda transaction: transaction.contents.after(path.decode(), maximum))
        return [(content.path.encode(), content) for content in known]

    def _content(self, path: bytes) -> ContentState | None:
        return self._state.view(lambda transaction: transaction.contents.get(path.decode()))

    async def _compare_contents(
        self, inspection: _Inspection, listing: _Listing[ContentState], *, at_end: bool = False
    ) -> None:
        more = True
        while more:
            pairs, more = await trio.to_thread.run_sync(lambda: listing.pairs(at_end=at_end))
            await self._note_unknown_contents(inspection, [pair for pair in pairs if pair.known is None])
            known = [pair for pair in pairs if pair.known is not None and pair.known.confirmed]
            await for_each(known, lambda pair: self._look_at_content(inspection, pair), self._parallel)

    async def _note_unknown_contents(self, inspection: _Inspection, pairs: list[_Pair[ContentState]]) -> None:
        unknown = [pair.name.decode() for pair in pairs if self._content(pair.name) is None]
        if not unknown:
            return
        if inspection.corrects:
            await self._state.apply(
                lambda transaction: transaction.contents.intend(
                    path for path in unknown if transaction.contents.get(path) is None
                )
            )
        for path in unknown:
            name = classify(path.encode())
            if isinstance(name, SnapshotFileName) and name.is_manifest:
                inspection.unknown_snapshots.append(name.snapshot)
            is_here = await trio.to_thread.run_sync(self._closures.has_content, path)
            remedy = Remedy.COMPARE if is_here else Remedy.DELETE
            beside = "" if is_here else ", and the datastore does not have it"
            key = self._bucket.layout.content_key(path)
            await inspection.report(Difference(key, f"the state does not know it{beside}", remedy))

    async def _look_at_content(self, inspection: _Inspection, pair: _Pair[ContentState]) -> None:
        known = pair.known
        assert known is not None
        found = await self._fault_of_content(known, pair.stored)
        if found is None or self._content(pair.name) != known:
            return
        if inspection.corrects and not await self._state.apply(
            lambda transaction: transaction.contents.doubt_if_still(known)
        ):
            return
        is_here = await trio.to_thread.run_sync(self._closures.has_content, known.path)
        remedy = Remedy.SEND if is_here else Remedy.NONE
        beside = "" if is_here else ", and the datastore has it no more"
        await inspection.report(Difference(self._bucket.layout.content_key(known.path), f"{found}{beside}", remedy))

    async def _fault_of_content(self, known: ContentState, stored: StoredObject | None) -> str | None:
        """Say what is wrong with an object; the content is compared by what the store was seen to calculate."""
        key, capabilities = self._bucket.layout.content_key(known.path), self._bucket.store.capabilities
        has_checksum = capabilities.rejects_wrong_crc32c and capabilities.head_returns_crc32c
        if stored is None or stored.size != known.size or (known.size and has_checksum):
            head = await self._bucket.store.head(key)
            found = _fault(known, head)
            if found is None and has_checksum and head is not None and head.crc32c not in (None, known.crc32c):
                found = "the bucket has another content"
            return found
        if known.size and capabilities.etag_is_md5:
            etag = await trio.to_thread.run_sync(self._expected_etag, known)
            if etag is not None and stored.etag != etag:
                # Perhaps it was put again since it was listed.
                head = await self._bucket.store.head(key)
                return None if head is not None and head.etag == etag else "the bucket has another content"
        return None

    def _expected_etag(self, known: ContentState) -> str | None:
        """Return the MD5 of the file if it is the one that was confirmed; its CRC32C tells that."""
        try:
            data = self._tree.read_content(known.path)
        except (OSError, DatastoreError):
            return None
        if (len(data), calculate_crc32c(data)) != (known.size, known.crc32c):
            return None
        return calculate_md5(data).hex()

    # --- what the state did not know

    async def _take_in(self, inspection: _Inspection) -> None:
        """Count what the snapshots that were found need, and only then note the chunks that were found."""
        all_are_counted = True
        for snapshot in inspection.unknown_snapshots:
            if self._publication.is_being_settled(snapshot):
                # It is just being replaced; what it needs is not known.
                all_are_counted = False
                continue
            async with self._publication.alone(snapshot):
                await self._adoption.adopt_snapshot(snapshot)
        if not all_are_counted:
            log.warning("objects that were found in the bucket are left there until the next comparison")
            return
        while inspection.unknown_chunks:
            digests = inspection.unknown_chunks[:_OBJECTS_AT_ONCE]
            del inspection.unknown_chunks[:_OBJECTS_AT_ONCE]
            await self._note_chunks(digests)
        if inspection.left_out_chunks:
            await self._note_all_chunks()

    async def _note_chunks(self, digests: list[bytes]) -> None:
        await self._state.apply(lambda transaction: transaction.chunks.intend(digests))

    async def _note_all_chunks(self) -> None:
        digests: list[bytes] = []
        async with aclosing(self._bucket.store.list(self._bucket.layout.chunks_prefix)) as objects:
            async for stored in objects:
                digest = self._bucket.layout.chunk_digest(stored.key)
                if digest is not None and self._chunk(digest) is None:
                    digests.append(digest)
                if len(digests) == _OBJECTS_AT_ONCE:
                    await self._note_chunks(digests)
                    digests = []
        await self._note_chunks(digests)

    # --- snapshots that lack something

    async def _doubt_snapshots(self, inspection: _Inspection) -> None:
        """Have each published snapshot that needs a doubted chunk compared as if it had just been adopted."""
        published = await trio.to_thread.run_sync(lambda: self._state.view(_published))
        for path in published:
            snapshot = SnapshotId.parse(path)
            if not inspection.corrects:
                await self._tell_of_snapshot(inspection, snapshot)
                continue
            async with self._publication.alone(snapshot):
                await self._doubt_snapshot(inspection, snapshot)

    async def _tell_of_snapshot(self, inspection: _Inspection, snapshot: SnapshotId) -> None:
        known = self._state.view(lambda transaction: transaction.snapshots.get(snapshot.path))
        if known is None:
            return
        digests = await self._closures.digests(snapshot.path, known.files)
        if digests is not None and digests.among(inspection.lost):
            await inspection.report(_incomplete(self._bucket.layout, snapshot))

    async def _doubt_snapshot(self, inspection: _Inspection, snapshot: SnapshotId) -> None:
        known = self._state.view(lambda transaction: transaction.snapshots.get(snapshot.path))
        if known is None or known.phase not in (SnapshotPhase.COMMITTED, SnapshotPhase.PUBLISHED):
            return
        digests = await self._closures.digests(snapshot.path, known.files)
        unconfirmed = await trio.to_thread.run_sync(self._unconfirmed, digests) if digests is not None else None
        if unconfirmed is not None and not unconfirmed:
            return
        doubted = replace(known, phase=SnapshotPhase.ADOPTED, since=time.time())
        await self._state.apply(lambda transaction: transaction.snapshots.set(snapshot.path, doubted))
        if unconfirmed is None or not await trio.to_thread.run_sync(self._has_all, unconfirmed):
            await inspection.report(_incomplete(self._bucket.layout, snapshot))

    def _unconfirmed(self, digests: Digests) -> Digests:
        return self._state.view(
            lambda transaction: digests.where(lambda digest: not transaction.chunks.is_confirmed(digest))
        )

    def _has_all(self, digests: Digests) -> bool:
        return all(self._closures.has_chunk(digest) for digest in digests)


def _chunk_differs(pair: _Pair[ChunkState]) -> bool:
    if pair.known is None:
        return True
    # What is not confirmed is compared by whoever handles it.
    return pair.known.confirmed and (pair.stored is None or pair.stored.size != pair.known.size)


def _fault(known: ChunkState | ContentState, stored: StoredObject | None) -> str | None:
    if stored is None:
        return _MISSING
    if stored.size != known.size:
        return f"the bucket has {stored.size} bytes of it, not {known.size}"
    return None


def _published(transaction: StateTransaction) -> list[str]:
    return [path for path, snapshot in transaction.snapshots.all() if snapshot.phase.counts_references]


def _incomplete(layout: BucketLayout, snapshot: SnapshotId) -> Difference:
    return Difference(
        f"{layout.content_key(snapshot.path)}/",
        "its copy in the bucket is incomplete, and the datastore has not all that is missing",
        Remedy.NONE,
    )


async def no_report(_: Difference) -> None:
    """Tell nobody."""
    await trio.lowlevel.checkpoint()
