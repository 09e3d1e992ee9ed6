"""The system calls that Proxmox Backup Server issues on a datastore, one method each, those that Python has no
exact form of through ctypes. Before each call the step's name is told, so that a test can stop right there."""

from __future__ import annotations

import ctypes
import fcntl
import functools
import os
import pwd
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType

StepCallback = Callable[[str], None]

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_LIBC.getdents64.restype = ctypes.c_ssize_t
_LIBC.getdents64.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]

_MAP_FAILED = ctypes.c_void_p(-1).value
_PROT_READ, _PROT_WRITE = 1, 2
_MAP_SHARED, _MAP_PRIVATE = 1, 2
_AT_SYMLINK_NOFOLLOW = 0x100
_UTIME_NOW, _UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
_GETDENTS_BUFFER = 32768
_TEMPORARY_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
BACKUP_UID = BACKUP_GID = 34


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


_ATIME_NOW_MTIME_OMIT = (_TimeSpec * 2)(_TimeSpec(0, _UTIME_NOW), _TimeSpec(0, _UTIME_OMIT))


@dataclass(frozen=True, slots=True)
class DirectoryEntry:
    """One entry of a directory as getdents64 tells it."""

    name: str
    type: int


class Mapping:
    """A mapped part of a file. Unlike Python's own mmap it holds no second descriptor of the file, whose close
    would be a flush that the server never causes."""

    def __init__(self, descriptor: int, length: int, offset: int, *, writable: bool) -> None:
        """Raises OSError."""
        protection = _PROT_READ | (_PROT_WRITE if writable else 0)
        kind = _MAP_SHARED if writable else _MAP_PRIVATE
        address = _LIBC.mmap(None, length, protection, kind, descriptor, offset)
        if address == _MAP_FAILED or address is None:
            raise _last_error("mmap")
        self._address: int | None = address
        self._length = length

    def store(self, offset: int, data: bytes) -> None:
        """Write into the mapping (any thread, any order)."""
        if self._address is None or offset + len(data) > self._length:
            raise ValueError("outside of the mapping")
        ctypes.memmove(self._address + offset, data, len(data))

    def contents(self) -> bytes:
        if self._address is None:
            raise ValueError("the mapping is gone")
        return ctypes.string_at(self._address, self._length)

    def unmap(self) -> None:
        """Raises OSError; does nothing the second time."""
        if self._address is not None:
            address, self._address = self._address, None
            if _LIBC.munmap(address, self._length) != 0:
                raise _last_error("munmap")


class SystemCalls:
    """Issues the calls and tells each step as PURPOSE.CALL (such as chunk.rename) to on_step before it. Whatever
    on_step raises comes out of the writer, which then only closes its descriptors, as the kernel does for a
    killed process: nothing is tidied up."""

    def __init__(self, on_step: StepCallback | None = None) -> None:
        self._on_step = on_step

    def step(self, purpose: str, call: str) -> None:
        if self._on_step is not None:
            self._on_step(f"{purpose}.{call}")

    def open(self, purpose: str, path: str, flags: int, mode: int = 0o666, *, directory: int | None = None) -> int:
        self.step(purpose, "open")
        return os.open(path, flags, mode, dir_fd=directory)

    def close(self, purpose: str, descriptor: int) -> None:
        self.step(purpose, "close")
        os.close(descriptor)

    @contextmanager
    def closing(self, purpose: str, descriptor: int) -> Iterator[int]:
        """Close the descriptor at the end: as a step of its own, or silently when something was raised."""
        try:
            yield descriptor
            self.step(purpose, "close")
        finally:
            os.close(descriptor)

    def read(self, purpose: str, descriptor: int, size: int) -> bytes:
        self.step(purpose, "read")
        return os.read(descriptor, size)

    def write(self, purpose: str, descriptor: int, data: bytes) -> None:
        """One write of everything; more only when the file system takes less at once."""
        self.step(purpose, "write")
        rest = memoryview(data)
        while len(rest):
            rest = rest[os.write(descriptor, rest) :]

    def seek(self, purpose: str, descriptor: int, offset: int, whence: int = os.SEEK_SET) -> None:
        self.step(purpose, "lseek")
        os.lseek(descriptor, offset, whence)

    def truncate(self, purpose: str, descriptor: int, length: int) -> None:
        self.step(purpose, "ftruncate")
        os.ftruncate(descriptor, length)

    def map(self, purpose: str, descriptor: int, length: int, offset: int, *, writable: bool) -> Mapping:
        self.step(purpose, "mmap")
        return Mapping(descriptor, length, offset, writable=writable)

    def unmap(self, purpose: str, mapping: Mapping) -> None:
        self.step(purpose, "munmap")
        mapping.unmap()

    def stat(self, purpose: str, path: str) -> os.stat_result | None:
        """None when there is no such file."""
        self.step(purpose, "stat")
        try:
            return os.stat(path)
        except FileNotFoundError:
            return None

    def stat_link(self, purpose: str, path: str, *, directory: int | None = None) -> os.stat_result:
        self.step(purpose, "stat")
        return os.stat(path, dir_fd=directory, follow_symlinks=False)

    def stat_descriptor(self, purpose: str, descriptor: int) -> os.stat_result:
        self.step(purpose, "fstat")
        return os.fstat(descriptor)

    def change_mode(self, purpose: str, descriptor: int, mode: int) -> None:
        self.step(purpose, "fchmod")
        os.fchmod(descriptor, mode)

    def change_owner(self, purpose: str, descriptor: int) -> None:
        """To backup:backup, where this process may."""
        if may_change_owner():
            self.step(purpose, "fchown")
            os.fchown(descriptor, BACKUP_UID, BACKUP_GID)

    def change_owner_of_path(self, purpose: str, path: str) -> None:
        """To backup:backup, where this process may."""
        if may_change_owner():
            self.step(purpose, "chown")
            os.chown(path, BACKUP_UID, BACKUP_GID)

    def make_directory(self, purpose: str, path: str, mode: int = 0o777) -> bool:
        """False when something of that name is there already."""
        self.step(purpose, "mkdir")
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            return False
        return True

    def remove_directory(self, purpose: str, path: str, *, directory: int | None = None) -> None:
        self.step(purpose, "rmdir")
        os.rmdir(path, dir_fd=directory)

    def unlink(self, purpose: str, path: str, *, directory: int | None = None) -> None:
        self.step(purpose, "unlink")
        os.unlink(path, dir_fd=directory)

    def unlink_expecting_nothing(self, purpose: str, path: str) -> None:
        """The server's own tidying of a temporary name that has normally been renamed away."""
        self.step(purpose, "unlink")
        with suppress(FileNotFoundError):
            os.unlink(path)

    def rename(self, purpose: str, source: str, target: str) -> None:
        self.step(purpose, "rename")
        os.rename(source, target)

    def sync_descriptor(self, purpose: str, descriptor: int) -> None:
        self.step(purpose, "fsync")
        os.fsync(descriptor)

    def sync_file_system(self, purpose: str, descriptor: int) -> None:
        self.step(purpose, "syncfs")
        if _LIBC.syncfs(descriptor) != 0:
            raise _last_error("syncfs")

    def touch(self, purpose: str, path: str) -> bool:
        """utimensat: atime to now, mtime left alone. False when there is no such file."""
        self.step(purpose, "utimensat")
        if _LIBC.utimensat(-1, os.fsencode(path), _ATIME_NOW_MTIME_OMIT, _AT_SYMLINK_NOFOLLOW) == 0:
            return True
        error = _last_error(path)
        if isinstance(error, FileNotFoundError):
            return False
        raise error

    def lock_folder(self, purpose: str, path: str, *, shared: bool = False) -> int:
        """flock on a folder's descriptor, which is given back and holds the lock until it is closed.

        Raises BlockingIOError when somebody else has it.
        """
        descriptor = self.open_folder(purpose, path)
        try:
            self.step(purpose, "flock")
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def open_folder(self, purpose: str, path: str, extra_flags: int = 0, *, directory: int | None = None) -> int:
        """Open a folder in the server's manner: fstat, F_GETFL and F_SETFD follow each open."""
        descriptor = self.open(purpose, path, os.O_RDONLY | extra_flags, directory=directory)
        try:
            os.fstat(descriptor)
            fcntl.fcntl(descriptor, fcntl.F_GETFL)
            fcntl.fcntl(descriptor, fcntl.F_SETFD, fcntl.FD_CLOEXEC)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def read_directory(self, purpose: str, descriptor: int) -> Iterator[DirectoryEntry]:
        """The entries behind the descriptor's position but . and .., asked for piece by piece while the caller
        works on them."""
        buffer = ctypes.create_string_buffer(_GETDENTS_BUFFER)
        while True:
            self.step(purpose, "getdents")
            filled = _LIBC.getdents64(descriptor, buffer, _GETDENTS_BUFFER)
            if filled < 0:
                raise _last_error("getdents64")
            if filled == 0:
                return
            yield from _directory_entries(buffer.raw[:filled])

    def list_folder(self, purpose: str, path: str, *, directory: int | None = None) -> list[DirectoryEntry]:
        """A whole folder, opened and closed."""
        with self.closing(purpose, self.open_folder(purpose, path, directory=directory)) as descriptor:
            return list(self.read_directory(purpose, descriptor))

    def read_file(self, purpose: str, path: str, piece: int = 8192) -> bytes:
        """A whole small file, read until read gives nothing."""
        with self.closing(purpose, self.open(purpose, path, os.O_RDONLY)) as descriptor:
            pieces = []
            while data := self.read(purpose, descriptor, piece):
                pieces.append(data)
            return b"".join(pieces)

    def replace_file(
        self,
        purpose: str,
        final_path: str,
        stem: str,
        data: bytes,
        *,
        chown: bool = False,
        sync: bool = False,
    ) -> None:
        """Make or replace a file by a temporary one: mkostemp, fchmod, [fchown], one write, [fsync], rename, and
        only then close. When a call fails the temporary is unlinked; when on_step raises it stays."""
        descriptor, temporary = self._make_temporary(purpose, os.path.join(os.path.dirname(final_path), stem))
        try:
            with self.closing(purpose, descriptor):
                self.change_mode(purpose, descriptor, 0o644)
                if chown:
                    self.change_owner(purpose, descriptor)
                if data:
                    self.write(purpose, descriptor, data)
                if sync:
                    self.sync_descriptor(purpose, descriptor)
                self.rename(purpose, temporary, final_path)
        except OSError:
            with suppress(FileNotFoundError):
                os.unlink(temporary)
            raise

    def _make_temporary(self, purpose: str, stem_path: str) -> tuple[int, str]:
        letters = random.SystemRandom()
        while True:
            path = f"{stem_path}.tmp_{''.join(letters.choices(_TEMPORARY_LETTERS, k=6))}"
            try:
                return self.open(purpose, path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), path
            except FileExistsError:
                continue


def _directory_entries(raw: bytes) -> Iterator[DirectoryEntry]:
    at = 0
    while at < len(raw):
        _inode, _offset, length, kind = struct.unpack_from("<QqHB", raw, at)
        name = os.fsdecode(raw[at + 19 : at + length].split(b"\0", 1)[0])
        if name not in (".", ".."):
            yield DirectoryEntry(name, kind)
        at += length


def _last_error(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), what)


def may_change_owner() -> bool:
    """Whether files can be given to uid 34: this process is root and the user exists."""
    return os.geteuid() == 0 and _backup_user_exists()


@functools.cache
def _backup_user_exists() -> bool:
    try:
        pwd.getpwuid(BACKUP_UID)
    except KeyError:
        return False
    return True


class Identity:
    """Makes the calling thread act on file systems as user backup (setfsuid and setfsgid, which are a thread's
    own), so that files come to belong to 34:34 and permissions are checked as they are for the server."""

    def __init__(self, *, as_backup_user: bool) -> None:
        self._as_backup_user = as_backup_user

    def assume(self) -> None:
        """For the rest of the thread's life."""
        if self._as_backup_user:
            _LIBC.setfsgid(BACKUP_GID)
            _LIBC.setfsuid(BACKUP_UID)

    @contextmanager
    def acting(self) -> Iterator[None]:
        """For the duration of a with block."""
        if not self._as_backup_user:
            yield
            return
        previous_gid = _LIBC.setfsgid(BACKUP_GID)
        previous_uid = _LIBC.setfsuid(BACKUP_UID)
        try:
            yield
        finally:
            _LIBC.setfsuid(previous_uid)
            _LIBC.setfsgid(previous_gid)

    @classmethod
    def for_datastore(cls, path: str) -> Identity:
        """User backup where the datastore is his and he can reach it, else whoever runs this process."""
        if not may_change_owner() or not os.path.isdir(path):
            return cls(as_backup_user=False)
        backup_user = cls(as_backup_user=True)
        try:
            with backup_user.acting():
                return cls(as_backup_user=os.stat(path).st_uid == BACKUP_UID)
        except PermissionError:
            return cls(as_backup_user=False)


class Guard:
    """Something that is given back once: at the end of a with block or by release()."""

    def __init__(self, release: Callable[[], None]) -> None:
        self._release: Callable[[], None] | None = release

    def release(self) -> None:
        if self._release is not None:
            release, self._release = self._release, None
            release()

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
