"""System calls that the os module lacks, through ctypes; each raises OSError as os functions do.

Formats and numbers: fanotify(7), fanotify_mark(2), open_by_handle_at(2), mount_setattr(2), and for open_tree and
move_mount linux/mount.h.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import termios

FAN_CLOSE_WRITE = 0x0000_0008
FAN_MOVED_FROM = 0x0000_0040
FAN_MOVED_TO = 0x0000_0080
FAN_CREATE = 0x0000_0100
FAN_DELETE = 0x0000_0200
FAN_Q_OVERFLOW = 0x0000_4000
FAN_ONDIR = 0x4000_0000

MOUNT_ATTR_RDONLY = 0x01
MOUNT_ATTR_NOSUID = 0x02
MOUNT_ATTR_NODEV = 0x04
MOUNT_ATTR_NOEXEC = 0x08

_FAN_CLOEXEC = 0x01
_FAN_NONBLOCK = 0x02
_FAN_CLASS_NOTIF = 0x00
_FAN_REPORT_DFID_NAME = 0x0C00
_FAN_MARK_ADD = 0x01
_FAN_MARK_FILESYSTEM = 0x0100
# The same numbers on every architecture that Debian has, but alpha.
_OPEN_TREE = 428
_MOVE_MOUNT = 429
_MOUNT_SETATTR = 442
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_AT_EMPTY_PATH = 0x1000
_MOVE_MOUNT_F_EMPTY_PATH = 0x04
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_MS_PRIVATE = 1 << 18
_MOUNT_ATTR = struct.Struct("@4Q")  # struct mount_attr: set, clear, propagation, user namespace
_HANDLE_HEAD = struct.Struct("@Ii")  # struct file_handle: length of the handle, its type
_LONGEST_HANDLE = 128  # MAX_HANDLE_SZ
_INT = struct.Struct("@i")
_INFO_BYTES = 24  # sizeof(struct fanotify_event_metadata)

_libc = ctypes.CDLL(None, use_errno=True)
_system_call = _libc.syscall
_system_call.restype = ctypes.c_long
_fanotify_init = _libc.fanotify_init
_fanotify_init.argtypes = (ctypes.c_uint, ctypes.c_uint)
_fanotify_mark = _libc.fanotify_mark
_fanotify_mark.argtypes = (
    ctypes.c_int,
    ctypes.c_uint,
    ctypes.c_uint64,
    ctypes.c_int,
    ctypes.c_char_p,
)
_name_to_handle_at = _libc.name_to_handle_at
_name_to_handle_at.argtypes = (
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_int),
    ctypes.c_int,
)
_open_by_handle_at = _libc.open_by_handle_at
_open_by_handle_at.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_int)


def fanotify_group() -> int:
    """fanotify_init(2): a group whose events tell directory and name, and which nothing waits for."""
    flags = _FAN_CLOEXEC | _FAN_NONBLOCK | _FAN_CLASS_NOTIF | _FAN_REPORT_DFID_NAME
    return _checked(_fanotify_init(flags, os.O_RDONLY | os.O_CLOEXEC))


def fanotify_mark_file_system(group: int, descriptor: int, mask: int) -> None:
    """fanotify_mark(2): watch the whole file system of an open (not O_PATH) directory."""
    _checked(_fanotify_mark(group, _FAN_MARK_ADD | _FAN_MARK_FILESYSTEM, mask, descriptor, None))


def queued_events(group: int) -> int:
    """ioctl_fionread: how many events of a fanotify group are not read yet."""
    answer = fcntl.ioctl(group, termios.FIONREAD, bytes(_INT.size))
    # The kernel counts each with its head alone.
    return int(_INT.unpack(answer)[0]) // _INFO_BYTES


def handle_of(descriptor: int) -> bytes:
    """name_to_handle_at(2): the struct file_handle of what is open."""
    buffer = ctypes.create_string_buffer(_HANDLE_HEAD.pack(_LONGEST_HANDLE, 0), _HANDLE_HEAD.size + _LONGEST_HANDLE)
    mount = ctypes.c_int()
    _checked(_name_to_handle_at(descriptor, b"", buffer, ctypes.byref(mount), _AT_EMPTY_PATH))
    length, _ = _HANDLE_HEAD.unpack_from(buffer)
    return buffer.raw[: _HANDLE_HEAD.size + length]


def open_by_handle(mount: int, handle: bytes) -> int:
    """open_by_handle_at(2) for O_PATH; `handle` is a whole struct file_handle, `mount` on its file system.

    Raises OSError with ESTALE when there is no such file any more.
    """
    return _checked(_open_by_handle_at(mount, handle, os.O_PATH | os.O_CLOEXEC))


def clone_mount(descriptor: int) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: what is open as `descriptor`, mounted, but nowhere yet.

    It is gone with the descriptor that is returned, unless that is attached with `attach_mount` before.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_EMPTY_PATH
    return _checked(_system_call(_OPEN_TREE, descriptor, b"", flags))


def set_mount_attributes(mount: int, attributes: int) -> None:
    """mount_setattr(2): set these attributes of a mount, and share no mounts with where it was cloned from."""
    change = _MOUNT_ATTR.pack(attributes, 0, _MS_PRIVATE, 0)
    _checked(_system_call(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, change, len(change)))


def attach_mount(mount: int, directory: int) -> None:
    """move_mount(2): attach what `clone_mount` returned over the directory that is open as `directory`."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _checked(_system_call(_MOVE_MOUNT, mount, b"", directory, b"", flags))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
