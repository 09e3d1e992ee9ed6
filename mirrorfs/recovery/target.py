"""The directory a datastore is restored into: only validated paths, relative to descriptors, following no
symbolic link.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import os
import secrets
import stat
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from mirrorfs import own_files
from mirrorfs.datastore.blob import check_chunk, check_encryption
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.json_input import parse_json
from mirrorfs.datastore.names import CHUNKS_NAME, MANIFEST_NAME, SnapshotId, chunk_path
from mirrorfs.datastore.tree import Tree
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.ownership import Owner
from mirrorfs.recovery.source import View

MARKER_NAME = ".mirrorfs-restore.json"
CHUNK_DIRECTORIES = 65536
_MARKER_FORMAT = 2
# The year 10000, which no date can be of.
_END_OF_TIME = 253402300800
_TEMPORARY_PREFIX = ".mirrorfs-"
_TEMPORARY_SUFFIX = ".tmp"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_MAGIC_SIZE = 8
# A million snapshots take about so much.
_LONGEST_MARKER = 64 * 1024 * 1024
_MOST_MARKER_VALUES = 1_000_000
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# What mkfs leaves in the root of a fresh ext4 file system: no reason to call that directory used.
_ALLOWED_IN_EMPTY = frozenset({"lost+found"})
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class _Marker:
    """What an unfinished restore notes in its target: where from, how that was looked at, and which snapshots it may
    have begun.
    """

    url: str
    view: View
    snapshots: frozenset[SnapshotId]

    def encode(self) -> bytes:
        value = {
            "format": _MARKER_FORMAT,
            "url": self.url,
            "as_of": self.view.as_of,
            "deleted": self.view.deleted,
            "snapshots": sorted(snapshot.path for snapshot in self.snapshots),
        }
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, data: bytes) -> _Marker:
        """Raises ValueError or DatastoreError."""
        match parse_json(data, maximum_size=_LONGEST_MARKER, most_values=_MOST_MARKER_VALUES):
            case {
                "format": 2,
                "url": str(url),
                "as_of": None | float() | int() as as_of,
                "deleted": bool(deleted),
                "snapshots": list(paths),
            } if as_of is None or 0 <= as_of < _END_OF_TIME:
                return cls(url, View(as_of, deleted), _parse_snapshots(paths))
            # Written before there were views.
            case {"format": 1, "url": str(url), "snapshots": list(paths)}:
                return cls(url, View(), _parse_snapshots(paths))
        raise ValueError


def _parse_snapshots(paths: Iterable[object]) -> frozenset[SnapshotId]:
    return frozenset(SnapshotId.parse(str(path)) for path in paths)


class Target:
    """An open, locked target. Every method raises RestoreError; the blocking ones belong into threads.

    Files are made as PBS makes them: complete under a temporary name, mode 0644, then renamed. Several
    threads may write at once, each another path.
    """

    def __init__(self, path: Path, descriptor: int, owner: Owner, marker: _Marker, *, is_resumed: bool) -> None:
        """Use `open_target`."""
        self.path = path
        self.is_resumed = is_resumed
        self.tree = Tree(descriptor)
        self._root = descriptor
        self._owner = owner
        self._marker = marker

    def prepare(self, snapshots: Iterable[SnapshotId]) -> None:
        """Note what is going to be restored, and make the frame of a datastore: `.lock` and `.chunks` with
        all its directories. What an interrupted restore left of other snapshots is removed.
        """
        wanted = frozenset(snapshots)
        abandoned = self._marker.snapshots - wanted
        self._marker = replace(self._marker, snapshots=self._marker.snapshots | wanted)
        self.write_file(MARKER_NAME, self._marker.encode())
        with self._explaining("prepare"):
            os.fchmod(self._root, 0o755)
            self._give(self._root)
            if self.is_resumed:
                self._remove_temporaries()
            self._make_chunk_directories()
        for snapshot in sorted(abandoned):
            self.remove_snapshot(snapshot)
        self.write_file(".lock", b"")

    def make_directory(self, path: str) -> None:
        """Make a directory of the datastore, with those above it, where it is not there yet."""
        with self._explaining(path):
            os.close(self._open_directory(path))

    def write_file(self, path: str, data: bytes) -> None:
        """Put a whole file in place, with the directories above it."""
        parent, _, name = path.rpartition("/")
        with self._explaining(path):
            directory = self._open_directory(parent)
            try:
                self._replace(directory, name, data)
            finally:
                os.close(directory)

    def write_chunk(self, digest: bytes, data: bytes) -> None:
        """Put a chunk in place, unchecked."""
        self.write_file(chunk_path(digest), data)

    def missing_chunks(self, digests: Iterable[bytes], *, are_encrypted: bool) -> list[bytes]:
        """Which of these are not there. Those that are were checked: on the way in, or when a restore
        resumed; but perhaps for another backup, so raises BlobError where one is encrypted that must not be, or the
        reverse.
        """
        with self._explaining(CHUNKS_NAME):
            chunks = self._open_directory(CHUNKS_NAME)
            try:
                return [digest for digest in digests if not _has_chunk(chunks, digest, is_encrypted=are_encrypted)]
            finally:
                os.close(chunks)

    def read(self, path: str) -> bytes | None:
        """What stands at `path`; None when there is no regular file."""
        with self._explaining(path):
            try:
                return self.tree.read(path)
            except (FileNotFoundError, DatastoreError):
                return None

    def check_chunk_directories(self, numbers: Iterable[int]) -> int:
        """Read and check the chunks that an interrupted restore left in these directories of `.chunks`;
        removes damaged ones and leftover temporaries. Returns how many chunks are good.
        """
        with self._explaining(CHUNKS_NAME):
            chunks = self._open_directory(CHUNKS_NAME)
            try:
                return sum(self._check_chunk_directory(chunks, number) for number in numbers)
            finally:
                os.close(chunks)

    def keep_only(self, snapshot: SnapshotId, filenames: Collection[str]) -> None:
        """Begin a snapshot: remove all that an interrupted restore left of it but these files; its manifest
        first.
        """
        with self._explaining(snapshot.path):
            if not self.tree.exists(snapshot.path):
                return
            directory = self._open_directory(snapshot.path)
            try:
                _remove_files(directory, keep=filenames)
            finally:
                os.close(directory)

    def remove_snapshot(self, snapshot: SnapshotId) -> None:
        """Remove what was restored of a snapshot."""
        self.keep_only(snapshot, ())
        with self._explaining(snapshot.path):
            if not self.tree.exists(snapshot.path):
                return
            parent = self._open_directory(snapshot.group.path)
            try:
                os.rmdir(snapshot.backup_time, dir_fd=parent)
            finally:
                os.close(parent)

    def synchronize(self) -> None:
        """Return when everything written is on stable storage."""
        with self._explaining("synchronize"):
            if _libc.syncfs(self._root) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number))

    def finish(self) -> None:
        """Make all durable and take the mark of an unfinished restore away."""
        self.synchronize()
        with self._explaining(MARKER_NAME):
            os.unlink(MARKER_NAME, dir_fd=self._root)
            os.fsync(self._root)

    def _make_chunk_directories(self) -> None:
        chunks = self._open_directory(CHUNKS_NAME)
        try:
            for number in range(CHUNK_DIRECTORIES):
                os.close(self._enter_directory(chunks, f"{number:04x}", 0o750))
        finally:
            os.close(chunks)

    def _check_chunk_directory(self, chunks: int, number: int) -> int:
        directory = self._enter_directory(chunks, f"{number:04x}", 0o750)
        try:
            # Most are empty when a restore was interrupted early.
            if not os.listdir(directory):
                return 0
            _remove_temporaries(directory)
            good = 0
            for digest in self.tree.chunk_directory(number):
                if _is_good_chunk(self.tree.read_chunk(digest), digest):
                    good += 1
                else:
                    os.unlink(digest.hex(), dir_fd=directory)
            return good
        finally:
            os.close(directory)

    def _open_directory(self, path: str) -> int:
        """Open a directory, making what is missing; the descriptor is the caller's to close."""
        mode = 0o750 if path.startswith(CHUNKS_NAME) else 0o755
        descriptor = os.dup(self._root)
        for component in path.split("/") if path else ():
            try:
                following = self._enter_directory(descriptor, component, mode)
            finally:
                os.close(descriptor)
            descriptor = following
        return descriptor

    def _enter_directory(self, parent: int, name: str, mode: int) -> int:
        is_new = True
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            is_new = False
        descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=parent)
        try:
            # An interrupted restore may have stopped right after the mkdir.
            if is_new or self.is_resumed:
                os.fchmod(descriptor, mode)
                self._give(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def _replace(self, directory: int, name: str, data: bytes) -> None:
        temporary = f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=directory)
        try:
            try:
                _write_all(descriptor, data)
                os.fchmod(descriptor, 0o644)
                self._give(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(temporary, dir_fd=directory)
            raise

    def _give(self, descriptor: int) -> None:
        os.fchown(descriptor, self._owner.user, self._owner.group)

    def _remove_temporaries(self) -> None:
        for path, directories, _, descriptor in os.fwalk(".", dir_fd=self._root):
            if path == "." and CHUNKS_NAME in directories:
                # Its directories are cleared when their chunks are checked.
                directories.remove(CHUNKS_NAME)
            _remove_temporaries(descriptor)

    @contextlib.contextmanager
    def _explaining(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RestoreError(f"Could not restore {path} in {self.path}: {_reason(error)}") from error


@contextlib.contextmanager
def open_target(path: Path, url: str, owner: Owner, view: View) -> Iterator[Target]:
    """Open the directory to restore into; it is made when it does not exist, and closed at the end of the
    context.

    Nothing is written yet. Raises RestoreError when it is not empty and not what an interrupted restore of
    the same `url` and `view` left, when another restore is running in it, when this process cannot give files to
    `owner`, and when somebody else than root and the owner could lead the restore elsewhere, or change what is in it.
    """
    if os.geteuid() != 0 and owner != Owner(os.geteuid(), os.getegid()):
        raise RestoreError(f"Only root can give files to user {owner.user}; run as root or choose another --owner.")
    descriptor = _open_root(path)
    try:
        _check_own(descriptor, path, owner)
        _lock(descriptor, path)
        marker = _read_marker(descriptor, path, url, view)
        yield Target(path, descriptor, owner, marker or _Marker(url, view, frozenset()), is_resumed=marker is not None)
    finally:
        os.close(descriptor)


def _open_root(path: Path) -> int:
    try:
        return own_files.open_directory(str(path))
    except own_files.NotOwn as error:
        raise RestoreError(f"Cannot restore into {path}: {error}.") from error
    except OSError as error:
        raise RestoreError(f"Cannot restore into {path}: {error.strerror}.") from error


def _check_own(descriptor: int, path: Path, owner: Owner) -> None:
    """Make sure that nobody but root and the owner of what is restored can put anything into the target."""
    try:
        own_files.check_directory(str(path), descriptor, owners=(owner.user,), groups=(owner.group,))
        own_files.check_file(MARKER_NAME, directory=descriptor, owners=(owner.user,))
    except own_files.NotOwn as error:
        raise RestoreError(f"Cannot restore into {path}: {error}.") from error


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RestoreError(f"Another process is restoring into {path}, or has locked it.") from None


def _read_marker(descriptor: int, path: Path, url: str, view: View) -> _Marker | None:
    try:
        marker = _Marker.decode(Tree(descriptor).read(MARKER_NAME, maximum_size=_LONGEST_MARKER))
    except FileNotFoundError:
        if set(os.listdir(descriptor)) - _ALLOWED_IN_EMPTY:
            raise RestoreError(
                f"{path} is not empty, and not what an interrupted restore left. Restore into an empty directory."
            ) from None
        return None
    except (OSError, ValueError, DatastoreError):
        raise RestoreError(f"{MARKER_NAME} in {path} cannot be understood. Restore into an empty directory.") from None
    if (marker.url, marker.view) != (url, view):
        raise RestoreError(
            f"{path} holds an interrupted restore: mirrorfs restore {marker.url} {path}{marker.view.options}. "
            "Go on with that one, or restore into an empty directory."
        )
    return marker


def _write_all(descriptor: int, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _remove_temporaries(directory: int) -> None:
    for name in os.listdir(directory):
        if name.startswith(_TEMPORARY_PREFIX) and name.endswith(_TEMPORARY_SUFFIX):
            os.unlink(name, dir_fd=directory)


def _remove_files(directory: int, *, keep: Collection[str]) -> None:
    names = sorted(os.listdir(directory), key=lambda name: name != MANIFEST_NAME)
    for name in names:
        if name not in keep:
            os.unlink(name, dir_fd=directory)


def _has_chunk(chunks: int, digest: bytes, *, is_encrypted: bool) -> bool:
    name = digest.hex()
    try:
        descriptor = os.open(f"{name[:4]}/{name}", _READ_FLAGS, dir_fd=chunks)
    except FileNotFoundError:
        return False
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        # A link that somebody has planted; the chunk takes its place.
        return False
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        check_encryption(os.read(descriptor, _MAGIC_SIZE), digest, is_encrypted=is_encrypted)
    finally:
        os.close(descriptor)
    return True


def _is_good_chunk(data: bytes, digest: bytes) -> bool:
    try:
        check_chunk(data, digest, content=True)
    except DatastoreError:
        return False
    return True


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return (
            "a symbolic link or file stands where a directory must be. Remove it, or restore into an empty directory."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}. Make room and run the same command again: it goes on where it stopped."
    return f"{error.strerror}. Run the same command again when that is repaired: it goes on where it stopped."
