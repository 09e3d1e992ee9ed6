"""Extended attributes and access control lists, with what the kernel leaves to the file system to see to.

The calls are made with all rights. The kernel has checked whether the caller may make them, but does not look into a
listing, nor does it tell a file system of ours that the caller may not keep a set-group-id bit. Each of these functions
may wait for the disk; paths are those of `descriptor_path`.
"""

import errno
import functools
import os
import stat

from mirrorfs.filesystem.callers import Caller

_ACCESS_CONTROL_LIST = "system.posix_acl_access"
_TRUSTED = "trusted."
# What the kernel asks of a regular file: at each write, to take it away, and when somebody opens it first.
_ASKED_FOR = ("security.capability", _ACCESS_CONTROL_LIST)


def has_access_control_lists(path: bytes) -> bool:
    """Whether the file system has them."""
    try:
        os.getxattr(path, _ACCESS_CONTROL_LIST)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True


def lacked(descriptor: int) -> frozenset[bytes]:
    """What the kernel is going to ask for of an open file that does not have it."""
    return _set_of(tuple(os.fsencode(name) for name in _ASKED_FOR if _is_lacked(descriptor, name)))


@functools.cache
def _set_of(names: tuple[bytes, ...]) -> frozenset[bytes]:
    """One for all files: it takes more memory than all else that is known of one."""
    return frozenset(names)


def _is_lacked(descriptor: int, name: str) -> bool:
    try:
        os.getxattr(descriptor, name)
    except OSError as error:
        return error.errno == errno.ENODATA
    return False


def names_for(path: bytes, caller: Caller) -> list[bytes]:
    """The names that this caller may know: those of `trusted` only with CAP_SYS_ADMIN (xattr(7)). Raises OSError."""
    names = os.listxattr(path)
    if any(name.startswith(_TRUSTED) for name in names) and not caller.may_administer():
        names = [name for name in names if not name.startswith(_TRUSTED)]
    return [os.fsencode(name) for name in names]


def set_attribute(path: bytes, name: bytes, value: bytes, caller: Caller) -> None:
    """setxattr(2). Raises OSError.

    Whoever sets an access control list, is not in the file's group and has no CAP_FSETID, takes the set-group-id bit
    away, as chmod(2) does. The kernel holds the inode's lock meanwhile, so nobody changes the mode.
    """
    os.setxattr(path, name, value)
    if os.fsdecode(name) != _ACCESS_CONTROL_LIST:
        return
    status = os.stat(path)
    is_kept = caller.is_in_group(status.st_gid) or caller.may_keep_set_group_id()
    if status.st_mode & stat.S_ISGID and not is_kept:
        # The rest of the mode is what the list has made it.
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~stat.S_ISGID)
