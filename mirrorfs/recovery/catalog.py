"""What a bucket holds of a datastore: by one listing, and with the manifests of the published snapshots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from itertools import islice

import trio

from mirrorfs.checking.reading import Limit
from mirrorfs.concurrency import for_each
from mirrorfs.datastore.deletion import Deletion
from mirrorfs.datastore.digests import DIGEST_SIZE
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.index import is_index_name
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.limits import LONGEST_MANIFEST, LONGEST_RECORD
from mirrorfs.datastore.manifest import Manifest, parse_manifest
from mirrorfs.datastore.names import (
    CLIENT_LOG_NAME,
    MANIFEST_NAME,
    NAMESPACE_MARKER_NAME,
    PROTECTED_NAME,
    GroupFileName,
    GroupId,
    NamespaceId,
    SnapshotFileName,
    SnapshotId,
    classify,
)
from mirrorfs.objectstore.errors import ObjectMissing, ObjectTooLarge
from mirrorfs.recovery.source import Source

MOST_EMPTY_NAMESPACES = 100_000
"""More markers are counted only: each costs whoever writes below the prefix one request, and us memory."""
_FOREIGN_EXAMPLES = 100
_TRIED = 3
_NOTES_NAME = "notes"
# What of a snapshot is looked at before, or beside, what its manifest lists.
_UNLISTED = (MANIFEST_NAME, PROTECTED_NAME, CLIENT_LOG_NAME)


@dataclass(frozen=True, slots=True)
class BucketContents:
    """What stands below the content prefix of a bucket, by its keys. The mappings go from file name to size
    in bytes.

    `namespaces` holds the root, every one that something lies in, and the marked ones, of which `namespaces_left_out`
    were too many. Of the files of a snapshot only those are here that its manifest does not list; `index_bytes` has the
    size of its indexes together. `foreign` has some keys that belong to no datastore; they are never used as paths.
    """

    namespaces: frozenset[NamespaceId]
    groups: Mapping[GroupId, Mapping[str, int]]
    snapshots: Mapping[SnapshotId, Mapping[str, int]]
    foreign: tuple[str, ...]
    namespaces_left_out: int = 0
    index_bytes: Mapping[SnapshotId, int] = field(default_factory=dict)

    def references(self, snapshot: SnapshotId) -> int:
        """About how many chunks a snapshot references, each as often as it does, by the size of its indexes."""
        return self.index_bytes.get(snapshot, 0) // DIGEST_SIZE

    @property
    def published(self) -> list[SnapshotId]:
        """The snapshots that have a manifest, sorted; what has none is not (or no longer) published."""
        return sorted(snapshot for snapshot, files in self.snapshots.items() if MANIFEST_NAME in files)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a datastore is there."""
        return not self.groups and not self.snapshots and len(self.namespaces) == 1


@dataclass(frozen=True, slots=True)
class ManifestSummary:
    """What is shown of a manifest, which itself may be a thousand times as large."""

    size: int
    verify_state: str | None
    notes: str | None
    is_encrypted: bool
    encryption: str

    @classmethod
    def of(cls, manifest: Manifest, length: int) -> ManifestSummary:
        """Make it of a manifest whose object has `length` bytes.

        PBS counts these too (``src/api2/admin/datastore.rs``, ``read_backup_index``).
        """
        return cls(
            manifest.size + length, manifest.verify_state, manifest.notes, manifest.is_encrypted, manifest.encryption
        )


@dataclass(frozen=True, slots=True)
class PublishedSnapshot:
    """A snapshot that has a manifest in the bucket, or had one at the time that is looked at; `summary` is None and
    `problem` says why when it is damaged. `problem` also tells of a manifest that is another snapshot's.

    Of a deleted snapshot that is still kept, `deletion` says since when and until when; it is None and `problem` says
    why where that is not known. Such a snapshot can be restored nevertheless.
    """

    snapshot: SnapshotId
    protected: bool
    summary: ManifestSummary | None
    problem: str | None
    deletion: Deletion | None = None

    @property
    def size(self) -> int | None:
        """Sum of the sizes of its files in bytes, before compression and deduplication, as PBS shows it: with that of
        the manifest. None if not known.
        """
        return None if self.summary is None else self.summary.size

    @property
    def verify_state(self) -> str | None:
        """What PBS found at its last verification before publishing ("ok", "failed"); None where it did
        none.
        """
        return None if self.summary is None else self.summary.verify_state

    @property
    def notes(self) -> str | None:
        """The notes on the snapshot."""
        return None if self.summary is None else self.summary.notes

    @property
    def encryption(self) -> str | None:
        """What its files have for ``crypt-mode``, "mixed" if they differ; None if not known."""
        return None if self.summary is None else self.summary.encryption

    @property
    def encrypted(self) -> bool | None:
        """Whether some of its files are encrypted; None if not known."""
        return None if self.summary is None else self.summary.is_encrypted


async def list_contents(source: Source, layout: BucketLayout) -> BucketContents:
    """List what the bucket holds of the datastore; one request per thousand objects. Raises StoreError."""
    marked: set[NamespaceId] = set()
    left_out = 0
    groups: dict[GroupId, dict[str, int]] = defaultdict(dict)
    snapshots: dict[SnapshotId, dict[str, int]] = defaultdict(dict)
    index_bytes: dict[SnapshotId, int] = defaultdict(int)
    foreign: list[str] = []
    async with aclosing(source.list(layout.content_prefix)) as objects:
        async for found in objects:
            path = layout.content_path(found.key)
            if path is None:
                if len(foreign) < _FOREIGN_EXAMPLES:
                    foreign.append(found.key)
            elif path.endswith(f"/{NAMESPACE_MARKER_NAME}"):
                if len(marked) < MOST_EMPTY_NAMESPACES:
                    marked.add(NamespaceId.parse(path.removesuffix(f"/{NAMESPACE_MARKER_NAME}")))
                else:
                    left_out += 1
            else:
                match classify(path.encode()):
                    case GroupFileName(group=group, filename=filename):
                        groups[group][filename] = found.size
                    case SnapshotFileName(snapshot=snapshot, filename=filename):
                        files = snapshots[snapshot]
                        if filename in _UNLISTED:
                            files[filename] = found.size
                        elif is_index_name(filename):
                            index_bytes[snapshot] += found.size
    namespaces = {NamespaceId()}
    for namespace in marked | {group.namespace for group in groups} | {found.group.namespace for found in snapshots}:
        _add_namespace(namespaces, namespace)
    return BucketContents(
        frozenset(namespaces), dict(groups), dict(snapshots), tuple(sorted(foreign)), left_out, dict(index_bytes)
    )


async def read_catalog(source: Source, layout: BucketLayout, *, parallelism: int = 8) -> list[PublishedSnapshot]:
    """The published snapshots with what their manifests say, sorted; damaged manifests are reported, not
    raised.

    A snapshot that goes while the catalog is read is left out. Raises StoreError.
    """
    return await read_published(source, layout, await list_contents(source, layout), parallelism=parallelism)


async def read_group_notes(
    source: Source, layout: BucketLayout, contents: BucketContents, *, parallelism: int = 8
) -> dict[GroupId, str]:
    """The notes on the groups that have any, sorted; what is too large, or goes meanwhile, is left out.

    Bytes that are no UTF-8 become U+FFFD. Raises StoreError.
    """
    notes: dict[GroupId, str] = {}

    async def read(group: GroupId) -> None:
        try:
            data = bytes(await source.get(layout.content_key(f"{group.path}/{_NOTES_NAME}"), Limit(LONGEST_RECORD)))
        except (ObjectMissing, ObjectTooLarge):
            return
        notes[group] = data.decode(errors="replace")

    await for_each([group for group, files in contents.groups.items() if _NOTES_NAME in files], read, parallelism)
    return dict(sorted(notes.items()))


async def read_published(
    source: Source, layout: BucketLayout, contents: BucketContents, *, parallelism: int = 8
) -> list[PublishedSnapshot]:
    """As `read_catalog`, of a bucket that has been listed."""
    catalog: list[PublishedSnapshot] = []

    async def read(snapshot: SnapshotId) -> None:
        files = contents.snapshots[snapshot]
        summary = deletion = problem = None
        try:
            manifest, data = await read_manifest_object(source, layout, snapshot)
            summary, problem = ManifestSummary.of(manifest, len(data)), problem_with_name(manifest, snapshot)
        except ObjectMissing:
            return
        except (DatastoreError, ObjectTooLarge) as error:
            problem = str(error)
        try:
            deletion = await source.deletion(snapshot)
        except DatastoreError as error:
            problem = problem or str(error)
        catalog.append(PublishedSnapshot(snapshot, PROTECTED_NAME in files, summary, problem, deletion))

    await for_each(contents.published, read, parallelism)
    return sorted(catalog, key=lambda published: published.snapshot)


async def read_manifest_object(source: Source, layout: BucketLayout, snapshot: SnapshotId) -> tuple[Manifest, bytes]:
    """Read and check the manifest object of `snapshot`; also gives its bytes.

    Raises ManifestError, and StoreError (ObjectMissing when the snapshot is gone, ObjectTooLarge).
    """
    data = bytes(await source.get(layout.content_key(snapshot.manifest_path), Limit(LONGEST_MANIFEST)))
    return await trio.to_thread.run_sync(parse_manifest, data), data


async def try_reading(source: Source, layout: BucketLayout, snapshots: Iterable[SnapshotId]) -> None:
    """Read a manifest, so that a key which may only list shows before anything is begun; what is damaged or missing
    shows later. Raises StoreError.
    """
    for snapshot in islice(snapshots, _TRIED):
        try:
            await read_manifest_object(source, layout, snapshot)
        except (DatastoreError, ObjectMissing, ObjectTooLarge):
            continue
        return


def problem_with_name(manifest: Manifest, snapshot: SnapshotId) -> str | None:
    """Say why a manifest is not the one of the snapshot under whose name it stands; None if it is."""
    named = manifest.names_other_than(snapshot)
    if named is None:
        return None
    return (
        f"its manifest is the one of {named}: somebody has renamed it, or put another backup in its place. If you know "
        "that it was renamed, restore it with --renamed"
    )


def _add_namespace(namespaces: set[NamespaceId], namespace: NamespaceId) -> None:
    outer: NamespaceId | None = namespace
    while outer is not None and outer not in namespaces:
        namespaces.add(outer)
        outer = outer.parent
