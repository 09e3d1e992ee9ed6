"""The bucket as recovery reads it: as it is, as it was at some time, or what of it is deleted and still kept."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import trio

from mirrorfs.checking.reading import Limit, ObjectReader, StoreReader
from mirrorfs.concurrency import for_each
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.deletion import Deletion, parse_deletion
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import DELETED_MARKER_NAME, BucketLayout
from mirrorfs.datastore.limits import LONGEST_DELETION, LONGEST_RECORD
from mirrorfs.datastore.names import GROUP_FILE_NAMES, MANIFEST_NAME, GroupId, SnapshotFileName, SnapshotId, classify
from mirrorfs.objectstore.answers import StoredObject, StoredVersion
from mirrorfs.objectstore.errors import ObjectMissing, ObjectTooLarge, StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.moment import format_moment

log = logging.getLogger(__name__)

_GROUPS_AT_ONCE = 8
# What a store calls the version of an object that was put while the bucket kept none.
_NO_VERSION = ("null", "")


@dataclass(frozen=True, slots=True)
class View:
    """How a bucket is looked at: as it is, unless `as_of` gives a Unix time; and `deleted` instead of published
    snapshots.
    """

    as_of: float | None = None
    deleted: bool = False

    @property
    def options(self) -> str:
        """The options of `restore` and `snapshots` that ask for this view, each with a space before it."""
        as_of = "" if self.as_of is None else f" --as-of {format_moment(self.as_of)}"
        return as_of + (" --deleted" if self.deleted else "")

    @property
    def suffix(self) -> str:
        """What to say after the name of a place that is looked at like this, with a space before it, or nothing."""
        return "" if self.as_of is None else f" as of {format_moment(self.as_of)}"


class Source(ObjectReader, Protocol):
    """Where recovery reads a datastore from. Keys are those that published objects have in the bucket, whatever they
    are called where they are read.

    Every method raises StoreError, and RestoreError where the bucket cannot be looked at like this.
    """

    def get_at_once(self, key: str, limit: Limit) -> Content:
        """The object of a chunk, in the thread that calls it and tried once: `get` may find what this does not."""
        ...

    def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """All objects whose key begins with the prefix, in no order."""
        ...

    async def deletion(self, snapshot: SnapshotId) -> Deletion | None:
        """What is noted about the deletion of a snapshot that was listed; None for published ones.

        Raises DatastoreError when that is damaged or missing.
        """
        ...


class PresentSource(StoreReader):
    """The bucket as it is. Listed through `listing_store`, which may have less patience."""

    def __init__(self, store: ObjectStore, listing_store: ObjectStore | None = None) -> None:
        super().__init__(store)
        self._listing_store = listing_store or store

    def get_at_once(self, key: str, limit: Limit) -> Content:
        """See Source."""
        return self._store.get_at_once(key, limit.maximum)

    def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """See Source."""
        return self._listing_store.list(prefix)

    async def deletion(self, snapshot: SnapshotId) -> Deletion | None:
        """See Source."""
        return None


class PastSource:
    """A versioned bucket as it was at `moment` (Unix time, by the clock of the store; most tell whole seconds).

    Chunks are read as they are now where that is possible: their key says what they hold, and most are still there.
    Those that are gone or damaged are read in the version of that time.
    """

    def __init__(
        self, store: ObjectStore, layout: BucketLayout, moment: float, listing_store: ObjectStore | None = None
    ) -> None:
        self._store = store
        self._layout = layout
        self._moment = moment
        self._moment_text = format_moment(moment)
        self._listing_store = listing_store or store
        self._listed: dict[str, StoredVersion] = {}

    async def get(self, key: str, limit: Limit) -> Content:
        """See Source."""
        if self._layout.chunk_digest(key) is None:
            return await self._get_content(key, limit)
        try:
            return await _read(self._store, key, limit)
        except (ObjectMissing, ObjectTooLarge):
            return await self._get_former_chunk(key, limit)

    def get_at_once(self, key: str, limit: Limit) -> Content:
        """See Source."""
        return self._store.get_at_once(key, limit.maximum)

    async def get_again(self, key: str, limit: Limit) -> Content:
        """See Source: what stands there now may have been put in its place since."""
        if self._layout.chunk_digest(key) is None:
            return await self._get_content(key, limit)
        return await self._get_former_chunk(key, limit)

    async def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """See Source. Reads the whole listing before it gives the first object."""
        has_versions, is_empty = False, True
        latest: dict[str, StoredVersion] = {}
        async with aclosing(self._versions(self._listing_store, prefix)) as versions:
            async for version in versions:
                is_empty = False
                has_versions = has_versions or version.version_id not in _NO_VERSION
                if version.modified_at <= self._moment:
                    latest[version.key] = _later(latest.get(version.key), version)
        if not has_versions and not is_empty:
            raise RestoreError(
                f"{self._store.place} keeps no versions, or has only begun to, so what it held at "
                f"{self._moment_text} cannot be told. Without --as-of you get what it holds now, with "
                "--deleted what was deleted and is kept for a while (retention.delete_after)."
            )
        self._listed.update(latest)
        for version in latest.values():
            if not version.is_delete_marker:
                yield StoredObject(version.key, version.size, version.etag, None, version.modified_at)

    async def deletion(self, snapshot: SnapshotId) -> Deletion | None:
        """See Source."""
        return None

    async def _get_content(self, key: str, limit: Limit) -> Content:
        version = self._listed.get(key)
        if version is None:
            for found in await self._versions_of(key):
                if found.modified_at <= self._moment:
                    version = _later(version, found)
        if version is None or version.is_delete_marker:
            raise ObjectMissing(f"read {key} in {self._store.place}", f"none was there at {self._moment_text}")
        return await _read(self._store, key, limit, version.version_id)

    async def _get_former_chunk(self, key: str, limit: Limit) -> Content:
        contents = [version for version in await self._versions_of(key) if not version.is_delete_marker]
        # That a published snapshot was without a chunk at that time cannot be; then any version is better than none.
        candidates = [version for version in contents if version.modified_at <= self._moment] or contents
        former: StoredVersion | None = None
        for version in candidates:
            former = _later(former, version)
        if former is None:
            raise ObjectMissing(f"read {key} in {self._store.place}", "there is no such object, and no version of it")
        return await _read(self._store, key, limit, former.version_id)

    async def _versions_of(self, key: str) -> Sequence[StoredVersion]:
        async with aclosing(self._versions(self._store, key)) as versions:
            return [version async for version in versions if version.key == key]

    async def _versions(self, store: ObjectStore, prefix: str) -> AsyncGenerator[StoredVersion, None]:
        try:
            async with aclosing(store.list_versions(prefix)) as versions:
                async for version in versions:
                    yield version
        except StoreRejected as error:
            raise RestoreError(
                f"{error} What the bucket held at {self._moment_text} cannot be told without its versions. "
                "Without --as-of you get what it holds now."
            ) from error
        except StoreUnavailable as error:
            if error.reason is not StoreReason.ACCESS_DENIED:
                raise
            raise RestoreError(
                f"{error} For --as-of it must also grant ListBucketVersions and GetObjectVersion."
            ) from error


class DeletedSource:
    """The deleted snapshots that are still kept, as if they were published; read through another source.

    A group has the owner and notes that it has as a published one, or had when its latest snapshot here was deleted.
    """

    def __init__(self, source: Source, layout: BucketLayout) -> None:
        self._source = source
        self._layout = layout
        self._marked: set[SnapshotId] = set()
        self._group_files: dict[str, bytes] = {}

    async def get(self, key: str, limit: Limit) -> Content:
        """See Source."""
        if key in self._group_files:
            return self._group_files[key]
        return await self._source.get(self._actual_key(key), limit)

    async def get_again(self, key: str, limit: Limit) -> Content:
        """See Source."""
        if key in self._group_files:
            return self._group_files[key]
        return await self._source.get_again(self._actual_key(key), limit)

    def get_at_once(self, key: str, limit: Limit) -> Content:
        """See Source: chunks are where published snapshots have them."""
        return self._source.get_at_once(key, limit)

    async def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        """See Source. Keys that belong to no deleted snapshot are given as they are."""
        snapshots: set[SnapshotId] = set()
        async with aclosing(self._source.list(self._layout.deleted_prefix)) as objects:
            async for found in objects:
                path = self._layout.deleted_path(found.key)
                if path is None:
                    yield found
                    continue
                directory, _, filename = path.rpartition("/")
                if filename == DELETED_MARKER_NAME:
                    self._marked.add(SnapshotId.parse(directory))
                elif (key := self._layout.content_key(path)).startswith(prefix):
                    if filename == MANIFEST_NAME:
                        snapshots.add(SnapshotId.parse(directory))
                    yield StoredObject(key, found.size, found.etag, found.crc32c, found.modified_at)
        await self._read_group_files(snapshots)
        for key, data in self._group_files.items():
            if key.startswith(prefix):
                yield StoredObject(key, len(data), "", None)

    async def deletion(self, snapshot: SnapshotId) -> Deletion:
        """See Source."""
        if snapshot not in self._marked:
            raise DatastoreError("deleted.json is missing")
        key = self._layout.deleted_key(snapshot.path, DELETED_MARKER_NAME)
        try:
            data = await self._source.get(key, Limit(LONGEST_DELETION))
        except ObjectMissing:
            raise DatastoreError("deleted.json is missing") from None
        except ObjectTooLarge:
            raise DatastoreError(f"deleted.json is larger than {LONGEST_DELETION} bytes") from None
        return await trio.to_thread.run_sync(parse_deletion, bytes(data))

    async def _read_group_files(self, snapshots: Iterable[SnapshotId]) -> None:
        of_group: dict[GroupId, list[SnapshotId]] = defaultdict(list)
        for snapshot in snapshots:
            of_group[snapshot.group].append(snapshot)

        async def read(group: GroupId) -> None:
            files = await self._published_files(group) or await self._last_files(of_group[group])
            for filename, data in files.items():
                self._group_files[self._layout.content_key(f"{group.path}/{filename}")] = data

        await for_each(of_group, read, _GROUPS_AT_ONCE)

    async def _published_files(self, group: GroupId) -> dict[str, bytes]:
        files: dict[str, bytes] = {}
        for filename in GROUP_FILE_NAMES:
            key = self._layout.content_key(f"{group.path}/{filename}")
            try:
                files[filename] = bytes(await self._source.get(key, Limit(LONGEST_RECORD)))
            except ObjectTooLarge as error:
                log.warning("%s", error)
            except ObjectMissing:
                if not files:
                    # Without an owner the group does not stand there any more, whatever is left of it.
                    break
        return files

    async def _last_files(self, snapshots: Iterable[SnapshotId]) -> dict[str, bytes]:
        for snapshot in sorted(snapshots, reverse=True):
            try:
                deletion = await self.deletion(snapshot)
            except DatastoreError:
                continue
            if deletion.owner is not None:
                texts = {"owner": deletion.owner, "notes": deletion.notes}
                return {filename: text.encode() for filename, text in texts.items() if text is not None}
        return {}

    def _actual_key(self, key: str) -> str:
        path = self._layout.content_path(key)
        if path is None:
            return key
        match classify(path.encode()):
            case SnapshotFileName(snapshot=snapshot, filename=filename):
                return self._layout.deleted_key(snapshot.path, filename)
        return key


def open_source(
    view: View, store: ObjectStore, layout: BucketLayout, listing_store: ObjectStore | None = None
) -> Source:
    """The source that shows the bucket like this; nothing is sent yet. Lists through `listing_store` where given."""
    source: Source = PresentSource(store, listing_store)
    if view.as_of is not None:
        source = PastSource(store, layout, view.as_of, listing_store)
    return DeletedSource(source, layout) if view.deleted else source


async def _read(store: ObjectStore, key: str, limit: Limit, version_id: str | None = None) -> Content:
    return await store.get_content(key, limit.maximum, version_id, check_beginning=limit.check_beginning)


def _later(before: StoredVersion | None, version: StoredVersion) -> StoredVersion:
    """The later of two versions of a key, of which `version` was listed after the other.

    Stores list the contents of a key from the latest to the oldest, but the marks of deletions apart, and many note
    whole seconds: what came first within one is not known of those two kinds, except for what is the latest of all.
    Then rather too much is found than too little.
    """
    if before is None or _recency(version) > _recency(before):
        return version
    return before


def _recency(version: StoredVersion) -> tuple[float, bool, bool]:
    return version.modified_at, version.is_latest, not version.is_delete_marker
