"""Whether a chunk store can be native here, and if not, why, in words that an administrator understands."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mirrorfs.chunkstore.system_calls import (
    MOUNT_ATTR_NODEV,
    MOUNT_ATTR_NOEXEC,
    MOUNT_ATTR_NOSUID,
    MOUNT_ATTR_RDONLY,
    clone_mount,
    set_mount_attributes,
)
from mirrorfs.filesystem.mount_table import file_system_type_of

# Others may change these from elsewhere, and of that the kernel tells nothing.
_SHARED_FILE_SYSTEMS = frozenset(
    (
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "ceph",
        "9p",
        "afs",
        "lustre",
        "beegfs",
        "glusterfs",
        "virtiofs",
        "ocfs2",
        "gfs2",
        "fuse.glusterfs",
        "fuse.sshfs",
        "fuse.ceph",
        "fuse.s3fs",
        "fuse.rclone",
    )
)
_RIGHTS = "the right to do so is missing (CAP_SYS_ADMIN, which a container may lack)"
_ATTRIBUTES = {"ro": MOUNT_ATTR_RDONLY, "noexec": MOUNT_ATTR_NOEXEC}


class NativeImpossible(Exception):
    """The chunk store cannot be native; the message is a sentence without a full stop that says why."""


@contextmanager
def explaining(attempt: str) -> Iterator[None]:
    """Turn what the kernel answers to an attempt to be native into NativeImpossible."""
    try:
        yield
    except OSError as error:
        raise NativeImpossible(f"{attempt}: {_reason(error)}") from error


def _reason(error: OSError) -> str:
    match error.errno:
        case errno.ENOSYS:
            return "this kernel, or the container, does not have the system call"
        case errno.EINVAL:
            return "this kernel is too old for it (5.12 is needed)"
        case errno.EPERM | errno.EACCES:
            return _RIGHTS
        case errno.EMFILE | errno.ENFILE | errno.ENOSPC:
            return f"a limit of the system is reached ({error.strerror}; see /proc/sys/fs/fanotify)"
        case errno.ENODEV | errno.EXDEV | errno.EOPNOTSUPP:
            return f"the file system cannot ({error.strerror})"
    return error.strerror or repr(error)


def check_file_system(descriptor: int) -> None:
    """Raise NativeImpossible if others than this machine may change the file system of an open directory."""
    kind = file_system_type_of(descriptor)
    if kind in _SHARED_FILE_SYSTEMS:
        raise NativeImpossible(f"it is on {kind}, of whose changes from other machines the kernel tells nothing")


def mount_attributes(options: tuple[str, ...]) -> int:
    """Return the attributes that an attached directory gets in a mount with these mount options."""
    attributes = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV
    for option in options:
        attributes |= _ATTRIBUTES.get(option, 0)
    return attributes


def prepare_mount(descriptor: int, attributes: int) -> int:
    """Return a mount of an open directory that is attached nowhere yet; its descriptor is the caller's to close.

    Raises:
        NativeImpossible: the kernel does not make one.
    """
    with explaining("it cannot be mounted a second time (open_tree)"):
        mount = clone_mount(descriptor)
    try:
        with explaining("its mount cannot be made nosuid and nodev (mount_setattr)"):
            set_mount_attributes(mount, attributes)
    except NativeImpossible:
        os.close(mount)
        raise
    return mount
