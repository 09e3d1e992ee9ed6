"""The attributes of an inode, changed as the kernel asks: owner, mode, size, times."""

import os
import stat

import pyfuse3

from mirrorfs.filesystem.descriptors import descriptor_path
from mirrorfs.filesystem.files import truncate
from mirrorfs.filesystem.system_calls import set_times


def set_attributes(
    descriptor: int,
    attr: pyfuse3.EntryAttributes,
    fields: pyfuse3.SetattrFields,
    opened: int | None,
    uid: int,
    gid: int,
) -> os.stat_result:
    """Sets what is asked for, the size through `opened` if there is such a descriptor; returns all attributes.

    `descriptor` may be any, opened with O_PATH too. The size is set as the user with `uid` and `gid`. It may wait.
    """
    path = descriptor_path(descriptor)
    changes_times = fields.update_atime or fields.update_mtime
    # No field at all is what chown(path, -1, -1) looks like: it sets ctime, and takes set-user-id away.
    changes_nothing = not (fields.update_mode or fields.update_size or changes_times)
    if fields.update_uid or fields.update_gid or changes_nothing:
        _set_owner(path, attr, fields)
    if fields.update_mode:
        os.chmod(path, stat.S_IMODE(attr.st_mode))
    if fields.update_size:
        truncate(path if opened is None else opened, attr.st_size, uid, gid)
    if changes_times:
        _set_times(path, attr, fields)
    return os.fstat(descriptor)


def _set_owner(path: bytes, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
    os.chown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)


def _set_times(path: bytes, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
    set_times(
        path,
        attr.st_atime_ns if fields.update_atime else None,
        attr.st_mtime_ns if fields.update_mtime else None,
    )
