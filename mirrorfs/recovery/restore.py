"""Rebuilding a datastore from a bucket, every byte checked on the way in, the manifest of each snapshot
last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from mirrorfs.concurrency import for_each
from mirrorfs.datastore.blob import check_blob, check_chunk, check_encryption
from mirrorfs.datastore.errors import DatastoreError, ManifestError
from mirrorfs.datastore.index import Index
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.limits import LONGEST_CHUNK, LONGEST_CLIENT_LOG, LONGEST_RECORD
from mirrorfs.datastore.manifest import ManifestFile, check_listed_file
from mirrorfs.datastore.names import (
    CLIENT_LOG_NAME,
    PROTECTED_NAME,
    GroupId,
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
)
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.ownership import Owner
from mirrorfs.recovery.selection import Plan, Selection, plan_restore
from mirrorfs.recovery.source import Limit, Source, View, open_source, read_checked
from mirrorfs.recovery.target import CHUNK_DIRECTORIES, Target, open_target

Result = TypeVar("Result")

# Small snapshots mostly wait for answers: several at once keep the connection busy.
_SNAPSHOTS_AT_ONCE = 4
_DIRECTORIES_IN_A_BATCH = 64
_BATCHES_AT_ONCE = 4
_OWNER_NAME = "owner"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be restored: its path in the datastore, and why as a sentence."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did. `chunks_kept` were there from an interrupted one, all of them checked again."""

    restored: tuple[SnapshotId, ...]
    incomplete: tuple[SnapshotId, ...]
    problems: tuple[Problem, ...]
    chunks_downloaded: int
    chunks_kept: int
    bytes_downloaded: int

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return not self.problems


class RestoreObserver:
    """Told of a restore's progress, in the trio thread; each method does nothing unless overridden."""

    def planned(self, plan: Plan, *, is_resumed: bool) -> None:
        """The bucket has been listed and the target is fit; writing begins."""

    def checked_directories(self, done: int, total: int) -> None:
        """So many chunk directories of an interrupted restore have been checked."""

    def snapshot_started(self, snapshot: SnapshotId) -> None:
        """The manifest of a snapshot is about to be read."""

    def chunks_needed(self, snapshot: SnapshotId, missing: int, total: int) -> None:
        """An index of the snapshot names `total` different chunks, of which `missing` are not there yet."""

    def chunk_finished(self, snapshot: SnapshotId) -> None:
        """One of the missing chunks is there now."""

    def downloaded(self, size: int) -> None:
        """An object of so many bytes has been downloaded."""

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        """A snapshot is complete, or given up."""


async def restore_datastore(
    store: ObjectStore,
    address: StoreAddress,
    target: Path,
    *,
    owner: Owner,
    selection: Selection = Selection(),  # noqa: B008 - immutable
    view: View = View(),  # noqa: B008 - immutable
    parallelism: int = 8,
    observer: RestoreObserver | None = None,
    listing_store: ObjectStore | None = None,
) -> RestoreReport:
    """Rebuild the datastore at `address` as the `view` shows it, or the selected parts of it, in an empty or absent
    directory.

    Continues what an interrupted restore of the same address and view left there. A damaged or missing object makes
    its snapshot incomplete: that one is left out and reported, the rest goes on. When this returns,
    everything is on stable storage. A manifest that gives its snapshot another type, id or time than its path is
    damage too, unless the selection takes renamed ones. At most `parallelism` objects are under way, and held in
    memory, at a time. The bucket is listed through `listing_store`, where given: one with less patience tells of a
    wrong key or bucket at once.

    Raises RestoreError and StoreError (of what StoreUnavailable the store has patience with, see there); what
    has been restored up to then stays and is used by the next run.
    """
    layout = BucketLayout(address.prefix)
    source = open_source(view, store, layout, listing_store)
    contents = await list_contents(source, layout)
    if contents.is_empty or (view.deleted and not contents.published):
        raise _nothing_there(address, view, layout)
    plan = plan_restore(contents, selection, view)
    with open_target(target, str(address), owner, view) as opened:
        observer = observer or RestoreObserver()
        observer.planned(plan, is_resumed=opened.is_resumed)
        restore = _Restore(source, layout, contents, opened, parallelism, observer, takes_renamed=selection.renamed)
        return await restore.run(plan)


class _Restore:
    """One run. `_in_flight` holds the chunks being fetched, with the events that end the wait for each."""

    def __init__(
        self,
        source: Source,
        layout: BucketLayout,
        contents: BucketContents,
        target: Target,
        parallelism: int,
        observer: RestoreObserver,
        *,
        takes_renamed: bool,
    ) -> None:
        self._source = source
        self._layout = layout
        self._contents = contents
        self._target = target
        self._parallelism = parallelism
        self._observer = observer
        self._takes_renamed = takes_renamed
        self._slots = trio.Semaphore(parallelism)
        self._in_flight: dict[bytes, trio.Event] = {}
        self._restored: list[SnapshotId] = []
        self._incomplete: list[SnapshotId] = []
        self._problems: list[Problem] = []
        self._chunks_downloaded = 0
        self._chunks_kept = 0
        self._bytes_downloaded = 0

    async def run(self, plan: Plan) -> RestoreReport:
        await trio.to_thread.run_sync(self._target.prepare, plan.snapshots)
        if self._target.is_resumed:
            await self._check_existing_chunks()
        for namespace in plan.namespaces:
            await trio.to_thread.run_sync(self._target.make_directory, namespace.path)
        if self._contents.namespaces_left_out:
            self._report(
                "ns", f"{self._contents.namespaces_left_out} empty namespaces beyond the first {MOST_EMPTY_NAMESPACES}"
            )
        await for_each(plan.groups, self._restore_group, self._parallelism)
        await for_each(plan.snapshots, self._restore_snapshot, _SNAPSHOTS_AT_ONCE)
        for snapshot in self._incomplete:
            await trio.to_thread.run_sync(self._target.remove_snapshot, snapshot)
        await trio.to_thread.run_sync(self._target.finish)
        return RestoreReport(
            tuple(sorted(self._restored)),
            tuple(sorted(self._incomplete)),
            tuple(sorted(self._problems, key=lambda problem: problem.path)),
            self._chunks_downloaded,
            self._chunks_kept,
            self._bytes_downloaded,
        )

    async def _check_existing_chunks(self) -> None:
        done = 0

        async def check(numbers: range) -> None:
            nonlocal done
            kept = await trio.to_thread.run_sync(self._target.check_chunk_directories, numbers)
            self._chunks_kept += kept
            done += len(numbers)
            self._observer.checked_directories(done, CHUNK_DIRECTORIES)

        batches = (
            range(first, first + _DIRECTORIES_IN_A_BATCH)
            for first in range(0, CHUNK_DIRECTORIES, _DIRECTORIES_IN_A_BATCH)
        )
        await for_each(batches, check, _BATCHES_AT_ONCE)

    async def _restore_group(self, group: GroupId) -> None:
        await trio.to_thread.run_sync(self._target.make_directory, group.path)
        files = self._contents.groups.get(group, {})
        if _OWNER_NAME not in files:
            self._report(
                f"{group.path}/{_OWNER_NAME}",
                "it is missing in the bucket; PBS needs it: write a user into it, such as root@pam",
            )
        for filename in files:
            path = f"{group.path}/{filename}"
            try:
                async with self._slots:
                    await self._fetch_file(path, Limit(LONGEST_RECORD), _take_as_it_is)
            except (ObjectMissing, StoreRejected) as error:
                self._report(path, str(error))

    async def _restore_snapshot(self, snapshot: SnapshotId) -> None:
        self._observer.snapshot_started(snapshot)
        problem: Problem | None = None
        try:
            await self._restore_files(snapshot)
        except (DatastoreError, ObjectMissing, StoreRejected) as error:
            problem = self._report(snapshot.path, str(error))
            self._incomplete.append(snapshot)
        else:
            self._restored.append(snapshot)
        self._observer.snapshot_finished(snapshot, problem)

    async def _restore_files(self, snapshot: SnapshotId) -> None:
        objects = self._contents.snapshots[snapshot]
        manifest, data = await read_manifest_object(self._source, self._layout, snapshot)
        problem = None if self._takes_renamed else problem_with_name(manifest, snapshot)
        if problem is not None:
            raise ManifestError(problem)
        await trio.to_thread.run_sync(
            self._target.keep_only, snapshot, frozenset(file.filename for file in manifest.files)
        )
        for file in manifest.files:
            await self._restore_listed_file(snapshot, file)
        if PROTECTED_NAME in objects:
            await trio.to_thread.run_sync(self._target.write_file, f"{snapshot.path}/{PROTECTED_NAME}", b"")
        if CLIENT_LOG_NAME in objects:
            await self._restore_client_log(snapshot)
        await trio.to_thread.run_sync(self._target.write_file, snapshot.manifest_path, data)

    async def _restore_listed_file(self, snapshot: SnapshotId, file: ManifestFile) -> None:
        limit = Limit(file.longest, file.check_beginning)
        index = await self._copy(f"{snapshot.path}/{file.filename}", limit, lambda data: check_listed_file(file, data))
        if index is not None:
            await self._restore_chunks(snapshot, index, are_encrypted=file.chunks_are_encrypted)

    async def _restore_client_log(self, snapshot: SnapshotId) -> None:
        # It is not part of what the manifest vouches for: a damaged log must not cost the backup.
        path = f"{snapshot.path}/{CLIENT_LOG_NAME}"
        try:
            async with self._slots:
                await self._fetch_file(path, Limit(LONGEST_CLIENT_LOG), check_blob)
        except (DatastoreError, ObjectMissing, StoreRejected) as error:
            self._report(path, str(error))

    async def _restore_chunks(self, snapshot: SnapshotId, index: Index, *, are_encrypted: bool) -> None:
        unique = await trio.to_thread.run_sync(index.unique_digests)
        missing = await trio.to_thread.run_sync(
            partial(self._target.missing_chunks, unique, are_encrypted=are_encrypted)
        )
        self._observer.chunks_needed(snapshot, len(missing), len(unique))

        async def restore(digest: bytes) -> None:
            await self._restore_chunk(digest, is_encrypted=are_encrypted)
            self._observer.chunk_finished(snapshot)

        await for_each(missing, restore, min(self._parallelism, max(1, len(missing))))

    async def _restore_chunk(self, digest: bytes, *, is_encrypted: bool) -> None:
        """Fetch a chunk unless somebody else does or did: snapshots worked on at the same time share many."""

        def check(data: bytes) -> None:
            check_chunk(data, digest, content=True)
            check_encryption(data, digest, is_encrypted=is_encrypted)

        while digest in self._in_flight:
            await self._in_flight[digest].wait()
        self._in_flight[digest] = finished = trio.Event()
        try:
            async with self._slots:
                is_missing = partial(self._target.missing_chunks, [digest], are_encrypted=is_encrypted)
                if await trio.to_thread.run_sync(is_missing):
                    await self._fetch(
                        self._layout.chunk_key(digest),
                        Limit(LONGEST_CHUNK),
                        check,
                        lambda data: self._target.write_chunk(digest, data),
                    )
                    self._chunks_downloaded += 1
        finally:
            del self._in_flight[digest]
            finished.set()

    async def _copy(self, path: str, limit: Limit, check: Callable[[bytes], Result]) -> Result:
        """Restore a listed file, from what an interrupted restore left of it if that passes the check."""
        async with self._slots:
            if self._target.is_resumed:
                present = await trio.to_thread.run_sync(self._read_if_good, path, check)
                if present is not None:
                    return present[0]
            return await self._fetch_file(path, limit, check)

    async def _fetch_file(self, path: str, limit: Limit, check: Callable[[bytes], Result]) -> Result:
        return await self._fetch(
            self._layout.content_key(path), limit, check, lambda data: self._target.write_file(path, data)
        )

    def _read_if_good(self, path: str, check: Callable[[bytes], Result]) -> tuple[Result] | None:
        data = self._target.read(path)
        if data is None:
            return None
        try:
            return (check(data),)
        except DatastoreError:
            return None

    async def _fetch(
        self, key: str, limit: Limit, check: Callable[[bytes], Result], write: Callable[[bytes], None]
    ) -> Result:
        """Download an object, check it and write it, in this order."""

        def check_and_write(data: bytes) -> Result:
            result = check(data)
            write(data)
            return result

        return await read_checked(self._source, key, limit, check_and_write, self._count_download)

    def _count_download(self, size: int) -> None:
        self._bytes_downloaded += size
        self._observer.downloaded(size)

    def _report(self, path: str, reason: str) -> Problem:
        problem = Problem(path, reason)
        self._problems.append(problem)
        return problem


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


def _take_as_it_is(_data: bytes) -> None:
    """The check of a file that has no format: owner and notes."""
