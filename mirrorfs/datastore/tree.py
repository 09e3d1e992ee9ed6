"""Reading a datastore below a directory descriptor, following no symbolic link and using no unknown name."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from mirrorfs.datastore.content import LARGEST_IN_MEMORY, Content, Spool
from mirrorfs.datastore.errors import DatastoreError, contained
from mirrorfs.datastore.limits import LONGEST_CHUNK, longest_file
from mirrorfs.datastore.names import (
    BACKUP_TYPES,
    CHUNKS_NAME,
    MAXIMUM_NAMESPACE_DEPTH,
    ChunkName,
    ForeignName,
    GroupId,
    InternalName,
    NamespaceId,
    QuarantinedChunkName,
    SnapshotDirectoryName,
    SnapshotFileName,
    SnapshotId,
    chunk_path,
    classify,
    is_component,
    is_final,
)
from mirrorfs.datastore.quoting import quoted

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: the open of a planted FIFO must not wait for a writer.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_READ_SIZE = 16 * 1024 * 1024
_SPOOLED_AT_ONCE = 1024 * 1024
# Of an index that is its header.
_BEGINNING_SIZE = 4096
_WRONG_KIND = (errno.ENOTDIR, errno.ELOOP, errno.ENXIO)

QUARANTINE_NUMBERS = range(10)
"""How PBS numbers the corrupt copies of a chunk."""

_CHUNK_DIRECTORY = re.compile("[0-9a-f]{4}")

Unreadable = Callable[[str, OSError], None]
"""Told of each directory (its path in the datastore) that the file system refuses to list, and why."""

CheckBeginning = Callable[[bytes, int], None]
"""Given the first bytes of a file (4,096 where there are so many) and its length, before the rest is read; raises
DatastoreError where they tell that the rest is not worth reading.
"""


class WrongKindError(DatastoreError):
    """A symbolic link, or another kind of file than expected, stands on or at the end of a path."""


@dataclass(frozen=True, slots=True)
class ChunkFile:
    """A chunk in the datastore: the size of its file in bytes, None when there is none, and whether a corrupt copy of
    it stands in quarantine.
    """

    size: int | None
    is_quarantined: bool


@dataclass(frozen=True, slots=True)
class ChunkFiles:
    """What stands in a chunk directory: the sizes of its chunks in bytes, None where the disk fails to tell, and which
    have a copy in quarantine.
    """

    sizes: dict[bytes, int | None] = field(default_factory=dict)
    quarantined: set[bytes] = field(default_factory=set)


class Tree:
    """A datastore below ``root_descriptor``, which stays the caller's to close. Usable from several threads
    at once.

    Listings are sorted and tolerate concurrent changes: what vanishes meanwhile is left out. OSError is
    raised for anything else the file system answers, unless a listing is given `unreadable`: then that is
    called, and the listing goes on with the next directory.
    """

    def __init__(self, root_descriptor: int) -> None:
        self._root = root_descriptor

    def namespaces(self, unreadable: Unreadable | None = None) -> Iterator[NamespaceId]:
        """All namespaces, the root first, each before those inside it."""
        yield from self._namespaces_below(NamespaceId(), unreadable)

    def groups(self, namespace: NamespaceId, unreadable: Unreadable | None = None) -> Iterator[GroupId]:
        """The groups directly in ``namespace``."""
        for backup_type in BACKUP_TYPES:
            for name in self._subdirectories(_join(namespace.path, backup_type), unreadable):
                if is_component(name):
                    yield GroupId(namespace, backup_type, name)

    def snapshots(self, group: GroupId, unreadable: Unreadable | None = None) -> Iterator[SnapshotId]:
        """The snapshots of ``group``, oldest first, finished or not."""
        for name in self._subdirectories(group.path, unreadable):
            match classify(os.fsencode(f"{group.path}/{name}")):
                case SnapshotDirectoryName(snapshot=snapshot):
                    yield snapshot

    def snapshot_files(self, snapshot: SnapshotId) -> tuple[str, ...]:
        """The names of the regular files in the snapshot's directory that PBS gives to finished files."""
        return tuple(
            name
            for name, mode in self._entries(snapshot.path)
            if stat.S_ISREG(mode) and isinstance(classify(os.fsencode(f"{snapshot.path}/{name}")), SnapshotFileName)
        )

    def read(self, path: str, *, maximum_size: int | None = None) -> bytes:
        """The content of the regular file at ``path``, which may have ``maximum_size`` bytes; those that a file of its
        name may have, where that is not said.

        Raises FileNotFoundError when it is not there, WrongKindError when something else than a regular file
        or, on the way, than a directory stands there, and DatastoreError when it is larger.
        """
        return bytes(self.read_content(path, maximum_size=maximum_size))

    def read_content(
        self, path: str, *, maximum_size: int | None = None, check_beginning: CheckBeginning | None = None
    ) -> Content:
        """As `read`, for what may be too large for memory; raises also what ``check_beginning`` does."""
        maximum = longest_file(path) if maximum_size is None else maximum_size
        with self._parent(path) as (directory, name):
            return _read_in(directory, name, path, maximum, check_beginning)

    def read_chunk(self, digest: bytes) -> bytes:
        """The chunk with this digest, unchecked; raises as `read` does, also when it is larger than any chunk."""
        return self.read(chunk_path(digest), maximum_size=LONGEST_CHUNK)

    def read_chunk_unless_quarantined(self, digest: bytes) -> bytes | None:
        """As `read_chunk`, but None where a copy of the chunk stands in quarantine."""
        path = chunk_path(digest)
        with self._parent(path) as (directory, name):
            data = _read_in(directory, name, path, LONGEST_CHUNK)
            # In this order: what is being quarantined is seen under one name at least.
            return None if _is_quarantined(directory, name) else bytes(data)

    def chunk_size(self, digest: bytes) -> int | None:
        """The size in bytes of the chunk's file; None when there is none."""
        status = self._status(chunk_path(digest))
        return status.st_size if status is not None and stat.S_ISREG(status.st_mode) else None

    def modified(self, path: str) -> float | None:
        """When the regular file at ``path`` was last changed, in Unix time; None when there is none."""
        status = self._status(path)
        return status.st_mtime if status is not None and stat.S_ISREG(status.st_mode) else None

    def chunk(self, digest: bytes) -> ChunkFile:
        """What stands under the name of a chunk, and under its names in quarantine."""
        path = chunk_path(digest)
        try:
            with self._parent(path) as (directory, name):
                size = _size_of_file(directory, name)
                # In this order, see above.
                return ChunkFile(size, _is_quarantined(directory, name))
        except (FileNotFoundError, WrongKindError):
            return ChunkFile(None, is_quarantined=False)

    def exists(self, path: str) -> bool:
        """Whether a regular file or a directory stands at ``path``."""
        status = self._status(path)
        return status is not None and (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode))

    def is_directory(self, path: str) -> bool:
        """Whether a directory stands at ``path``."""
        status = self._status(path)
        return status is not None and stat.S_ISDIR(status.st_mode)

    def is_taken(self, path: str) -> bool:
        """Whether anything at all stands at ``path``."""
        return self._status(path) is not None

    def chunk_directories(self) -> set[int]:
        """The numbers under whose names anything stands in ``.chunks``. Raises OSError when that cannot be listed."""
        return {int(name, 16) for name, _ in self._entries(CHUNKS_NAME) if _CHUNK_DIRECTORY.fullmatch(name)}

    def chunk_directory(self, number: int) -> list[bytes]:
        """The digests of the chunks in ``.chunks/<number as four hexadecimal digits>``, in no order."""
        prefix = f"{CHUNKS_NAME}/{number:04x}/".encode()
        digests = []
        with self._scan(prefix.decode().rstrip("/")) as entries:
            for entry in entries:
                name = classify(prefix + os.fsencode(entry.name))
                if isinstance(name, ChunkName) and entry.is_file(follow_symlinks=False):
                    digests.append(name.digest)
        return digests

    def chunk_files(self, number: int) -> ChunkFiles:
        """What stands in ``.chunks/<number as four hexadecimal digits>``. Looks at the inode of each chunk."""
        prefix = f"{CHUNKS_NAME}/{number:04x}/".encode()
        files = ChunkFiles()
        with self._scan(prefix.decode().rstrip("/")) as entries:
            for entry in entries:
                match classify(prefix + os.fsencode(entry.name)):
                    case ChunkName(digest=digest) if entry.is_file(follow_symlinks=False):
                        try:
                            files.sizes[digest] = entry.stat(follow_symlinks=False).st_size
                        except FileNotFoundError:
                            continue
                        except OSError:
                            files.sizes[digest] = None
                    case QuarantinedChunkName(digest=digest) if entry.is_file(follow_symlinks=False):
                        files.quarantined.add(digest)
        return files

    def foreign(self, below: str = "", unreadable: Unreadable | None = None) -> Iterator[bytes]:
        """The paths in the directory ``below``, outside ``.chunks``, of what PBS did not make: malformed names,
        and well-named entries of the wrong kind (a symbolic link in the place of a file, a file in the place of
        a group). What stands in a foreign directory is not listed.
        """
        yield from self._foreign_below(below, unreadable)

    def _namespaces_below(self, namespace: NamespaceId, unreadable: Unreadable | None) -> Iterator[NamespaceId]:
        yield namespace
        if len(namespace.components) == MAXIMUM_NAMESPACE_DEPTH:
            return
        for name in self._subdirectories(_join(namespace.path, "ns"), unreadable):
            if is_component(name):
                yield from self._namespaces_below(namespace.child(name), unreadable)

    def _foreign_below(self, directory: str, unreadable: Unreadable | None) -> Iterator[bytes]:
        for entry, mode in self._entries(directory, unreadable):
            path = _join(directory, entry)
            name = classify(os.fsencode(path))
            if isinstance(name, InternalName) or (path == CHUNKS_NAME and stat.S_ISDIR(mode)):
                continue
            expected = stat.S_ISREG if is_final(name) else stat.S_ISDIR
            if isinstance(name, ForeignName) or not expected(mode):
                yield os.fsencode(path)
            elif stat.S_ISDIR(mode):
                yield from self._foreign_below(path, unreadable)

    def _subdirectories(self, path: str, unreadable: Unreadable | None) -> list[str]:
        return [name for name, mode in self._entries(path, unreadable) if stat.S_ISDIR(mode)]

    def _entries(self, path: str, unreadable: Unreadable | None = None) -> list[tuple[str, int]]:
        """Names and file types (as in st_mode) of a directory, sorted; [] when there is no directory."""
        try:
            with self._scan(path) as entries:
                return sorted((entry.name, _entry_type(entry)) for entry in entries)
        except OSError as error:
            if unreadable is None:
                raise
            unreadable(path, error)
            return []

    @contextlib.contextmanager
    def _scan(self, path: str) -> Iterator[Iterator[os.DirEntry[str]]]:
        try:
            descriptor = self._open_directory(path)
        except (FileNotFoundError, WrongKindError):
            yield iter(())
            return
        try:
            with os.scandir(descriptor) as entries:
                yield entries
        finally:
            os.close(descriptor)

    def _status(self, path: str) -> os.stat_result | None:
        try:
            with self._parent(path) as (directory, name):
                return os.stat(name, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, WrongKindError):
            return None

    @contextlib.contextmanager
    def _parent(self, path: str) -> Iterator[tuple[int, str]]:
        parent, _, name = path.rpartition("/")
        _check_component(name, path)
        descriptor = self._open_directory(parent)
        try:
            yield descriptor, name
        finally:
            os.close(descriptor)

    def _open_directory(self, path: str) -> int:
        """Open ``path`` component by component; the descriptor returned is the caller's to close."""
        if not path:
            return _open(".", _DIRECTORY_FLAGS, self._root)
        descriptor = self._root
        for component in path.split("/"):
            try:
                _check_component(component, path)
                with _reporting(path):
                    following = _open(component, _DIRECTORY_FLAGS, descriptor)
            finally:
                if descriptor != self._root:
                    os.close(descriptor)
            descriptor = following
        return descriptor


def _size_of_file(directory: int, name: str) -> int | None:
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _is_quarantined(directory: int, name: str) -> bool:
    copies = (_size_of_file(directory, f"{name}.{number}.bad") for number in QUARANTINE_NUMBERS)
    return any(size is not None for size in copies)


def _open(name: str, flags: int, directory: int) -> int:
    """Open without moving the access time, by which PBS's garbage collection tells used chunks from unused ones."""
    try:
        return os.open(name, flags | os.O_NOATIME, dir_fd=directory)
    except PermissionError:
        # O_NOATIME is for the owner and root only.
        return os.open(name, flags, dir_fd=directory)


def _read_in(
    directory: int, name: str, path: str, maximum: int, check_beginning: CheckBeginning | None = None
) -> Content:
    with _reporting(path), contained(f"{path} takes too much memory"):
        descriptor = _open(name, _FILE_FLAGS, directory)
        try:
            return _read_regular(descriptor, path, maximum, check_beginning)
        finally:
            os.close(descriptor)


def _read_regular(descriptor: int, path: str, maximum: int, check_beginning: CheckBeginning | None) -> Content:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise WrongKindError(f"{path} is not a regular file")
    if status.st_size > maximum:
        raise DatastoreError(f"{path} is larger than {maximum} bytes")
    if check_beginning is not None:
        check_beginning(os.pread(descriptor, _BEGINNING_SIZE, 0), status.st_size)
    spool = Spool(announced=status.st_size)
    largest = _READ_SIZE if status.st_size <= LARGEST_IN_MEMORY else _SPOOLED_AT_ONCE
    while piece := os.read(descriptor, min(largest, max(1, status.st_size - spool.length + 1))):
        spool.add(piece)
        if spool.length > maximum:
            raise DatastoreError(f"{path} is larger than {maximum} bytes")
    return spool.content()


@contextlib.contextmanager
def _reporting(path: str) -> Iterator[None]:
    """Turn the answers for a symbolic link or another wrong kind of file into WrongKindError."""
    try:
        yield
    except OSError as error:
        # ENOTDIR and ELOOP: a link or file in the place of a directory; ENXIO: a socket or an empty FIFO.
        if error.errno in _WRONG_KIND:
            raise WrongKindError(f"{path} leads over something that is no directory or regular file") from error
        raise


def _entry_type(entry: os.DirEntry[str]) -> int:
    if entry.is_symlink():
        return stat.S_IFLNK
    if entry.is_dir(follow_symlinks=False):
        return stat.S_IFDIR
    return stat.S_IFREG if entry.is_file(follow_symlinks=False) else stat.S_IFCHR


def _check_component(component: str, path: str) -> None:
    if component in ("", ".", "..") or "\0" in component:
        raise DatastoreError(f"{quoted(path)} is not a path in a datastore")


def _join(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name
