"""What a changed name means as work: the items that the uploader handles, and which item a name belongs to."""

from __future__ import annotations

import os
from dataclasses import dataclass

from mirrorfs.datastore.names import (
    CHUNKS_NAME,
    NAMESPACE_MARKER_NAME,
    ChunkName,
    ForeignName,
    GroupDirectoryName,
    GroupFileName,
    GroupId,
    InternalName,
    Name,
    NamespaceDirectoryName,
    NamespaceId,
    QuarantinedChunkName,
    SnapshotDirectoryName,
    SnapshotFileName,
    SnapshotId,
    StructureName,
    TypeDirectoryName,
    chunk_path,
    classify,
    topmost_foreign,
)

# No datastore has such a directory: ".", "/" and blanks are in no name of PBS's.
_IN_BUCKET = "in the bucket: "


@dataclass(frozen=True, slots=True)
class ChunkItem:
    """A chunk: its object must be there, or may have to go."""

    digest: bytes


@dataclass(frozen=True, slots=True)
class SubtreeItem:
    """A directory that appeared, went or moved: everything in it, here and in the bucket, has to be looked at."""

    path: str


@dataclass(frozen=True, slots=True)
class ForeignItem:
    """A name that PBS would not make; it is counted, never mirrored."""

    path: bytes


Item = ChunkItem | SnapshotId | GroupId | NamespaceId | SubtreeItem | ForeignItem


def item_of(path: bytes) -> Item | None:
    """Return the item that a changed name belongs to, None when there is nothing to do about it."""
    return item_of_name(classify(path), path)


def names_manifest(path: bytes) -> bool:
    """Tell whether a changed name is that of a snapshot's manifest, with which the snapshot comes and goes."""
    name = classify(path)
    return isinstance(name, SnapshotFileName) and name.is_manifest


def item_of_name(name: Name, path: bytes) -> Item | None:
    """Return the item of a name that is classified already."""
    match name:
        case ChunkName(digest=digest) | QuarantinedChunkName(digest=digest):
            return ChunkItem(digest)
        case SnapshotFileName(snapshot=snapshot):
            return snapshot
        case GroupFileName(group=group):
            return group
        case SnapshotDirectoryName() | GroupDirectoryName() | TypeDirectoryName() | NamespaceDirectoryName():
            return SubtreeItem(path.decode("ascii"))
        case StructureName():
            # Of all chunks it is told when they are to be compared; of a single directory of them nobody tells.
            return None if path.startswith(f"{CHUNKS_NAME}/".encode()) else SubtreeItem(path.decode("ascii"))
        case ForeignName():
            return _foreign_item(path)
        case InternalName():
            return None


def item_of_content(path: str) -> Item | None:
    """Return the item to which an object below `.cnt` belongs, by its datastore path."""
    namespace = path.removesuffix(f"/{NAMESPACE_MARKER_NAME}")
    return item_of(path.encode()) if namespace == path else NamespaceId.parse(namespace)


def _foreign_item(path: bytes) -> ForeignItem | None:
    """A foreign directory counts once, with all that stands in it, as it does when the tree is listed."""
    if path.partition(b"/")[0] == CHUNKS_NAME.encode():
        return None
    topmost = topmost_foreign(path)
    return None if topmost is None else ForeignItem(topmost)


def problem_name(item: Item) -> str:
    """Return the name under which it is noted that an item cannot be mirrored."""
    match item:
        case ChunkItem(digest=digest):
            return chunk_path(digest)
        case ForeignItem(path=path):
            return os.fsdecode(path)
        case SubtreeItem(path=path):
            # Not to be taken for the group or snapshot of the same path.
            return f"{path}/"
        case _:
            return item.path


def name_in_bucket(path: str) -> str:
    """Return the name under which it is noted that the object of a datastore path is damaged, and cannot be mended."""
    return f"{_IN_BUCKET}{path}"


def path_in_bucket(name: str) -> str | None:
    """Return the datastore path of an object of which that is noted under `name`, None for any other name."""
    path = name.removeprefix(_IN_BUCKET)
    return None if path == name else path


def item_of_problem(name: str) -> Item | None:
    """Return the item whose handling tells whether a problem still stands; None where handling nothing tells."""
    if path_in_bucket(name) is not None:
        return None
    if name.endswith("/"):
        return SubtreeItem(name.removesuffix("/"))
    path = os.fsencode(name)
    match classify(path):
        case SnapshotDirectoryName(snapshot=snapshot):
            return snapshot
        case GroupDirectoryName(group=group):
            return group
        case NamespaceDirectoryName(namespace=namespace):
            return namespace
    return item_of(path)
