"""Using and putting back single chunks of a living datastore, while a PBS works there, in the way PBS does itself.

PBS's garbage collection tells what is in use by access times, and removes no chunk that was touched since the day
before it began. So a chunk that is to be used is touched first, and looked at after that.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from mirrorfs import own_files
from mirrorfs.datastore.blob import check_chunk, check_encryption
from mirrorfs.datastore.errors import BlobError, DatastoreError
from mirrorfs.datastore.names import CHUNKS_NAME, chunk_path
from mirrorfs.datastore.tree import QUARANTINE_NUMBERS, Tree
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.ownership import Owner
from mirrorfs.steps import reach

# One at a time inserts chunks, so what stands under this name is of one that was killed, and is replaced.
_TEMPORARY_SUFFIX = ".tmp_mirror"
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK_MODE = 0o644
_CHUNK_DIRECTORY_MODE = 0o750
# utimensat(2) and fcntl.h; Python's os.utime knows no UTIME_OMIT.
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_AT_SYMLINK_NOFOLLOW = 0x100
_libc = ctypes.CDLL(None, use_errno=True)


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_ACCESSED_NOW = (_TimeSpec * 2)(_TimeSpec(0, _UTIME_NOW), _TimeSpec(0, _UTIME_OMIT))


class ChunkInsertion:
    """The chunks of a living datastore. Every method may block and raises OSError; several threads may use it, each
    for another digest.
    """

    def __init__(self, root: int, chunks: int, owner: Owner) -> None:
        """Use `open_chunks`. The descriptors of the datastore and of its `.chunks` stay the caller's to close."""
        self.owner = owner
        """Whose `.chunks` is, and so whose an inserted chunk will be."""
        self._tree = Tree(root)
        self._chunks = chunks

    def touch(self, digest: bytes) -> bool:
        """Set the access time of a chunk to now, and nothing else; False when it is not there."""
        name = digest.hex()
        path = f"{name[:4]}/{name}".encode()
        if _libc.utimensat(self._chunks, path, _ACCESSED_NOW, _AT_SYMLINK_NOFOLLOW) == 0:
            return True
        error = OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), os.fsdecode(path))
        if isinstance(error, FileNotFoundError):
            return False
        raise error

    def use(self, digest: bytes, *, is_encrypted: bool | None = None) -> bool:
        """Touch a chunk and read all of it; False when it is not there or damaged, so that one is to be inserted.

        `is_encrypted` is what its backup is, where that matters: one that is good, and of the other kind, raises
        BlobError, since other backups may need it as it is.
        """
        if not self.touch(digest):
            return False
        try:
            data = self._tree.read_chunk(digest)
            check_chunk(data, digest, content=True)
        except (FileNotFoundError, DatastoreError):
            return False
        if is_encrypted is not None:
            check_encryption(data, digest, is_encrypted=is_encrypted)
        return True

    def insert(self, digest: bytes, data: bytes) -> None:
        """Put a chunk, which the caller has checked, in the place of whatever stands there; whole or not at all."""
        name = digest.hex()
        temporary = f"{name}{_TEMPORARY_SUFFIX}"
        directory = self._open_directory(name[:4])
        try:
            descriptor = _create(temporary, directory)
            try:
                try:
                    _write_all(descriptor, data)
                    os.fchmod(descriptor, _CHUNK_MODE)
                    os.fchown(descriptor, self.owner.user, self.owner.group)
                    reach("insertion.before-rename")
                    os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
                finally:
                    os.close(descriptor)
            except OSError:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=directory)
                raise
            reach("insertion.inserted")
        finally:
            os.close(directory)

    def quarantined(self, digest: bytes) -> list[str]:
        """The names that the corrupt copies of a chunk have in its directory; PBS numbers them."""
        path = chunk_path(digest)
        # PBS takes the first number that is free.
        if not self._tree.is_taken(f"{path}.0.bad"):
            return []
        numbered = [f"{path}.{number}.bad" for number in QUARANTINE_NUMBERS]
        return [name.rpartition("/")[2] for name in numbered if self._tree.is_taken(name)]

    def end_quarantine(self, digest: bytes, *, is_encrypted: bool) -> int:
        """Remove the corrupt copies of a chunk that is there, good, and on stable storage; else nothing.

        Returns how many they were.
        """
        # Listed first: what a verification puts there from now on may be the only copy.
        copies = self.quarantined(digest)
        if not copies or not self._is_good(digest, is_encrypted=is_encrypted):
            return 0
        directory = self._open_directory(digest.hex()[:4])
        try:
            # Not syncfs: that goes nowhere below a FUSE file system.
            _synchronize_file(digest.hex(), directory)
            os.fsync(directory)
            reach("insertion.before-end-of-quarantine")
            # The one by which they are found goes last.
            for name in reversed(copies):
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=directory)
        finally:
            os.close(directory)
        return len(copies)

    def synchronize(self) -> None:
        """Return when all that was inserted is on stable storage; below a FUSE file system, on its way there."""
        if _libc.syncfs(self._chunks) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))

    def _is_good(self, digest: bytes, *, is_encrypted: bool) -> bool:
        try:
            return self.use(digest, is_encrypted=is_encrypted)
        except BlobError:
            return False

    def _open_directory(self, name: str) -> int:
        try:
            return os.open(name, _DIRECTORY_FLAGS, dir_fd=self._chunks)
        except FileNotFoundError:
            # PBS makes all of them when it makes the datastore.
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, _CHUNK_DIRECTORY_MODE, dir_fd=self._chunks)
        descriptor = os.open(name, _DIRECTORY_FLAGS, dir_fd=self._chunks)
        os.fchmod(descriptor, _CHUNK_DIRECTORY_MODE)
        os.fchown(descriptor, self.owner.user, self.owner.group)
        return descriptor


@contextlib.contextmanager
def open_chunks(root: int, path: Path) -> Iterator[ChunkInsertion]:
    """Open the chunks of the datastore with the open directory `root`, which is called `path` in messages.

    Nobody else can open them so within the context: one at a time inserts chunks.

    Raises:
        RestoreError: it is no datastore, or another restore or heal is at work in it.
        OSError: as open(2).
    """
    try:
        chunks = os.open(CHUNKS_NAME, _DIRECTORY_FLAGS, dir_fd=root)
    except (FileNotFoundError, NotADirectoryError):
        raise RestoreError(f"{path} is no datastore: there is no directory {CHUNKS_NAME} in it.") from None
    try:
        try:
            # PBS never locks this directory.
            fcntl.flock(chunks, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RestoreError(
                f"Another mirrorfs is bringing chunks back into {path}. Wait until it is done, then try again."
            ) from None
        status = os.fstat(chunks)
        yield ChunkInsertion(root, chunks, Owner(status.st_uid, status.st_gid))
    finally:
        os.close(chunks)


@contextlib.contextmanager
def open_datastore_root(path: Path) -> Iterator[tuple[int, ChunkInsertion]]:
    """Open the directory of a datastore in which a PBS may work, and its chunks as `open_chunks` does.

    Raises:
        RestoreError: as `open_chunks`, where there is no directory, and where this process may not give files to whom
            they belong.
        NotOwn: somebody else than root and its owner could change what is in it.
        OSError: as open(2).
    """
    # To open it would make it.
    if not path.is_dir():
        raise RestoreError(f"{path} is no datastore: there is no such directory.")
    root = own_files.open_directory(str(path))
    try:
        with open_chunks(root, path) as chunks:
            owner = chunks.owner
            if os.geteuid() not in (0, owner.user):
                raise RestoreError(f"{path} belongs to user {owner.user}: run as root.")
            own_files.check_directory(str(path), root, owners=(owner.user,), groups=(owner.group,))
            yield root, chunks
    finally:
        os.close(root)


def _create(name: str, directory: int) -> int:
    try:
        return os.open(name, _CREATE_FLAGS, 0o600, dir_fd=directory)
    except FileExistsError:
        os.unlink(name, dir_fd=directory)
        return os.open(name, _CREATE_FLAGS, 0o600, dir_fd=directory)


def _write_all(descriptor: int, data: bytes) -> None:
    remaining = memoryview(data)
    while remaining:
        remaining = remaining[os.write(descriptor, remaining) :]


def _synchronize_file(name: str, directory: int) -> None:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
