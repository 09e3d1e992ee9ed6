"""One directory, one mirror, by whatever path it is reached: a bind mount shows the same directory under another name.

Two mirrors over one directory would each miss what the other one lets through.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from mirrorfs.filesystem.mount_table import FILE_SYSTEM_TYPE, mount_table
from mirrorfs.supervision.registry import running_mounts

log = logging.getLogger(__name__)

# What file systems answer that keep no such locks, or not for a directory: NFS, some FUSE file systems.
_CANNOT_LOCK = (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)


class MirroredAlready(Exception):
    """The directory has a mirror; the message says which."""


def root_id(root_descriptor: int) -> str:
    """Return what tells a directory from every other one on this machine, whatever its path is."""
    status = os.fstat(root_descriptor)
    return f"{os.major(status.st_dev)}:{os.minor(status.st_dev)}:{status.st_ino}"


@contextmanager
def sole_mirror(root_descriptor: int, datastore: str) -> Iterator[None]:
    """Keep every other mirror from this directory; ends with the process, whatever becomes of it.

    The lock is the kernel's, on the directory itself, so it holds for all paths. PBS locks files in it, never the
    directory. Raises MirroredAlready.
    """
    _refuse_a_mirror_of_a_mirror(root_descriptor, datastore)
    # Opened once more: what the uploader inherits must not keep the lock when this process is gone.
    own = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_descriptor)
    try:
        _lock(own, datastore)
        yield
    finally:
        os.close(own)


def _refuse_a_mirror_of_a_mirror(root_descriptor: int, datastore: str) -> None:
    device, _, _ = root_id(root_descriptor).rpartition(":")
    for entry in mount_table():
        if entry.file_system_type == FILE_SYSTEM_TYPE and entry.device == device:
            raise MirroredAlready(
                f"{datastore} shows what mirrorfs shows on {os.fsdecode(entry.mountpoint)}: it is mirrored already, as "
                f"{os.fsdecode(entry.source)}. One directory has one mirror"
            )


def _lock(descriptor: int, datastore: str) -> None:
    other = _registered(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        by = other or "by a process that 'lslocks' shows with this path"
        raise MirroredAlready(f"{datastore} is mirrored already, {by}. One directory has one mirror") from None
    except OSError as error:
        if error.errno not in _CANNOT_LOCK:
            raise
        if other is not None:
            raise MirroredAlready(f"{datastore} is mirrored already, {other}. One directory has one mirror") from None
        log.warning(
            "the file system of %s cannot lock a directory (%s): do not mirror it from another machine, nor under "
            "another path",
            datastore,
            error.strerror,
        )


def _registered(descriptor: int) -> str | None:
    wanted = root_id(descriptor)
    found = (mount for mount in running_mounts() if mount.root == wanted)
    return next((f"as {mount.datastore} (process {mount.pid}, mounted on {mount.mountpoint})" for mount in found), None)
