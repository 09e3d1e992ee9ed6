"""The path grammar of a datastore: identifiers of namespaces, groups and snapshots, and what each path is.

The rules are those of Proxmox Backup Server (``pbs-api-types``): identifiers and namespace components are
``[A-Za-z0-9_][A-Za-z0-9._-]*``, a snapshot directory is an RFC 3339 UTC time, namespaces nest up to seven
levels.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.quoting import quoted

BACKUP_TYPES = ("ct", "host", "vm")
MAXIMUM_NAMESPACE_DEPTH = 7
MANIFEST_NAME = "index.json.blob"
CLIENT_LOG_NAME = "client.log.blob"
PROTECTED_NAME = ".protected"
NAMESPACE_MARKER_NAME = ".namespace"
GROUP_FILE_NAMES = ("owner", "notes")
CHUNKS_NAME = ".chunks"

# One component is also one file name, so no longer than NAME_MAX of every Linux file system.
_COMPONENT = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,254}"
_TYPE = "|".join(BACKUP_TYPES)
_LISTED_FILE = r"(?=.{1,255}\Z)[A-Za-z0-9_][A-Za-z0-9._-]*\.(?:fidx|didx|blob)"

_component = re.compile(_COMPONENT)
_backup_time = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T(?:[01][0-9]|2[0-3])(?::[0-9]{2}){2}Z")
_listed_file = re.compile(_LISTED_FILE)
_snapshot_file = re.compile(rf"\.protected|{_LISTED_FILE}".encode())
_chunk = re.compile(rb"\.chunks/([0-9a-f]{4})/(\1[0-9a-f]{60})(?:\.([0-9])\.bad)?")
_chunk_directory = re.compile(rb"\.chunks(?:/[0-9a-f]{4})?")
# mkstemp's suffix is alphanumeric: `x.tmp_a.blob` is therefore a blob, `index.json.tmp_abc123` a temporary.
_internal = re.compile(rb"(?s:(?:.*/)?(?:[^/]+\.tmp(?:_(?:[A-Za-z0-9]{6}|fidx|didx))?|\.[^/]*\.lck))")
_namespaces = rf"(?:ns/{_COMPONENT}/){{0,{MAXIMUM_NAMESPACE_DEPTH}}}"
_below_type = re.compile(rf"({_namespaces})({_TYPE})(?:/({_COMPONENT})(?:/([^/]+)(?:/([^/]+))?)?)?".encode(), re.DOTALL)
_namespace = re.compile(rf"((?:ns/{_COMPONENT}/){{0,{MAXIMUM_NAMESPACE_DEPTH - 1}}})ns(?:/({_COMPONENT}))?".encode())


@dataclass(frozen=True, slots=True, order=True)
class NamespaceId:
    """A namespace by its components from the outside in; without components it is the root namespace."""

    components: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.components) > MAXIMUM_NAMESPACE_DEPTH:
            raise DatastoreError(
                f"namespace {quoted(self.components)} nests deeper than {MAXIMUM_NAMESPACE_DEPTH} levels"
            )
        for component in self.components:
            if not _component.fullmatch(component):
                raise DatastoreError(f"{quoted(component)} is not a valid namespace component")

    @classmethod
    def parse(cls, path: str) -> NamespaceId:
        """Read a path such as ``ns/a/ns/b`` (or ``""`` for the root); raises DatastoreError."""
        if not path:
            return cls()
        match classify(_ascii(path)):
            case NamespaceDirectoryName(namespace=namespace):
                return namespace
        raise DatastoreError(f"{quoted(path)} is not the path of a namespace")

    @property
    def path(self) -> str:
        """Where the namespace lies in the datastore: ``""`` or ``ns/a/ns/b``."""
        return "/".join(f"ns/{component}" for component in self.components)

    @property
    def parent(self) -> NamespaceId | None:
        """The namespace around this one; None for the root."""
        return NamespaceId(self.components[:-1]) if self.components else None

    @property
    def display(self) -> str:
        """The namespace as PBS shows it: ``a/b``, and ``""`` for the root."""
        return "/".join(self.components)

    def child(self, component: str) -> NamespaceId:
        """The namespace called ``component`` in this one; raises DatastoreError."""
        return NamespaceId((*self.components, component))

    def _below(self, tail: str) -> str:
        return f"{self.path}/{tail}" if self.components else tail


@dataclass(frozen=True, slots=True, order=True)
class GroupId:
    """A backup group: all snapshots of one virtual machine, container or host in one namespace."""

    namespace: NamespaceId
    backup_type: str
    backup_id: str

    def __post_init__(self) -> None:
        if self.backup_type not in BACKUP_TYPES:
            raise DatastoreError(f"{quoted(self.backup_type)} is not a backup type (vm, ct or host)")
        if not _component.fullmatch(self.backup_id):
            raise DatastoreError(f"{quoted(self.backup_id)} is not a valid backup id")

    @classmethod
    def parse(cls, path: str) -> GroupId:
        """Read a path such as ``ns/a/vm/100``; raises DatastoreError."""
        match classify(_ascii(path)):
            case GroupDirectoryName(group=group):
                return group
        raise DatastoreError(f"{quoted(path)} is not the path of a backup group")

    @property
    def path(self) -> str:
        """Where the group lies in the datastore, e.g. ``ns/a/vm/100``."""
        return self.namespace._below(f"{self.backup_type}/{self.backup_id}")


@dataclass(frozen=True, slots=True, order=True)
class SnapshotId:
    """One backup of a group, named by the time it began (UTC)."""

    group: GroupId
    backup_time: str

    def __post_init__(self) -> None:
        if not _is_backup_time(self.backup_time):
            raise DatastoreError(f"{quoted(self.backup_time)} is not a backup time such as 2026-11-22T10:00:00Z")

    @classmethod
    def parse(cls, path: str) -> SnapshotId:
        """Read a path such as ``ns/a/vm/100/2026-11-22T10:00:00Z``; raises DatastoreError."""
        match classify(_ascii(path)):
            case SnapshotDirectoryName(snapshot=snapshot):
                return snapshot
        raise DatastoreError(f"{quoted(path)} is not the path of a snapshot")

    @property
    def path(self) -> str:
        """Where the snapshot lies in the datastore."""
        return f"{self.group.path}/{self.backup_time}"

    @property
    def timestamp(self) -> int:
        """The backup time in seconds since 1970-01-01 UTC."""
        return int(datetime.fromisoformat(self.backup_time).timestamp())

    @property
    def manifest_path(self) -> str:
        """Where the manifest of the snapshot lies in the datastore."""
        return f"{self.path}/{MANIFEST_NAME}"

    @classmethod
    def at(cls, group: GroupId, timestamp: int) -> SnapshotId:
        """The snapshot of ``group`` that began ``timestamp`` seconds after 1970-01-01 UTC."""
        return cls(group, datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"))


@dataclass(frozen=True, slots=True)
class ChunkName:
    """A chunk: ``.chunks/<first four digits>/<64 hexadecimal digits>``."""

    digest: bytes

    @property
    def path(self) -> str:
        """Where the chunk lies in the datastore."""
        return chunk_path(self.digest)


@dataclass(frozen=True, slots=True)
class QuarantinedChunkName:
    """A chunk that verification found corrupt and renamed to ``<digest>.<number>.bad``."""

    digest: bytes
    number: int


@dataclass(frozen=True, slots=True)
class SnapshotFileName:
    """A finished file of a snapshot: manifest, index, blob or protection marker."""

    snapshot: SnapshotId
    filename: str

    @property
    def is_manifest(self) -> bool:
        """Whether this is the snapshot's ``index.json.blob``."""
        return self.filename == MANIFEST_NAME

    @property
    def path(self) -> str:
        """Where the file lies in the datastore."""
        return f"{self.snapshot.path}/{self.filename}"


@dataclass(frozen=True, slots=True)
class GroupFileName:
    """A group's ``owner`` or ``notes``."""

    group: GroupId
    filename: str

    @property
    def path(self) -> str:
        """Where the file lies in the datastore."""
        return f"{self.group.path}/{self.filename}"


@dataclass(frozen=True, slots=True)
class SnapshotDirectoryName:
    """The directory of a snapshot."""

    snapshot: SnapshotId


@dataclass(frozen=True, slots=True)
class GroupDirectoryName:
    """The directory of a group."""

    group: GroupId


@dataclass(frozen=True, slots=True)
class TypeDirectoryName:
    """The directory ``vm``, ``ct`` or ``host`` of a namespace."""

    namespace: NamespaceId
    backup_type: str


@dataclass(frozen=True, slots=True)
class NamespaceDirectoryName:
    """The directory of a namespace other than the root."""

    namespace: NamespaceId


@dataclass(frozen=True, slots=True)
class StructureName:
    """A directory that only holds others: the root, ``.chunks``, ``.chunks/xxxx``, a namespace's ``ns``."""


@dataclass(frozen=True, slots=True)
class InternalName:
    """A file PBS keeps for itself and never publishes: ``.lock``, ``.gc-status``, temporaries, lock files."""


@dataclass(frozen=True, slots=True)
class ForeignName:
    """A name that no PBS makes: passed through, never published."""


Name = (
    ChunkName
    | QuarantinedChunkName
    | SnapshotFileName
    | GroupFileName
    | SnapshotDirectoryName
    | GroupDirectoryName
    | TypeDirectoryName
    | NamespaceDirectoryName
    | StructureName
    | InternalName
    | ForeignName
)

_STRUCTURE = StructureName()
_INTERNAL = InternalName()
_FOREIGN = ForeignName()


def chunk_path(digest: bytes) -> str:
    """Where the chunk with this digest (32 bytes) lies in the datastore."""
    name = digest.hex()
    return f"{CHUNKS_NAME}/{name[:4]}/{name}"


def is_listed_file_name(filename: str) -> bool:
    """Whether a manifest may list a file of this name: an index or blob that is not the manifest itself."""
    return filename != MANIFEST_NAME and _listed_file.fullmatch(filename) is not None


def is_component(name: str) -> bool:
    """Whether ``name`` may be a backup id or a namespace component."""
    return _component.fullmatch(name) is not None


def is_final(name: Name) -> bool:
    """Whether the file of this name is part of the mirror: its content is to stand in the bucket."""
    return isinstance(name, ChunkName | SnapshotFileName | GroupFileName)


def classify(path: bytes) -> Name:
    """Say what ``path`` is, by its name alone: relative to the datastore, no leading slash, ``b""`` the root.

    Never raises. Where a directory is expected the grammar of directories wins: a group called ``web.tmp`` is
    a group. The same path always gives an equal answer, whatever kind of file stands there.
    """
    if path.startswith(b".chunks"):
        return _classify_chunk(path)
    match = _below_type.fullmatch(path)
    if match is not None:
        return _classify_below_type(path, match)
    if path in (b"", b"ns"):
        return _STRUCTURE
    match = _namespace.fullmatch(path)
    if match is not None:
        outer, component = match.groups()
        if component is None:
            return _STRUCTURE
        return NamespaceDirectoryName(_parse_namespaces(outer + b"ns/" + component + b"/"))
    if path in (b".lock", b".gc-status") or _internal.fullmatch(path):
        return _INTERNAL
    return _FOREIGN


def topmost_foreign(path: bytes) -> bytes | None:
    """The name that counts of a ``path`` that PBS does not make: itself, or the first on the way to it that PBS does
    not make either. All that lies in a foreign directory is one foreign name, however much it is.

    None for what is not foreign, or lies in something that PBS keeps for itself.
    """
    end = 0
    while end >= 0:
        end = path.find(b"/", end + 1)
        outer = path if end < 0 else path[:end]
        name = classify(outer)
        if isinstance(name, ForeignName):
            return outer
        if isinstance(name, InternalName):
            return None
    return None


def _classify_chunk(path: bytes) -> Name:
    match = _chunk.fullmatch(path)
    if match is not None:
        digest = bytes.fromhex(match[2].decode())
        return ChunkName(digest) if match[3] is None else QuarantinedChunkName(digest, int(match[3]))
    if _internal.fullmatch(path):
        return _INTERNAL
    return _STRUCTURE if _chunk_directory.fullmatch(path) else _FOREIGN


def _classify_below_type(path: bytes, match: re.Match[bytes]) -> Name:
    namespaces, backup_type, backup_id, third, fourth = match.groups()
    if backup_id is None:
        return TypeDirectoryName(_parse_namespaces(namespaces), backup_type.decode())
    if third is None:
        return GroupDirectoryName(_make_group(namespaces, backup_type, backup_id))
    snapshot = _make_snapshot(namespaces, backup_type, backup_id, third)
    if snapshot is not None:
        if fourth is None:
            return SnapshotDirectoryName(snapshot)
        if _snapshot_file.fullmatch(fourth):
            return SnapshotFileName(snapshot, fourth.decode())
    elif fourth is None and third in (b"owner", b"notes"):
        return GroupFileName(_make_group(namespaces, backup_type, backup_id), third.decode())
    return _INTERNAL if _internal.fullmatch(path) else _FOREIGN


# A backup writes thousands of times below few directories: their identifiers are made once.
@lru_cache(maxsize=1024)
def _parse_namespaces(path: bytes) -> NamespaceId:
    return NamespaceId(tuple(path.decode().split("/")[1::2]))


@lru_cache(maxsize=1024)
def _make_group(namespaces: bytes, backup_type: bytes, backup_id: bytes) -> GroupId:
    return GroupId(_parse_namespaces(namespaces), backup_type.decode(), backup_id.decode())


@lru_cache(maxsize=1024)
def _make_snapshot(namespaces: bytes, backup_type: bytes, backup_id: bytes, backup_time: bytes) -> SnapshotId | None:
    text = backup_time.decode("ascii", "replace")
    if not _is_backup_time(text):
        return None
    return SnapshotId(_make_group(namespaces, backup_type, backup_id), text)


def _is_backup_time(text: str) -> bool:
    if not _backup_time.fullmatch(text):
        return False
    try:
        datetime.fromisoformat(text)
    except ValueError:
        return False
    return True


def _ascii(path: str) -> bytes:
    # '?' is in no name of the grammar, so replacing cannot turn a malformed path into a good one.
    return path.encode("ascii", "replace")
