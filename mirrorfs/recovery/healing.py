"""Putting back, from the bucket, the chunks that a datastore has lost, while a PBS works in it.

Which chunks there have to be is told by the indexes of the datastore's own snapshots. Each chunk is read and checked;
what is missing, empty, damaged or in quarantine is fetched, checked and inserted as PBS does. Only chunks are put back:
a snapshot's own files are looked at, and what is damaged of them is told.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, aclosing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from mirrorfs import own_files
from mirrorfs.checking.chunks import read_chunk
from mirrorfs.concurrency import for_each
from mirrorfs.datastore.blob import check_chunk, check_encryption
from mirrorfs.datastore.errors import BlobError, DatastoreError
from mirrorfs.datastore.index import Index
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.manifest import Manifest, ManifestFile, check_listed_file, parse_manifest
from mirrorfs.datastore.names import MANIFEST_NAME, GroupId, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.errors import ObjectMissing, ObjectTooLarge, StoreRejected
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.catalog import BucketContents, try_reading
from mirrorfs.recovery.chunk_insertion import ChunkInsertion, open_datastore_root
from mirrorfs.recovery.digest_set import DigestSet
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.fetching import parts
from mirrorfs.recovery.heal_report import DamagedFile, HealAccount, HealObserver, HealReport
from mirrorfs.recovery.selection import Selection, plan_restore
from mirrorfs.recovery.source import PresentSource, Source

# Of a place on the disk alone; everything else that the file system refuses concerns all chunks.
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.ENOTEMPTY)


@dataclass(frozen=True, slots=True)
class _Look:
    """A chunk as it stands in the datastore: why it has to be put back, None if it is good; `is_kept` is one that is
    good, but of the other kind than its backup. `size` in bytes were read.
    """

    reason: str | None
    size: int = 0
    is_kept: bool = False


async def heal_datastore(
    store: ObjectStore,
    address: StoreAddress,
    path: Path,
    *,
    selection: Selection = Selection(),  # noqa: B008 - immutable
    dry_run: bool = False,
    parallelism: int = 8,
    observer: HealObserver | None = None,
    listing_store: ObjectStore | None = None,
) -> HealReport:
    """Put back what the snapshots of the datastore at `path`, or the selected ones, lack of their chunks.

    The chunks come from the mirror at `address`. With `dry_run` nothing is changed; what would be fetched is fetched
    and checked all the same. At most `parallelism` chunks are under way, and held in memory, at a time, besides one
    index and nine bytes for each chunk that has been looked at.

    Raises RestoreError (no datastore in either place, something chosen is not there, the file system fails) and
    StoreError; what was put back up to then stays. The bucket is listed through `listing_store`, where given, and one
    manifest is read through it: one with less patience tells of a wrong key or name at once.
    """
    layout = BucketLayout(address.prefix)
    source = PresentSource(store, listing_store)
    with _opened(path) as (root, chunks):
        tree = Tree(root)
        with _explaining(path):
            contents = await trio.to_thread.run_sync(list_snapshots, tree)
        plan = plan_restore(contents, selection, holder="datastore")
        await _refuse_other_place(source, layout, address)
        if listing_store is not None:
            await try_reading(PresentSource(listing_store), layout, plan.snapshots)
        healing = _Healing(path, tree, chunks, source, layout, observer or HealObserver(), parallelism, dry_run=dry_run)
        return await healing.run(plan.newest_first())


def list_snapshots(tree: Tree) -> BucketContents:
    """What a datastore holds, in the form of what a bucket does: its groups, and its finished snapshots."""
    namespaces = list(tree.namespaces())
    groups = [group for namespace in namespaces for group in tree.groups(namespace)]
    snapshots = {
        snapshot: {MANIFEST_NAME: 0}
        for group in groups
        for snapshot in tree.snapshots(group)
        if tree.exists(snapshot.manifest_path)
    }
    files: dict[GroupId, dict[str, int]] = {group: {} for group in groups}
    return BucketContents(frozenset(namespaces), files, snapshots, ())


class _Healing:
    """One run."""

    def __init__(
        self,
        path: Path,
        tree: Tree,
        chunks: ChunkInsertion,
        source: Source,
        layout: BucketLayout,
        observer: HealObserver,
        parallelism: int,
        *,
        dry_run: bool,
    ) -> None:
        self._path = path
        self._tree = tree
        self._chunks = chunks
        self._source = source
        self._layout = layout
        self._observer = observer
        self._parallelism = parallelism
        self._dry_run = dry_run
        self._account = HealAccount()
        # By whether they are encrypted: the chunks that are good, or have been put back.
        self._good = {False: DigestSet(), True: DigestSet()}

    async def run(self, snapshots: list[SnapshotId]) -> HealReport:
        self._observer.planned(len(snapshots))
        for snapshot in snapshots:
            await self._look_at(snapshot)
            self._account.snapshots += 1
            self._observer.snapshot_finished(snapshot)
        with _explaining(self._path):
            if not self._dry_run:
                await trio.to_thread.run_sync(self._chunks.synchronize)
            forgotten = await trio.to_thread.run_sync(self._forgotten, self._account.costs)
        return self._account.as_report(forgotten)

    async def _look_at(self, snapshot: SnapshotId) -> None:
        try:
            manifest = await trio.to_thread.run_sync(self._read_manifest, snapshot)
        except (DatastoreError, OSError) as error:
            await self._note_damage(snapshot, MANIFEST_NAME, error)
            return
        for file in manifest.files:
            try:
                index = await trio.to_thread.run_sync(self._read_file, snapshot, file)
            except (DatastoreError, OSError) as error:
                await self._note_damage(snapshot, file.filename, error)
            else:
                if index is not None:
                    await self._heal_chunks_of(index, snapshot, is_encrypted=file.chunks_are_encrypted)

    async def _heal_chunks_of(self, index: Index, snapshot: SnapshotId, *, is_encrypted: bool) -> None:
        async def heal(digest: bytes) -> None:
            await self._heal(digest, snapshot, is_encrypted=is_encrypted)

        for part in parts(index):
            unknown = await trio.to_thread.run_sync(self._sort_out, part, snapshot, self._good[is_encrypted])
            await for_each(unknown, heal, min(self._parallelism, max(1, len(unknown))))

    def _sort_out(self, digests: Iterable[bytes], snapshot: SnapshotId, good: DigestSet) -> list[bytes]:
        """Leave out what was looked at before, and note what that costs."""
        unknown = []
        for digest in dict.fromkeys(digests):
            if digest in good:
                continue
            if self._account.is_lost(digest):
                self._account.cost(digest, snapshot)
            else:
                unknown.append(digest)
        return unknown

    async def _heal(self, digest: bytes, snapshot: SnapshotId, *, is_encrypted: bool) -> None:
        look = await trio.to_thread.run_sync(lambda: self._look(digest, is_encrypted=is_encrypted))
        self._account.chunks += 1
        self._account.chunk_bytes += look.size
        obstacle = None
        if look.is_kept:
            obstacle = "it is left as it is, since its own checksum is right: a verify job of PBS puts it in quarantine"
        elif look.reason is not None:
            obstacle = await self._bring(digest, is_encrypted=is_encrypted)
        if obstacle is None and not self._dry_run:
            await self._end_quarantine(digest, is_encrypted=is_encrypted)
        if look.reason is not None and obstacle is not None:
            self._observer.lost(self._account.lose(digest, look.reason, obstacle, snapshot))
        else:
            self._good[is_encrypted].add(digest)
            if look.reason is not None:
                self._observer.healed(self._account.heal(digest, look.reason))
        self._observer.chunk_finished(look.size)

    def _look(self, digest: bytes, *, is_encrypted: bool) -> _Look:
        try:
            data = self._tree.read_chunk(digest)
            if not data:
                return _Look("it is empty")
            check_chunk(data, digest, content=True)
        except FileNotFoundError:
            return _Look("it is in quarantine" if self._chunks.quarantined(digest) else "it is missing")
        except DatastoreError as error:
            return _Look(str(error))
        except OSError as error:
            return _Look(f"it cannot be read: {error.strerror}")
        try:
            check_encryption(data, digest, is_encrypted=is_encrypted)
        except BlobError as error:
            return _Look(str(error), len(data), is_kept=True)
        return _Look(None, len(data))

    async def _bring(self, digest: bytes, *, is_encrypted: bool) -> str | None:
        """Put a chunk back; returns why it could not be, if so. Raises RestoreError, StoreError."""

        try:
            content = await read_chunk(self._source, self._layout.chunk_key(digest), digest, uses=(is_encrypted,))
        except ObjectMissing:
            return "the bucket does not have it either"
        except (DatastoreError, ObjectTooLarge, StoreRejected) as error:
            return f"the bucket has no good copy either: {error}"
        self._account.bytes_fetched += len(content)
        if self._dry_run:
            return None
        return await trio.to_thread.run_sync(self._insert, digest, bytes(content))

    def _insert(self, digest: bytes, data: bytes) -> str | None:
        with _explaining(self._path):
            try:
                self._chunks.insert(digest, data)
            except OSError as error:
                if error.errno not in _IN_THE_WAY:
                    raise
                return f"it cannot be put in its place ({error.strerror}): remove what stands there"
        return None

    async def _end_quarantine(self, digest: bytes, *, is_encrypted: bool) -> None:
        with _explaining(self._path):
            ended = await trio.to_thread.run_sync(
                lambda: self._chunks.end_quarantine(digest, is_encrypted=is_encrypted)
            )
        self._account.quarantine_ended += ended

    def _read_manifest(self, snapshot: SnapshotId) -> Manifest:
        return parse_manifest(self._tree.read(snapshot.manifest_path))

    def _read_file(self, snapshot: SnapshotId, file: ManifestFile) -> Index | None:
        data = self._tree.read_content(
            f"{snapshot.path}/{file.filename}", maximum_size=file.longest, check_beginning=file.check_beginning
        )
        return check_listed_file(file, data)

    async def _note_damage(self, snapshot: SnapshotId, filename: str, error: DatastoreError | OSError) -> None:
        with _explaining(self._path):
            if await trio.to_thread.run_sync(self._forgotten, [snapshot]):
                return
        reason = str(error)
        if isinstance(error, FileNotFoundError):
            reason = "it is missing"
        elif isinstance(error, OSError):
            reason = f"it cannot be read: {error.strerror}"
        file = DamagedFile(f"{snapshot.path}/{filename}", reason)
        self._account.damage(file)
        self._observer.damaged(file)

    def _forgotten(self, snapshots: Iterable[SnapshotId]) -> frozenset[SnapshotId]:
        """Which of these PBS has forgotten meanwhile."""
        return frozenset(snapshot for snapshot in snapshots if not self._tree.is_taken(snapshot.manifest_path))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[int, ChunkInsertion]]:
    with ExitStack() as stack:
        try:
            opened = stack.enter_context(open_datastore_root(path))
        except own_files.NotOwn as error:
            raise RestoreError(f"Cannot heal {path}: {error}.") from error
        except OSError as error:
            raise RestoreError(f"Cannot heal {path}: {error.strerror}.") from error
        yield opened


@contextmanager
def _explaining(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise RestoreError(
            f"Cannot heal {path}: {error.strerror}. What was put back stays; when that is repaired, give the same "
            "command again."
        ) from error


async def _refuse_other_place(source: Source, layout: BucketLayout, address: StoreAddress) -> None:
    """Tell at once of a wrong key or name: it might take a day until the first chunk is needed."""
    async with aclosing(source.list(layout.content_prefix)) as objects:
        async for _ in objects:
            return
    raise RestoreError(f"There is no datastore at {address}. Check the name with: mirrorfs snapshots {address}")
