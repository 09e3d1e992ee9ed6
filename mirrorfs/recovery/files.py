"""Writing the files of a datastore below a directory descriptor: only validated paths, following no symbolic link."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import stat
from collections.abc import Collection, Iterator
from pathlib import Path

from mirrorfs.datastore.content import Content, pieces_of
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.names import CHUNKS_NAME, MANIFEST_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.ownership import Owner

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_TEMPORARY_PREFIX = ".mirrorfs-"
_TEMPORARY_SUFFIX = ".tmp"
_DIRECTORY_MODE = 0o755
_FILE_MODE = 0o644
_libc = ctypes.CDLL(None, use_errno=True)


class Files:
    """Files below `root`, which stays the caller's to close. Every method raises RestoreError and may block.

    They are made as PBS makes them: complete under a temporary name, mode 0644, then renamed. Several threads may
    write at once, each another path. With `settles` directories that are there get owner and mode too: an interrupted
    restore may have stopped right after the mkdir.
    """

    def __init__(self, path: Path, root: int, owner: Owner, *, settles: bool = False) -> None:
        self.path = path
        """What the root is called in messages."""
        self.tree = Tree(root)
        self._root = root
        self._owner = owner
        self._settles = settles

    def make_directory(self, path: str, mode: int = _DIRECTORY_MODE) -> None:
        """Make a directory of the datastore, with those above it, where it is not there yet."""
        with self.explaining(path):
            os.close(self.open_directory(path, mode))

    def write(self, path: str, data: Content) -> None:
        """Put a whole file in place, with the directories above it."""
        parent, _, name = path.rpartition("/")
        with self.explaining(path):
            directory = self.open_directory(parent)
            try:
                self.replace(directory, name, data)
            finally:
                os.close(directory)

    def read(self, path: str) -> Content | None:
        """What stands at `path`; None when there is no regular file."""
        with self.explaining(path):
            try:
                return self.tree.read_content(path)
            except (FileNotFoundError, DatastoreError):
                return None

    def keep_only(self, snapshot: SnapshotId, filenames: Collection[str]) -> None:
        """Remove all that stands in a snapshot's directory but these files; its manifest first."""
        with self.explaining(snapshot.path):
            if not self.tree.exists(snapshot.path):
                return
            directory = self.open_directory(snapshot.path)
            try:
                _remove_files(directory, keep=filenames)
            finally:
                os.close(directory)

    def remove_snapshot(self, snapshot: SnapshotId) -> None:
        """Remove what stands of a snapshot."""
        self.keep_only(snapshot, ())
        with self.explaining(snapshot.path):
            if not self.tree.exists(snapshot.path):
                return
            parent = self.open_directory(snapshot.group.path)
            try:
                os.rmdir(snapshot.backup_time, dir_fd=parent)
            finally:
                os.close(parent)

    def synchronize(self) -> None:
        """Return when everything written is on stable storage."""
        with self.explaining("synchronize"):
            if _libc.syncfs(self._root) != 0:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def open_directory(self, path: str, mode: int = _DIRECTORY_MODE) -> int:
        """Open a directory, making what is missing; the descriptor is the caller's to close. Raises OSError."""
        descriptor = os.dup(self._root)
        for component in path.split("/") if path else ():
            try:
                following = self.enter_directory(descriptor, component, mode)
            finally:
                os.close(descriptor)
            descriptor = following
        return descriptor

    def enter_directory(self, parent: int, name: str, mode: int) -> int:
        """Open a directory in another one, made where it is missing. Raises OSError."""
        is_new = False
        try:
            descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, mode, dir_fd=parent)
                is_new = True
            descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        try:
            if is_new or self._settles:
                os.fchmod(descriptor, mode)
                self.give(descriptor)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

    def make_directories(self, parent: int, names: Iterator[str], mode: int) -> None:
        """Make those of these directories that are missing in another one. Raises OSError.

        If the kernel gives the first one the mode that is asked for, it does so with the others: neither a umask nor
        the parent's ACL or group takes or adds anything. Then none of them is opened, which saves a third of the time.
        """
        for name in names:
            if self._make_exactly(parent, name, mode):
                break
        for name in names:
            try:
                os.mkdir(name, mode, dir_fd=parent)
            except FileExistsError:
                os.close(self.enter_directory(parent, name, mode))
                continue
            os.chown(name, self._owner.user, self._owner.group, dir_fd=parent, follow_symlinks=False)

    def _make_exactly(self, parent: int, name: str, mode: int) -> bool:
        """Make a directory as `enter_directory` does; tells whether the kernel alone would have given it its mode."""
        try:
            os.mkdir(name, mode, dir_fd=parent)
        except FileExistsError:
            os.close(self.enter_directory(parent, name, mode))
            return False
        descriptor = os.open(name, DIRECTORY_FLAGS, dir_fd=parent)
        try:
            is_exact = stat.S_IMODE(os.fstat(descriptor).st_mode) == mode
            os.fchmod(descriptor, mode)
            self.give(descriptor)
        finally:
            os.close(descriptor)
        return is_exact

    def replace(self, directory: int, name: str, data: Content) -> None:
        """Put a whole file into an open directory, in the place of any other of that name. Raises OSError."""
        temporary = f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}{_TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, _CREATE_FLAGS, 0o600, dir_fd=directory)
        try:
            try:
                write_all(descriptor, data)
                os.fchmod(descriptor, _FILE_MODE)
                self.give(descriptor)
            finally:
                os.close(descriptor)
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except OSError:
            os.unlink(temporary, dir_fd=directory)
            raise

    def give(self, descriptor: int) -> None:
        """Make an open file or directory the owner's. Raises OSError."""
        os.fchown(descriptor, self._owner.user, self._owner.group)

    def remove_temporaries(self) -> None:
        """Remove what an interrupted restore left half written, outside `.chunks`."""
        with self.explaining("prepare"):
            for path, directories, _, descriptor in os.fwalk(".", dir_fd=self._root):
                if path == "." and CHUNKS_NAME in directories:
                    # Its directories are cleared when their chunks are checked.
                    directories.remove(CHUNKS_NAME)
                remove_temporaries_in(descriptor)

    @contextlib.contextmanager
    def explaining(self, path: str) -> Iterator[None]:
        """Turn an OSError within into a sentence about this path."""
        try:
            yield
        except OSError as error:
            raise RestoreError(f"Could not restore {path} in {self.path}: {_reason(error)}") from error


def remove_temporaries_in(directory: int) -> None:
    """Remove what an interrupted restore left half written in an open directory. Raises OSError."""
    for name in os.listdir(directory):
        if name.startswith(_TEMPORARY_PREFIX) and name.endswith(_TEMPORARY_SUFFIX):
            os.unlink(name, dir_fd=directory)


def write_all(descriptor: int, data: Content) -> None:
    """Write all of it, however little the file system takes at once. Raises OSError."""
    for piece in pieces_of(data):
        remaining = piece
        while remaining:
            remaining = remaining[os.write(descriptor, remaining) :]


def _remove_files(directory: int, *, keep: Collection[str]) -> None:
    names = sorted(os.listdir(directory), key=lambda name: name != MANIFEST_NAME)
    for name in names:
        if name not in keep:
            os.unlink(name, dir_fd=directory)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ENOTDIR, errno.ELOOP):
        return (
            "a symbolic link or file stands where a directory must be. Remove it, or restore into an empty directory."
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{error.strerror}. Make room and run the same command again: it goes on where it stopped."
    return f"{error.strerror}. Run the same command again when that is repaired: it goes on where it stopped."
