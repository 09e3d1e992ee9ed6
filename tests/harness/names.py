"""Names in a datastore's tree: namespaces, groups, snapshots, chunks, temporary files."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from datetime import UTC, datetime

BACKUP_TYPES = ("vm", "ct", "host")
CHUNK_NAME = re.compile(r"[0-9a-f]{64}\Z")
BAD_CHUNK_NAME = re.compile(r"[0-9a-f]{64}\.[0-9]\.bad\Z")
_SNAPSHOT_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z\Z")
# One part is one file name, so it ends where the file system's names do.
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._\-]{0,254}\Z")
_DEEPEST_NAMESPACE = 7


def namespace_path(namespace: str) -> str:
    """The directory of a namespace written a/b, relative to the datastore: ns/a/ns/b (empty for the root)."""
    return "/".join(f"ns/{name}" for name in namespace.split("/")) if namespace else ""


def is_name_part(name: str) -> bool:
    """Whether a name may be that of a namespace or a backup id."""
    return _PART.match(name) is not None


def is_namespace(namespace: str) -> bool:
    """Whether text written a/b may name a namespace other than the root: each part in the grammar, seven at most."""
    parts = namespace.split("/")
    return len(parts) <= _DEEPEST_NAMESPACE and all(is_name_part(part) for part in parts)


def chunk_path(digest: str) -> str:
    """A chunk's path, relative to the datastore (and to a bucket's prefix: the layout is the same)."""
    return f".chunks/{digest[:4]}/{digest}"


def is_below(path: str, scope: str) -> bool:
    """Whether a path is a scope (a snapshot, group or namespace) or lies in it; the empty scope is everything."""
    return not scope or path == scope or path.startswith(f"{scope}/")


def temporary_stem(final_name: str) -> str:
    """What mkostemp's suffix is put behind: the name without its last extension (index.json.blob -> index.json)."""
    return os.path.splitext(final_name)[0]


@dataclass(frozen=True, slots=True, order=True)
class GroupName:
    """A backup group. namespace is written a/b and empty for the root namespace."""

    namespace: str
    backup_type: str
    backup_id: str

    def __post_init__(self) -> None:
        if self.namespace and not is_namespace(self.namespace):
            raise ValueError(f"not a namespace: {self.namespace}")
        if self.backup_type not in BACKUP_TYPES or not is_name_part(self.backup_id):
            raise ValueError(f"not a group: {self.backup_type}/{self.backup_id}")

    @classmethod
    def parse(cls, text: str, namespace: str = "") -> GroupName:
        """From TYPE/ID. Raises ValueError."""
        backup_type, _, backup_id = text.partition("/")
        return cls(namespace, backup_type, backup_id)

    @property
    def path(self) -> str:
        """Relative to the datastore."""
        return "/".join(filter(None, (namespace_path(self.namespace), self.backup_type, self.backup_id)))


@dataclass(frozen=True, slots=True, order=True)
class SnapshotName:
    """A snapshot; time is the Unix time that its directory's name tells."""

    group: GroupName
    time: int

    @property
    def directory(self) -> str:
        return datetime.fromtimestamp(self.time, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

    @property
    def path(self) -> str:
        """Relative to the datastore."""
        return f"{self.group.path}/{self.directory}"


def parse_snapshot_time(name: str) -> int | None:
    """The Unix time that a snapshot directory's name tells, or None for any other name."""
    if not _SNAPSHOT_TIME.match(name):
        return None
    try:
        return int(datetime.strptime(name, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp())
    except ValueError:
        return None


def parse_snapshot_path(path: str) -> SnapshotName:
    """From [ns/NAME/]*TYPE/ID/TIME. Raises ValueError."""
    parts = path.strip("/").split("/")
    namespaces: list[str] = []
    while len(parts) > 3 and parts[0] == "ns":
        namespaces.append(parts[1])
        parts = parts[2:]
    time = parse_snapshot_time(parts[2]) if len(parts) == 3 else None
    if time is None:
        raise ValueError(f"not a snapshot: {path}")
    return SnapshotName(GroupName("/".join(namespaces), parts[0], parts[1]), time)
