"""`mirrorfs umount`."""

from __future__ import annotations

import errno
import os
import select

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.options import PATH
from mirrorfs.cli.wait import wait_until_published
from mirrorfs.database.directory import StateDirectory
from mirrorfs.filesystem.mount import detach, is_dead, is_mounted
from mirrorfs.filesystem.system_calls import unmount
from mirrorfs.output import say
from mirrorfs.supervision.registry import RunningMount, find, mountpoint_of, unregister
from mirrorfs.supervision.users import users_of

_END_SECONDS = 30.0
_NAMED_USERS = 5


@click.command("umount")
@click.argument("datastore", type=PATH)
@click.option("--drain", is_flag=True, help="First wait until everything that exists now is published.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --drain: wait so long at most.")
def command(datastore: str, drain: bool, timeout: float | None) -> None:
    """Unmount the datastore; returns when the journal is on disk and the processes have ended.

    What is not mirrored yet is not lost: the next mount goes on with it. A mount that is in use stays.

    \b
    Example:
      mirrorfs umount --drain /mnt/datastore/store1

    Exit codes: 0 unmounted, 1 not unmounted (or not drained in time: then it stays mounted), 2 wrong usage.
    """
    require_root("unmount a datastore")
    path = mountpoint_of(os.path.realpath(datastore))
    if not is_mounted(path):
        raise Failure(f"no mirrorfs is mounted on {path}: 'mirrorfs status' lists what is mounted")
    if is_dead(path):
        _take_away_dead(path)
        say(f"{path} was left by a killed mirrorfs; it is unmounted now")
        return
    if drain:
        _drain(path, timeout)
    mount = find(path)
    process = None if mount is None else _open_process(mount.pid)
    try:
        unmount(os.fsencode(path))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Failure(
                f"{path} is in use by {_users(path)} and stays mounted: stop what uses it (PBS: 'systemctl stop "
                "proxmox-backup-proxy proxmox-backup'), then unmount again"
            ) from error
        raise Failure(f"cannot unmount {path}: {error.strerror}") from error
    if mount is not None and process is not None:
        _wait_for_end(mount, process)
    say(f"{path} is unmounted")


def _take_away_dead(path: str) -> None:
    entry = find(path)
    detach(path)
    if entry is not None:
        unregister(entry)


def _drain(path: str, timeout: float | None) -> None:
    try:
        wait_until_published(path, timeout)
    except Failure as failure:
        raise Failure(
            *failure.lines,
            f"{path} stays mounted. Without --drain it is unmounted at once; the next mount goes on.",
        ) from failure


def _users(path: str) -> str:
    users = users_of(path)
    named = ", ".join(f"{user.name} (process {user.pid})" for user in users[:_NAMED_USERS])
    if len(users) > _NAMED_USERS:
        named += f" and {len(users) - _NAMED_USERS} more"
    return named or f"something that /proc does not show (another mount inside it, perhaps: 'findmnt -R {path}')"


def _open_process(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        return None


def _wait_for_end(mount: RunningMount, process: int) -> None:
    """Wait for the filesystem process, which ends its uploader and closes the journal before it ends itself."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    if not poll.poll(_END_SECONDS * 1000):
        log = StateDirectory(mount.state_directory).log_file
        raise Failure(
            f"{mount.mountpoint} is unmounted, but its process {mount.pid} has not ended within {_END_SECONDS:.0f} s; "
            f"it still holds the state directory: see {log}"
        )
