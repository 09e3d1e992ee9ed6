"""What a bucket holds of a datastore: by one listing, and with the manifests of the published snapshots."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from contextlib import aclosing
from dataclasses import dataclass

from mirrorfs.concurrency import for_each
from mirrorfs.datastore.deletion import Deletion
from mirrorfs.datastore.errors import DatastoreError, ManifestError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.manifest import Manifest, parse_manifest
from mirrorfs.datastore.names import (
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
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.recovery.source import Source

# PBS accepts manifests of at most 128 MiB; more is no manifest, and must not fill the memory.
MAXIMUM_MANIFEST_SIZE = 128 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class BucketContents:
    """What stands below the content prefix of a bucket, by its keys. The mappings go from file name to size
    in bytes.

    `namespaces` holds the root, every marked namespace, and every one that something lies in. `foreign` are
    keys that belong to no datastore; they are never used as paths.
    """

    namespaces: frozenset[NamespaceId]
    groups: Mapping[GroupId, Mapping[str, int]]
    snapshots: Mapping[SnapshotId, Mapping[str, int]]
    foreign: tuple[str, ...]

    @property
    def published(self) -> list[SnapshotId]:
        """The snapshots that have a manifest, sorted; what has none is not (or no longer) published."""
        return sorted(snapshot for snapshot, files in self.snapshots.items() if MANIFEST_NAME in files)

    @property
    def is_empty(self) -> bool:
        """Whether nothing of a datastore is there."""
        return not self.groups and not self.snapshots and len(self.namespaces) == 1


@dataclass(frozen=True, slots=True)
class PublishedSnapshot:
    """A snapshot that has a manifest in the bucket, or had one at the time that is looked at; `manifest` is None and
    `problem` says why when it is damaged.

    Of a deleted snapshot that is still kept, `deletion` says since when and until when; it is None and `problem` says
    why where that is not known. Such a snapshot can be restored nevertheless.
    """

    snapshot: SnapshotId
    protected: bool
    manifest: Manifest | None
    problem: str | None
    deletion: Deletion | None = None

    @property
    def size(self) -> int | None:
        """Sum of the sizes of its files in bytes, before compression and deduplication; None if not known."""
        return None if self.manifest is None else self.manifest.size

    @property
    def verify_state(self) -> str | None:
        """What PBS found at its last verification before publishing ("ok", "failed"); None where it did
        none.
        """
        return None if self.manifest is None else self.manifest.verify_state

    @property
    def notes(self) -> str | None:
        """The notes on the snapshot."""
        return None if self.manifest is None else self.manifest.notes

    @property
    def encrypted(self) -> bool | None:
        """Whether some of its files are encrypted; None if not known."""
        return None if self.manifest is None else self.manifest.is_encrypted


async def list_contents(source: Source, layout: BucketLayout) -> BucketContents:
    """List what the bucket holds of the datastore; one request per thousand objects. Raises StoreError."""
    namespaces = {NamespaceId()}
    groups: dict[GroupId, dict[str, int]] = defaultdict(dict)
    snapshots: dict[SnapshotId, dict[str, int]] = defaultdict(dict)
    foreign: list[str] = []
    async with aclosing(source.list(layout.content_prefix)) as objects:
        async for found in objects:
            path = layout.content_path(found.key)
            if path is None:
                foreign.append(found.key)
            elif path.endswith(f"/{NAMESPACE_MARKER_NAME}"):
                _add_namespace(namespaces, NamespaceId.parse(path.removesuffix(f"/{NAMESPACE_MARKER_NAME}")))
            else:
                match classify(path.encode()):
                    case GroupFileName(group=group, filename=filename):
                        groups[group][filename] = found.size
                    case SnapshotFileName(snapshot=snapshot, filename=filename):
                        snapshots[snapshot][filename] = found.size
    for group in groups.keys() | {snapshot.group for snapshot in snapshots}:
        _add_namespace(namespaces, group.namespace)
    return BucketContents(frozenset(namespaces), dict(groups), dict(snapshots), tuple(sorted(foreign)))


async def read_catalog(source: Source, layout: BucketLayout, *, parallelism: int = 8) -> list[PublishedSnapshot]:
    """The published snapshots with what their manifests say, sorted; damaged manifests are reported, not
    raised.

    A snapshot that goes while the catalog is read is left out. Raises StoreError.
    """
    contents = await list_contents(source, layout)
    catalog: list[PublishedSnapshot] = []

    async def read(snapshot: SnapshotId) -> None:
        files = contents.snapshots[snapshot]
        manifest = deletion = problem = None
        try:
            manifest = await read_manifest(source, layout, snapshot, files[MANIFEST_NAME])
        except ObjectMissing:
            return
        except DatastoreError as error:
            problem = str(error)
        try:
            deletion = await source.deletion(snapshot)
        except DatastoreError as error:
            problem = problem or str(error)
        catalog.append(PublishedSnapshot(snapshot, PROTECTED_NAME in files, manifest, problem, deletion))

    await for_each(contents.published, read, parallelism)
    return sorted(catalog, key=lambda published: published.snapshot)


async def read_manifest(source: Source, layout: BucketLayout, snapshot: SnapshotId, size: int) -> Manifest:
    """Read and check the manifest object of `snapshot`; `size` is that of the listing.

    Raises ManifestError, and StoreError (ObjectMissing when the snapshot is gone).
    """
    manifest, _ = await read_manifest_object(source, layout, snapshot, size)
    return manifest


async def read_manifest_object(
    source: Source, layout: BucketLayout, snapshot: SnapshotId, size: int
) -> tuple[Manifest, bytes]:
    """As `read_manifest`, with the object's bytes."""
    if size > MAXIMUM_MANIFEST_SIZE:
        raise ManifestError(f"the manifest has {size} bytes, more than any manifest")
    data = await source.get(layout.content_key(snapshot.manifest_path))
    return parse_manifest(data), data


def _add_namespace(namespaces: set[NamespaceId], namespace: NamespaceId) -> None:
    outer: NamespaceId | None = namespace
    while outer is not None and outer not in namespaces:
        namespaces.add(outer)
        outer = outer.parent
