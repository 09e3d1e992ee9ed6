"""What a datastore directory holds, read as plain files: which snapshots are finished, what belongs to them, which
chunks are there and sound."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import threading
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import formats
from tests.harness.formats import LOG_NAME, MANIFEST_NAME, FormatError
from tests.harness.names import (
    BACKUP_TYPES,
    BAD_CHUNK_NAME,
    CHUNK_NAME,
    GroupName,
    SnapshotName,
    chunk_path,
    is_namespace,
    namespace_path,
    parse_snapshot_time,
)


@dataclass(frozen=True, slots=True)
class FoundSnapshot:
    """A snapshot with a sound manifest and all files it lists. problems is empty when its chunks are sound too."""

    name: SnapshotName
    files: tuple[str, ...]
    chunks: frozenset[str]
    problems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FoundDatastore:
    """A datastore as it stands. Paths are relative to root.

    finished: every file and chunk is there and sound. damaged: there is a manifest, but something is wrong or
    missing (problems by path). Directories without a manifest are in neither. lacking_chunks are those of the
    damaged whose files are sound, so that their references are known. quarantined: digests of .bad files.
    """

    root: Path
    namespaces: tuple[str, ...]
    groups: tuple[GroupName, ...]
    finished: dict[str, FoundSnapshot]
    damaged: dict[str, tuple[str, ...]]
    lacking_chunks: dict[str, FoundSnapshot]
    quarantined: frozenset[str]

    def references(self) -> frozenset[str]:
        """Every digest that a snapshot with sound files names."""
        snapshots = (*self.finished.values(), *self.lacking_chunks.values())
        return frozenset[str]().union(*(snapshot.chunks for snapshot in snapshots))

    def content_paths(self, snapshot: FoundSnapshot) -> tuple[str, ...]:
        """The files of a snapshot that a mirror must have: manifest, listed files, client log, .protected."""
        extras = [name for name in (LOG_NAME, ".protected") if (self.root / snapshot.name.path / name).exists()]
        return tuple(f"{snapshot.name.path}/{name}" for name in (MANIFEST_NAME, *snapshot.files, *extras))

    def group_paths(self, group: GroupName) -> tuple[str, ...]:
        """owner and notes of a group, those that are there."""
        return tuple(f"{group.path}/{name}" for name in ("owner", "notes") if (self.root / group.path / name).exists())


@dataclass(slots=True)
class ChunkInspector:
    """Checks chunk files, each only once as long as inode, size and mtime stay. Any thread."""

    root: Path
    _known: dict[str, tuple[tuple[int, int, int], str | None]] = field(default_factory=dict)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def problem(self, digest: str) -> str | None:
        """What is wrong with a chunk file, or None."""
        path = self.root / chunk_path(digest)
        try:
            status = path.stat()
            identity = (status.st_ino, status.st_size, status.st_mtime_ns)
            with self._mutex:
                known = self._known.get(digest)
            if known is not None and known[0] == identity:
                return known[1]
            problem = None
            try:
                formats.check_chunk(path.read_bytes(), digest)
            except FormatError as error:
                problem = f"chunk {digest}: {error}"
        except FileNotFoundError:
            return f"chunk {digest} is missing"
        except OSError as error:
            return f"chunk {digest} cannot be read: {error.strerror}"
        with self._mutex:
            self._known[digest] = (identity, problem)
        return problem

    def forget_all_but(self, digests: Container[str]) -> None:
        """Keep no memory of chunks that are gone."""
        with self._mutex:
            for digest in [known for known in self._known if known not in digests]:
                del self._known[digest]

    def sizes(self) -> Iterator[tuple[str, int]]:
        """Digest and size in bytes of every chunk file, sound or not."""
        for entry in _chunk_entries(self.root):
            if CHUNK_NAME.match(entry.name):
                try:
                    yield entry.name, entry.stat().st_size
                except FileNotFoundError:
                    continue  # unlinked while we list


def quarantined_digests(root: Path) -> frozenset[str]:
    """Digests of which a .bad file is there."""
    names = (entry.name for entry in _chunk_entries(root))
    return frozenset(name.partition(".")[0] for name in names if BAD_CHUNK_NAME.match(name))


def _chunk_entries(root: Path) -> Iterator[os.DirEntry[str]]:
    for directory in os.scandir(root / ".chunks"):
        if directory.is_dir(follow_symlinks=False):
            yield from os.scandir(directory.path)


def scan_datastore(root: str | os.PathLike[str], inspector: ChunkInspector | None = None) -> FoundDatastore:
    """Read a datastore directory, every referenced chunk included. An inspector kept from the last time spares
    reading unchanged chunks again."""
    base = Path(root)
    chunks = inspector or ChunkInspector(base)
    namespaces = sorted(_namespaces(base, ""))
    groups = [group for namespace in ("", *namespaces) for group in _groups(base, namespace)]
    finished: dict[str, FoundSnapshot] = {}
    damaged: dict[str, tuple[str, ...]] = {}
    lacking_chunks: dict[str, FoundSnapshot] = {}
    for group in groups:
        for snapshot in _snapshots(base, group):
            found = _inspect_snapshot(base, snapshot, chunks)
            if isinstance(found, str):
                damaged[snapshot.path] = (found,)
            elif found.problems:
                damaged[snapshot.path] = found.problems
                lacking_chunks[snapshot.path] = found
            else:
                finished[snapshot.path] = found
    quarantined = quarantined_digests(base)
    return FoundDatastore(base, tuple(namespaces), tuple(groups), finished, damaged, lacking_chunks, quarantined)


def _namespaces(base: Path, namespace: str) -> Iterator[str]:
    for name in _directories(base / namespace_path(namespace) / "ns"):
        inner = f"{namespace}/{name}" if namespace else name
        if is_namespace(inner):
            yield inner
            yield from _namespaces(base, inner)


def _groups(base: Path, namespace: str) -> Iterator[GroupName]:
    for backup_type in BACKUP_TYPES:
        for name in _directories(base / namespace_path(namespace) / backup_type):
            try:
                yield GroupName(namespace, backup_type, name)
            except ValueError:
                continue  # not a group's name, so not a group


def _snapshots(base: Path, group: GroupName) -> Iterator[SnapshotName]:
    for name in _directories(base / group.path):
        time = parse_snapshot_time(name)
        if time is not None and (base / group.path / name / MANIFEST_NAME).exists():
            yield SnapshotName(group, time)


def _directories(path: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _inspect_snapshot(base: Path, name: SnapshotName, chunks: ChunkInspector) -> FoundSnapshot | str:
    """The snapshot, or what is wrong with its manifest or files."""
    directory = base / name.path
    try:
        listed = formats.manifest_files((directory / MANIFEST_NAME).read_bytes())
    except (FormatError, OSError) as error:
        return f"{MANIFEST_NAME}: {error}"
    digests: set[str] = set()
    for file in listed:
        try:
            digests.update(formats.check_listed_file(file, (directory / file.name).read_bytes()))
        except (FormatError, OSError) as error:
            return f"{file.name}: {error}"
    problems = tuple(filter(None, (chunks.problem(digest) for digest in sorted(digests))))
    return FoundSnapshot(name, tuple(file.name for file in listed), frozenset(digests), problems)


def scan_snapshot(root: str | os.PathLike[str], name: SnapshotName) -> FoundSnapshot:
    """One snapshot, its chunks read too. Raises FileNotFoundError where no manifest is, FormatError when the manifest
    or a listed file is damaged."""
    base = Path(root)
    if not (base / name.path / MANIFEST_NAME).exists():
        raise FileNotFoundError(errno.ENOENT, "there is no finished snapshot", name.path)
    found = _inspect_snapshot(base, name, ChunkInspector(base))
    if isinstance(found, str):
        raise FormatError(f"{name.path}: {found}")
    return found


def damaged_files(root: str | os.PathLike[str], snapshot: str) -> tuple[str, ...]:
    """Names of a snapshot's files that are there and do not pass their checks: the manifest, or what it lists."""
    directory = Path(root) / snapshot
    try:
        listed = formats.manifest_files((directory / MANIFEST_NAME).read_bytes())
    except FormatError:
        return (MANIFEST_NAME,)
    except OSError:
        return ()
    return tuple(file.name for file in listed if _does_not_pass(directory, file))


def lacks_files(root: str | os.PathLike[str], snapshot: str) -> bool:
    """Tell whether a snapshot's manifest is there, and a file that it lists is not."""
    directory = Path(root) / snapshot
    try:
        listed = formats.manifest_files((directory / MANIFEST_NAME).read_bytes())
    except (FormatError, OSError):
        return False
    return any(not (directory / file.name).exists() for file in listed)


def _does_not_pass(directory: Path, file: formats.ManifestFile) -> bool:
    try:
        formats.check_listed_file(file, (directory / file.name).read_bytes())
    except FormatError:
        return True
    except OSError:
        return False
    return False


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that is not the same in two datastores; path is relative to both."""

    path: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """The differences, and how much was found equal (bytes of both sides together count once)."""

    differences: tuple[Difference, ...]
    snapshots: int
    files: int
    chunks: int
    compared_bytes: int


def compare_datastores(
    left: str | os.PathLike[str],
    right: str | os.PathLike[str],
    *,
    ownership: bool = False,
    only: frozenset[str] | None = None,
) -> Comparison:
    """Compare byte for byte what matters of two datastores: finished snapshots with all their files, owners and
    notes of their groups, namespaces, and every chunk that they reference; with ownership also mode, uid and gid.

    left is the original: a group there without a finished snapshot may be missing in right. With only, the paths
    of snapshots, nothing else is looked at.
    """
    return _Comparer(scan_datastore(left), scan_datastore(right), ownership, only).run()


class _Comparer:
    def __init__(
        self, left: FoundDatastore, right: FoundDatastore, ownership: bool, only: frozenset[str] | None
    ) -> None:
        self._left, self._right, self._ownership, self._only = left, right, ownership, only
        self._differences: list[Difference] = []
        self._files = self._chunks = self._bytes = 0

    def run(self) -> Comparison:
        left, right = self._chosen(self._left), self._chosen(self._right)
        self._compare_names(set(left), set(right), "snapshot")
        if self._only is None:
            self._compare_names(set(self._left.namespaces), set(self._right.namespaces), "namespace")
        common = sorted(set(left) & set(right))
        for path in common:
            self._compare_files(set(self._left.content_paths(left[path])), set(self._right.content_paths(right[path])))
        for group in sorted({left[path].name.group for path in common}):
            self._compare_files(set(self._left.group_paths(group)), set(self._right.group_paths(group)))
        digests = frozenset[str]().union(*(left[path].chunks | right[path].chunks for path in common))
        for digest in sorted(digests):
            self._compare_file(chunk_path(digest))
        self._chunks = len(digests)
        return Comparison(tuple(self._differences), len(common), self._files - self._chunks, self._chunks, self._bytes)

    def _chosen(self, side: FoundDatastore) -> dict[str, FoundSnapshot]:
        for path, problems in side.damaged.items():
            if self._only is None or path in self._only:
                self._differences.append(Difference(path, f"damaged in {side.root}: {problems[0]}"))
        return {path: found for path, found in side.finished.items() if self._only is None or path in self._only}

    def _compare_names(self, left: set[str], right: set[str], kind: str) -> None:
        for path in sorted(left ^ right):
            side = self._left.root if path in left else self._right.root
            self._differences.append(Difference(path, f"this {kind} is only in {side}"))

    def _compare_files(self, left: set[str], right: set[str]) -> None:
        self._compare_names(left, right, "file")
        for path in sorted(left & right):
            self._compare_file(path)

    def _compare_file(self, path: str) -> None:
        one, other = self._left.root / path, self._right.root / path
        self._files += 1
        try:
            content, other_content = one.read_bytes(), other.read_bytes()
        except FileNotFoundError as error:
            self._differences.append(Difference(path, f"there is no {error.filename}"))
            return
        self._bytes += len(content)
        if content != other_content:
            self._differences.append(Difference(path, "the bytes differ"))
        if self._ownership and _ownership(one) != _ownership(other):
            self._differences.append(Difference(path, f"mode, uid, gid: {_ownership(one)} and {_ownership(other)}"))


def _ownership(path: Path) -> tuple[str, int, int]:
    status = path.stat()
    return stat.filemode(status.st_mode), status.st_uid, status.st_gid


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
