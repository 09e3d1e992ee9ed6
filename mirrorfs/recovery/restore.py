"""Rebuilding a datastore from a bucket, or adding to one, every byte checked on the way in, the manifest of each
snapshot last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import trio

from mirrorfs.checking.reading import Limit
from mirrorfs.concurrency import for_each
from mirrorfs.datastore.blob import check_blob
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import DatastoreError, ManifestError
from mirrorfs.datastore.index import Index
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.limits import LONGEST_CLIENT_LOG, LONGEST_RECORD
from mirrorfs.datastore.manifest import ManifestFile, check_listed_file
from mirrorfs.datastore.names import (
    CLIENT_LOG_NAME,
    PROTECTED_NAME,
    GroupId,
    NamespaceId,
    SnapshotId,
)
from mirrorfs.objectstore.errors import ObjectMissing, StoreRejected
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.catalog import (
    MOST_EMPTY_NAMESPACES,
    BucketContents,
    list_contents,
    problem_with_name,
    read_manifest_object,
    try_reading,
)
from mirrorfs.recovery.chunk_batch import Chunks
from mirrorfs.recovery.errors import GroupBusy, RestoreError, SnapshotRefused
from mirrorfs.recovery.fetching import ChunkFetcher, Fetcher
from mirrorfs.recovery.files import Files
from mirrorfs.recovery.into import LivingDatastore, open_datastore
from mirrorfs.recovery.ownership import Owner, default_owner
from mirrorfs.recovery.pace import Pace
from mirrorfs.recovery.progress import Account, Damages, Problem, RestoreObserver, RestoreReport
from mirrorfs.recovery.selection import Plan, Selection, plan_restore
from mirrorfs.recovery.source import Source, View, open_source
from mirrorfs.recovery.target import CHUNK_DIRECTORIES, Target, open_target

__all__ = ["Manner", "Problem", "RestoreObserver", "RestoreReport", "restore_datastore"]

Result = TypeVar("Result")
_Work = Callable[[], Awaitable[None]]

# Small snapshots mostly wait for answers: several at once keep the connection busy. What of them is large does not
# share it: of those that wait for a chunk the newest of its group comes first.
_SNAPSHOTS_AT_ONCE = 4
_DIRECTORIES_IN_A_BATCH = 64
_BATCHES_AT_ONCE = 4
_OWNER_NAME = "owner"
# What PBS removes while a snapshot is brought is brought again; but somebody may remove it each time.
_LOOKS = 5
_BUSY_SECONDS = 60.0
_BUSY_PAUSE_SECONDS = 0.25


@dataclass(frozen=True, slots=True)
class Manner:
    """How to restore. `into` a living datastore instead of an empty directory; of `metadata_only` no chunk is fetched;
    with `keep_damaged` a snapshot is restored without what of it is damaged or missing, unless that is its manifest;
    `bytes_per_second` limits what is read from the store.
    """

    into: bool = False
    metadata_only: bool = False
    keep_damaged: bool = False
    bytes_per_second: float | None = None


class _Destination(Chunks, Protocol):
    """Target or LivingDatastore."""

    is_resumed: bool
    files: Files

    def prepare(self, snapshots: Iterable[SnapshotId]) -> None: ...

    def add_namespace(self, namespace: NamespaceId) -> None: ...

    def add_group(self, group: GroupId, files: Mapping[str, bytes]) -> None: ...

    def begin(self, snapshot: SnapshotId, filenames: Collection[str]) -> None: ...

    def gone(self, digests: Iterable[bytes]) -> list[bytes]: ...

    def complete(self, snapshot: SnapshotId, manifest: bytes) -> None: ...

    def abandon(self, snapshot: SnapshotId) -> None: ...

    def finish(self) -> None: ...


async def restore_datastore(
    store: ObjectStore,
    address: StoreAddress,
    target: Path,
    *,
    owner: Owner | None = None,
    selection: Selection = Selection(),  # noqa: B008 - immutable
    view: View = View(),  # noqa: B008 - immutable
    manner: Manner = Manner(),
    parallelism: int = 8,
    observer: RestoreObserver | None = None,
    listing_store: ObjectStore | None = None,
) -> RestoreReport:
    """Rebuild the datastore at `address` as the `view` shows it, or the selected parts of it, in an empty or absent
    directory; or, if that is the `manner`, add what is not there to the living datastore `target`.

    Continues what an interrupted restore of the same address and view left there. A damaged or missing object makes
    its snapshot incomplete: that one is left out and reported, the rest goes on. When this returns,
    everything is on stable storage. A manifest that gives its snapshot another type, id or time than its path is
    damage too, unless the selection takes renamed ones. At most `parallelism` objects are under way, and held in
    memory, at a time. The bucket is listed through `listing_store`, where given, and one manifest is read through it:
    one with less patience tells of a wrong key or bucket at once. `owner` is whose the files become, by default as
    `default_owner` says; in a living datastore they become its owner's in any case.

    Raises RestoreError and StoreError (of what StoreUnavailable the store has patience with, see there); what
    has been restored up to then stays and is used by the next run.
    """
    layout = BucketLayout(address.prefix)
    source = open_source(view, store, layout, listing_store)
    contents = await list_datastore(source, address, layout, view)
    plan = plan_restore(contents, selection, view)
    if listing_store is not None:
        await try_reading(open_source(view, listing_store, layout), layout, plan.snapshots)
    account, observer = Account(), observer or RestoreObserver()
    fetcher = Fetcher(source, layout, parallelism, Pace(manner.bytes_per_second), account, observer)
    with _opened(target, str(address), owner or default_owner(), view, manner) as opened:
        there, plan = await trio.to_thread.run_sync(split_by_presence, opened, plan)
        observer.planned(plan, is_resumed=opened.is_resumed, references=sum(map(contents.references, plan.snapshots)))
        restore = _Restore(contents, opened, fetcher, account, observer, manner, takes_renamed=selection.renamed)
        await restore.run(plan)
        return account.as_report(there)


async def list_datastore(source: Source, address: StoreAddress, layout: BucketLayout, view: View) -> BucketContents:
    """List what there is to be restored. Raises StoreError, and RestoreError where there is nothing."""
    contents = await list_contents(source, layout)
    if contents.is_empty or (view.deleted and not contents.published):
        raise _nothing_there(address, view, layout)
    return contents


def split_by_presence(destination: object, plan: Plan) -> tuple[tuple[SnapshotId, ...], Plan]:
    """Take out of a plan what a living datastore has; returns that, and the plan of the rest. Raises RestoreError."""
    if not isinstance(destination, LivingDatastore):
        return (), plan
    there = tuple(snapshot for snapshot in plan.snapshots if destination.has_snapshot(snapshot))
    snapshots = tuple(sorted(frozenset(plan.snapshots) - frozenset(there)))
    groups = {snapshot.group for snapshot in snapshots}
    namespaces = {group.namespace for group in groups}
    return there, replace(plan, snapshots=snapshots, groups=tuple(sorted(groups)), namespaces=tuple(sorted(namespaces)))


@contextmanager
def _opened(path: Path, url: str, owner: Owner, view: View, manner: Manner) -> Iterator[Target | LivingDatastore]:
    if manner.into:
        with open_datastore(path, url, view) as datastore:
            yield datastore
    else:
        with open_target(path, url, owner, view) as target:
            yield target


class _Restore:
    """One run."""

    def __init__(
        self,
        contents: BucketContents,
        destination: _Destination,
        fetcher: Fetcher,
        account: Account,
        observer: RestoreObserver,
        manner: Manner,
        *,
        takes_renamed: bool,
    ) -> None:
        self._contents = contents
        self._destination = destination
        self._fetcher = fetcher
        self._account = account
        self._observer = observer
        self._manner = manner
        self._takes_renamed = takes_renamed
        self._chunks = ChunkFetcher(fetcher, destination, account, may_fetch=not manner.metadata_only)

    async def run(self, plan: Plan) -> None:
        await trio.to_thread.run_sync(self._destination.prepare, plan.snapshots)
        if isinstance(self._destination, Target) and self._destination.is_resumed:
            await self._check_existing_chunks(self._destination)
        for namespace in plan.namespaces:
            await trio.to_thread.run_sync(self._destination.add_namespace, namespace)
        if self._contents.namespaces_left_out and not self._manner.into:
            self._account.report(
                "ns", f"{self._contents.namespaces_left_out} empty namespaces beyond the first {MOST_EMPTY_NAMESPACES}"
            )
        # A disk may be long in making 65,536 directories, and chunks need not wait for those of others.
        both: tuple[_Work, _Work] = (self._make_frame, partial(self._restore_all, plan))
        await for_each(both, _call, len(both))
        for snapshot in self._account.incomplete:
            await trio.to_thread.run_sync(self._destination.abandon, snapshot)
        await trio.to_thread.run_sync(self._destination.finish)

    async def _make_frame(self) -> None:
        # Looking at what an interrupted restore has left makes them, too.
        if isinstance(self._destination, Target) and not self._destination.is_resumed:
            await trio.to_thread.run_sync(self._destination.make_chunk_directories)

    async def _restore_all(self, plan: Plan) -> None:
        await for_each(plan.groups, self._restore_group, self._fetcher.parallelism)
        await for_each(enumerate(plan.newest_first()), self._restore_snapshot, _SNAPSHOTS_AT_ONCE)

    async def _check_existing_chunks(self, target: Target) -> None:
        done = 0

        async def check(numbers: range) -> None:
            nonlocal done
            kept = await trio.to_thread.run_sync(target.check_chunk_directories, numbers)
            self._account.chunks_kept += kept
            done += len(numbers)
            self._observer.checked_directories(done, CHUNK_DIRECTORIES)

        batches = (
            range(first, first + _DIRECTORIES_IN_A_BATCH)
            for first in range(0, CHUNK_DIRECTORIES, _DIRECTORIES_IN_A_BATCH)
        )
        await for_each(batches, check, _BATCHES_AT_ONCE)

    async def _restore_group(self, group: GroupId) -> None:
        found = self._contents.groups.get(group, {})
        if _OWNER_NAME not in found:
            self._account.report(
                f"{group.path}/{_OWNER_NAME}",
                "it is missing in the bucket; PBS needs it: write a user into it, such as root@pam",
            )
        files: dict[str, bytes] = {}
        for filename in found:
            path = f"{group.path}/{filename}"
            try:
                async with self._fetcher.slots.taken(0):
                    take = partial(_put_into, files, filename)
                    await self._fetch_file(path, Limit(LONGEST_RECORD), _take_as_it_is, take)
            except (ObjectMissing, StoreRejected) as error:
                self._account.report(path, str(error))
        await trio.to_thread.run_sync(self._destination.add_group, group, files)

    async def _restore_snapshot(self, ranked: tuple[int, SnapshotId]) -> None:
        rank, snapshot = ranked
        self._observer.snapshot_started(snapshot)
        damages = Damages()
        try:
            await self._restore_files(snapshot, rank, damages)
        except (DatastoreError, ObjectMissing, StoreRejected, SnapshotRefused) as error:
            problem: Problem | None = self._account.left_out(snapshot, str(error))
        else:
            problem = self._account.restored(snapshot, damages)
        self._observer.snapshot_finished(snapshot, problem)

    async def _restore_files(self, snapshot: SnapshotId, rank: int, damages: Damages) -> None:
        objects = self._contents.snapshots[snapshot]
        manifest, data = await read_manifest_object(self._fetcher.source, self._fetcher.layout, snapshot)
        problem = None if self._takes_renamed else problem_with_name(manifest, snapshot)
        if problem is not None:
            raise ManifestError(problem)
        await trio.to_thread.run_sync(
            self._destination.begin, snapshot, frozenset(file.filename for file in manifest.files)
        )
        for file in manifest.files:
            await self._restore_listed_file(snapshot, file, rank, damages)
        if PROTECTED_NAME in objects:
            path = f"{snapshot.path}/{PROTECTED_NAME}"
            await trio.to_thread.run_sync(self._destination.files.write, path, b"")
        if CLIENT_LOG_NAME in objects:
            await self._restore_client_log(snapshot, rank)
        await self._complete(snapshot, data, manifest.files, rank)

    async def _restore_listed_file(self, snapshot: SnapshotId, file: ManifestFile, rank: int, damages: Damages) -> None:
        limit = Limit(file.longest, file.check_beginning)
        path = f"{snapshot.path}/{file.filename}"
        try:
            index = await self._copy(path, limit, partial(check_listed_file, file), rank)
        except (DatastoreError, ObjectMissing, StoreRejected) as error:
            if not self._manner.keep_damaged:
                raise
            damages.note(path, str(error))
            return
        if index is not None and not (self._manner.metadata_only and not self._manner.into):
            await self._chunks.bring(
                index,
                rank,
                damages if self._manner.keep_damaged else None,
                partial(self._observer.referenced, snapshot),
                are_encrypted=file.chunks_are_encrypted,
            )

    async def _restore_client_log(self, snapshot: SnapshotId, rank: int) -> None:
        # It is not part of what the manifest vouches for: a damaged log must not cost the backup.
        path = f"{snapshot.path}/{CLIENT_LOG_NAME}"
        try:
            async with self._fetcher.slots.taken(rank):
                write = partial(self._destination.files.write, path)
                await self._fetch_file(path, Limit(LONGEST_CLIENT_LOG), check_blob, write)
        except (DatastoreError, ObjectMissing, StoreRejected) as error:
            self._account.report(path, str(error))

    async def _complete(self, snapshot: SnapshotId, manifest: bytes, files: Iterable[ManifestFile], rank: int) -> None:
        if self._manner.into:
            await self._make_sure_of_chunks(snapshot, files, rank)
        deadline = trio.current_time() + _BUSY_SECONDS
        while True:
            try:
                return await trio.to_thread.run_sync(self._destination.complete, snapshot, manifest)
            except GroupBusy as error:
                if trio.current_time() >= deadline:
                    raise
                self._observer.waiting(snapshot, str(error))
                await trio.sleep(_BUSY_PAUSE_SECONDS)

    async def _make_sure_of_chunks(self, snapshot: SnapshotId, files: Iterable[ManifestFile], rank: int) -> None:
        """Touch all chunks once more, since hours may have passed, and bring those again that have gone."""
        for file in files:
            read = partial(self._read_if_good, f"{snapshot.path}/{file.filename}", partial(check_listed_file, file))
            present = await trio.to_thread.run_sync(read)
            if present is None or present[0] is None:
                continue
            gone = await trio.to_thread.run_sync(self._destination.gone, present[0])
            for _ in range(_LOOKS):
                if not gone:
                    break
                await self._chunks.bring_again(gone, rank, are_encrypted=file.chunks_are_encrypted)
                gone = await trio.to_thread.run_sync(self._destination.gone, gone)
            if gone:
                raise SnapshotRefused(f"chunk {gone[0].hex()} is removed from the datastore again and again")

    async def _copy(self, path: str, limit: Limit, check: Callable[[Content], Index | None], rank: int) -> Index | None:
        """Restore a listed file, from what an interrupted restore left of it if that passes the check."""
        async with self._fetcher.slots.taken(rank):
            if self._destination.is_resumed:
                present = await trio.to_thread.run_sync(self._read_if_good, path, check)
                if present is not None:
                    return present[0]
            return await self._fetch_file(path, limit, check, partial(self._destination.files.write, path))

    async def _fetch_file(
        self, path: str, limit: Limit, check: Callable[[Content], Result], write: Callable[[Content], None]
    ) -> Result:
        return await self._fetcher.fetch(self._fetcher.layout.content_key(path), limit, check, write)

    def _read_if_good(self, path: str, check: Callable[[Content], Result]) -> tuple[Result] | None:
        data = self._destination.files.read(path)
        if data is None:
            return None
        try:
            return (check(data),)
        except DatastoreError:
            return None


def _put_into(files: dict[str, bytes], filename: str, data: Content) -> None:
    files[filename] = bytes(data)


def _nothing_there(address: StoreAddress, view: View, layout: BucketLayout) -> RestoreError:
    if view.deleted:
        return RestoreError(
            f"There are no deleted snapshots at {address}{view.suffix}. They are kept only where, and as long as, the "
            "mirror's setting retention.delete_after says so."
        )
    if view.as_of is not None:
        return RestoreError(
            f"There was no datastore at {address}{view.suffix}. See what there was at another time with: "
            "mirrorfs snapshots URL --as-of TIME"
        )
    return RestoreError(f"There is no datastore at {address}: nothing stands below {layout.content_prefix}")


async def _call(work: _Work) -> None:
    await work()


def _take_as_it_is(_data: Content) -> None:
    """The check of a file that has no format: owner and notes."""
