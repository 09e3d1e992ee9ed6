"""System calls that the os module lacks, through ctypes; each raises OSError as os functions do."""

import ctypes
import errno
import functools
import os
import select
import struct
from dataclasses import dataclass
from types import TracebackType
from typing import cast

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
UTIME_OMIT = (1 << 30) - 2
RWF_NOWAIT = 0x00000008
MNT_DETACH = 2
EVENT_BYTES = 8

_AT_FDCWD = -100
_TIMES = struct.Struct("@4l")  # struct timespec[2], which struct itimerspec is too
_OPEN_HOW = struct.Struct("@3Q")  # struct open_how: flags, mode, resolve
_RESOLVE_CACHED = 0x20
# The same numbers on every architecture that Debian has, but alpha.
_OPENAT2 = 437
_FSOPEN = 430
_FSCONFIG = 431
_FSMOUNT = 432
_FSOPEN_CLOEXEC = 1
_FSMOUNT_CLOEXEC = 1
_FSCONFIG_CMD_CREATE = 6
_POLL = struct.Struct("@i2h")  # struct pollfd: fd, events, revents
_TIME = struct.Struct("@2l")  # struct timespec
_SIGNAL_EVENT = struct.Struct("@P3i44x")  # struct sigevent: sigev_value, sigev_signo, sigev_notify, thread id
_SIGEV_THREAD_ID = 4
_CLOCK_MONOTONIC = 1
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_FSETID = 4
_CAP_SYS_RESOURCE = 24
_AT_STATX_DONT_SYNC = 0x4000
# struct statx: stx_dev_major and stx_dev_minor stand behind stx_rdev_*.
_STATX_SIZE = 256
_STATX_DEVICE = struct.Struct("=II")
_STATX_DEVICE_OFFSET = 136
_STATX_MNT_ID = 0x1000
_STATX_MOUNT = struct.Struct("=Q")
_STATX_MOUNT_OFFSET = 144

_libc = ctypes.CDLL(None, use_errno=True)
# Calls that never wait keep the GIL: giving it away costs more than they take.
_libc_quick = ctypes.PyDLL(None, use_errno=True)


class _CapabilityHeader(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _CapabilityWord(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


_CapabilityData = _CapabilityWord * 2

_renameat2 = _libc.renameat2
_renameat2.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_syncfs = _libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)
_umount2 = _libc.umount2
_umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_utimensat = _libc.utimensat
_utimensat.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_openat2 = _libc_quick.syscall
_openat2.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_openat2.restype = ctypes.c_long
_ppoll = _libc.ppoll
_ppoll.argtypes = (ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p, ctypes.c_char_p)
_statx = _libc.statx
_statx.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_uint, ctypes.c_char_p)
_system_call = _libc.syscall
_system_call.restype = ctypes.c_long
_timer_create = _libc.timer_create
_timer_create.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.POINTER(ctypes.c_void_p))
_timer_settime = _libc.timer_settime
_timer_settime.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)
_timer_delete = _libc.timer_delete
_timer_delete.argtypes = (ctypes.c_void_p,)
_eventfd_write = _libc_quick.eventfd_write
_eventfd_write.argtypes = (ctypes.c_int, ctypes.c_uint64)
_setfsuid = _libc_quick.setfsuid
_setfsuid.argtypes = (ctypes.c_uint32,)
_setfsgid = _libc_quick.setfsgid
_setfsgid.argtypes = (ctypes.c_uint32,)
_capget = _libc_quick.capget
_capget.argtypes = (ctypes.POINTER(_CapabilityHeader), ctypes.POINTER(_CapabilityWord))
_capset = _libc_quick.capset
_capset.argtypes = (ctypes.POINTER(_CapabilityHeader), ctypes.POINTER(_CapabilityWord))


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _descriptor(result: int) -> int:
    if result < 0:
        _check(result)
    return result


def renameat2(old_directory: int, old_name: bytes, new_directory: int, new_name: bytes, flags: int) -> None:
    """renameat2(2), for its flags RENAME_NOREPLACE and RENAME_EXCHANGE."""
    _check(_renameat2(old_directory, old_name, new_directory, new_name, flags))


def open_cached(directory: int, name: bytes, flags: int) -> int | None:
    """openat2(2) with RESOLVE_CACHED: opens a name, for O_PATH, only if the kernel can tell from memory what it is.

    None if it cannot, or if the kernel is older than 5.12; then it has to be opened in a way that may wait. If the
    kernel remembers that there is no such name, this raises FileNotFoundError.
    """
    if not _resolves_cached():
        return None
    descriptor: int = _openat2(_OPENAT2, directory, name, _open_how(flags), _OPEN_HOW.size)
    if descriptor >= 0:
        return descriptor
    if ctypes.get_errno() == errno.ENOENT:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return None


@functools.cache
def _resolves_cached() -> bool:
    # Older kernels say EINVAL or ENOSYS, containers that allow only calls they know EPERM.
    flags = os.O_PATH | os.O_CLOEXEC
    descriptor: int = _openat2(_OPENAT2, _AT_FDCWD, b"/", _open_how(flags), _OPEN_HOW.size)
    if descriptor >= 0:
        os.close(descriptor)
    return descriptor >= 0 or ctypes.get_errno() == errno.EAGAIN


@functools.cache
def _open_how(flags: int) -> bytes:
    return _OPEN_HOW.pack(flags, 0, _RESOLVE_CACHED)


def syncfs(descriptor: int) -> None:
    """syncfs(2): the whole file system of an open (not O_PATH) descriptor to stable storage. Waits for it."""
    _check(_syncfs(descriptor))


def unmount(mountpoint: bytes, *, lazily: bool = False) -> None:
    """umount2(2); lazily means MNT_DETACH: gone from the tree at once, ended when nothing uses it any more."""
    _check(_umount2(mountpoint, MNT_DETACH if lazily else 0))


def wait_readable(descriptor: int, nanoseconds: int) -> bool:
    """ppoll(2): whether it becomes readable in this time. A signal may end the wait before."""
    poll = ctypes.create_string_buffer(_POLL.pack(descriptor, select.POLLIN, 0), _POLL.size)
    return cast(int, _ppoll(poll, 1, _TIME.pack(0, nanoseconds), None)) == 1


def add_event(counter: int) -> None:
    """Adds one to an eventfd(2), and keeps the interpreter's lock: who is woken by it shall not fight for that with us.

    It would wait, with the lock, if the counter were at its limit of 2**64 - 2.
    """
    _check(_eventfd_write(counter, 1))


def device_of(path: bytes) -> tuple[int, int]:
    """Major and minor number of the file system on which the target of a path lies (statx(2)).

    The file system is not asked (AT_STATX_DONT_SYNC), so that one that hangs keeps nobody waiting; the way to the
    target must not lead through one that does.
    """
    major, minor = _STATX_DEVICE.unpack_from(_status_without_asking(path, 0), _STATX_DEVICE_OFFSET)
    return major, minor


def mount_of(path: bytes) -> int:
    """Identifier of the mount in which the target of a path lies, as in mountinfo; asked as in `device_of`.

    Linux 5.8 or newer tells it; an older one, 0.
    """
    (identifier,) = _STATX_MOUNT.unpack_from(_status_without_asking(path, _STATX_MNT_ID), _STATX_MOUNT_OFFSET)
    return int(identifier)


def _status_without_asking(path: bytes, mask: int) -> bytes:
    answer = ctypes.create_string_buffer(_STATX_SIZE)
    _check(_statx(_AT_FDCWD, path, _AT_STATX_DONT_SYNC, mask, answer))
    return answer.raw


def open_file_system(kind: bytes) -> int:
    """An O_PATH descriptor of a file system without a device, such as fusectl, that is mounted nowhere (fsopen(2))."""
    context = _descriptor(_system_call(_FSOPEN, kind, _FSOPEN_CLOEXEC))
    try:
        _descriptor(_system_call(_FSCONFIG, context, _FSCONFIG_CMD_CREATE, None, None, 0))
        return _descriptor(_system_call(_FSMOUNT, context, _FSMOUNT_CLOEXEC, 0))
    finally:
        os.close(context)


class IntervalTimer:
    """timer_create(2): sends a signal to one thread of this process again and again until it is deleted."""

    def __init__(self, number: int, thread_id: int, interval_ns: int) -> None:
        """`thread_id` is the kernel's (gettid(2)). Raises OSError."""
        self._id = ctypes.c_void_p()
        event = _SIGNAL_EVENT.pack(0, number, _SIGEV_THREAD_ID, thread_id)
        _check(_timer_create(_CLOCK_MONOTONIC, event, ctypes.byref(self._id)))
        interval = divmod(interval_ns, 1_000_000_000)
        _check(_timer_settime(self._id, 0, _TIMES.pack(*interval, *interval), None))

    def delete(self) -> None:
        """Ends it."""
        _check(_timer_delete(self._id))


def set_times(path: bytes, access_ns: int | None, modification_ns: int | None) -> None:
    """utimensat(2) on a path, links followed, in nanoseconds; a time that is None is left as it is."""
    times = _TIMES.pack(*_timespec(access_ns), *_timespec(modification_ns))
    _check(_utimensat(_AT_FDCWD, path, times, 0))


def _timespec(nanoseconds: int | None) -> tuple[int, int]:
    if nanoseconds is None:
        return 0, UTIME_OMIT
    return divmod(nanoseconds, 1_000_000_000)


@dataclass(frozen=True, slots=True)
class _Capabilities:
    """Effective capabilities of the process, and the same without those that other users lack."""

    header: _CapabilityHeader
    all: ctypes.Array[_CapabilityWord]
    creating: ctypes.Array[_CapabilityWord]
    writing: ctypes.Array[_CapabilityWord]


def _read_capabilities() -> _Capabilities:
    header = _CapabilityHeader(_CAPABILITY_VERSION_3, 0)
    words = _CapabilityData()
    _check(_capget(header, words))
    return _Capabilities(
        header,
        words,
        _without(words, _CAP_SYS_RESOURCE),
        _without(words, _CAP_SYS_RESOURCE, _CAP_FSETID),
    )


def _without(words: ctypes.Array[_CapabilityWord], *capabilities: int) -> ctypes.Array[_CapabilityWord]:
    reduced = _CapabilityData.from_buffer_copy(words)
    for capability in capabilities:
        reduced[capability // 32].effective &= ~(1 << capability % 32)
    return reduced


_capabilities: _Capabilities | None = None


def _own_capabilities() -> _Capabilities:
    global _capabilities
    if _capabilities is None:
        _capabilities = _read_capabilities()
    return _capabilities


class ActingAs:
    """Context in which this thread's file system calls are those of another user; for root, nothing changes.

    What it makes belongs to that user and, unless the directory is setgid, to that group; the blocks that the
    file system reserves for root stay reserved; and with `writing`, set-user-id and set-group-id bits fall as
    they do when that user writes. Access is not checked (the capabilities for that stay): the kernel has done
    so with the caller's real credentials, supplementary groups included, before it asked.

    This is better than creating as root and then changing the owner: the file is never seen with a wrong
    owner, not even after a crash, and setgid directories, default ACLs and quotas are the kernel's own work.
    The file system ids are the thread's alone; there must be no `await` inside the context.
    """

    __slots__ = ("_gid", "_uid", "_writing")

    def __init__(self, uid: int, gid: int, *, writing: bool = False) -> None:
        self._uid = uid
        self._gid = gid
        self._writing = writing

    def __enter__(self) -> None:
        if self._uid != 0:
            self._enter()
        elif self._gid != 0:
            _setfsgid(self._gid)

    def _enter(self) -> None:
        capabilities = _own_capabilities()
        _setfsgid(self._gid)
        # The kernel takes the file system capabilities away with the user id; capset gives back all but a few.
        _setfsuid(self._uid)
        reduced = capabilities.writing if self._writing else capabilities.creating
        _check(_capset(capabilities.header, reduced))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._uid != 0:
            capabilities = _own_capabilities()
            _setfsuid(0)
            _check(_capset(capabilities.header, capabilities.all))
        if self._gid != 0 or self._uid != 0:
            _setfsgid(0)
