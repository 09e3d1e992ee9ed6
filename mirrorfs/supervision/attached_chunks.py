"""The chunks attached in a mount, from outside: who uses them, and unmounting both together or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from mirrorfs.chunkstore.place import chunks_path, is_attached
from mirrorfs.chunkstore.system_calls import attach_mount, clone_mount
from mirrorfs.filesystem.mount_table import detach, mount_table
from mirrorfs.filesystem.system_calls import mount_of, unmount
from mirrorfs.supervision.users import MountUser, processes, things_in_use, user_of, view_of

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def users_of_chunks(device: str) -> list[MountUser]:
    """Find the processes that use the chunks attached in a mount, as far as /proc shows them.

    `device` (major:minor) is that of the mount's own file system. The chunks are on that of the datastore, which holds
    much else, and the filesystem process has them open too, beneath the mount: so it is the mount that tells.
    """
    attached: dict[tuple[str, str], set[int]] = {}
    users = []
    for process in processes():
        try:
            view = view_of(process)
            if view not in attached:
                attached[view] = _attached_in_view_of(process, device)
        except OSError:
            # It has ended meanwhile.
            continue
        identifiers = attached[view]
        if identifiers and any(_mount_of(link) in identifiers for link in things_in_use(process)):
            users.append(user_of(process))
    return users


def _attached_in_view_of(process: Path, device: str) -> set[int]:
    entries = list(mount_table(int(process.name)))
    mounts = {
        entry.identifier: os.fsencode(chunks_path(os.fsdecode(entry.mountpoint)))
        for entry in entries
        if entry.device == device
    }
    return {entry.identifier for entry in entries if mounts.get(entry.parent) == entry.mountpoint}


def _mount_of(link: Path) -> int | None:
    try:
        return mount_of(os.fsencode(link))
    except OSError:
        return None


def unmount_with_chunks(mountpoint: str, *, answers: bool = True) -> None:
    """Unmount a datastore with the chunks attached in it, or leave both as they are.

    A mount that does not answer cannot be looked into, to unmount the chunks: both are taken away at once.

    Raises:
        OSError: with EBUSY when one of them is in use.
    """
    if not is_attached(mountpoint):
        unmount(os.fsencode(mountpoint))
        return
    if not answers:
        detach(mountpoint)
        return
    path = chunks_path(mountpoint)
    kept = _clone(path)
    try:
        unmount(os.fsencode(path))
        try:
            unmount(os.fsencode(mountpoint))
        except OSError:
            _attach_again(kept, path)
            raise
    finally:
        os.close(kept)


def _clone(path: str) -> int:
    attached = os.open(path, _DIRECTORY)
    try:
        return clone_mount(attached)
    finally:
        os.close(attached)


def _attach_again(kept: int, path: str) -> None:
    over = os.open(path, _DIRECTORY)
    try:
        attach_mount(kept, over)
    finally:
        os.close(over)
