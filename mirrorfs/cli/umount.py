"""`mirrorfs umount`."""

from __future__ import annotations

import errno
import os
import threading

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.options import PATH
from mirrorfs.cli.wait import wait_until_published
from mirrorfs.filesystem.mount import detach, is_dead, is_mounted
from mirrorfs.filesystem.system_calls import unmount
from mirrorfs.journal.directory import DirectoryLock, StateDirectory
from mirrorfs.supervision.registry import find, mountpoint_of, state_directory_of, unregister
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
        click.echo(f"{path} was left by a killed mirrorfs; it is unmounted now")
        return
    directory = state_directory_of(path)
    if drain:
        _drain(path, timeout)
    try:
        unmount(os.fsencode(path))
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Failure(
                f"{path} is in use by {_users(path)} and stays mounted: stop what uses it (PBS: 'systemctl stop "
                "proxmox-backup-proxy proxmox-backup'), then unmount again"
            ) from error
        raise Failure(f"cannot unmount {path}: {error.strerror}") from error
    _wait_for_end(directory)
    click.echo(f"{path} is unmounted")


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
            f"{failure.message}\n{path} stays mounted. Without --drain it is unmounted at once; the next mount goes on."
        ) from failure


def _users(path: str) -> str:
    users = users_of(path)
    named = ", ".join(f"{user.name} (process {user.pid})" for user in users[:_NAMED_USERS])
    if len(users) > _NAMED_USERS:
        named += f" and {len(users) - _NAMED_USERS} more"
    return named or f"something that /proc does not show (another mount inside it, perhaps: 'findmnt -R {path}')"


def _wait_for_end(directory: StateDirectory) -> None:
    """Wait for the filesystem process to give its lock back, which it does when the journal is closed."""
    ended = threading.Event()

    def wait() -> None:
        lock = DirectoryLock(directory, "mount")
        lock.acquire(wait=True)
        lock.release()
        ended.set()

    threading.Thread(target=wait, daemon=True).start()
    if not ended.wait(_END_SECONDS):
        raise Failure(
            f"it is unmounted, but its process has not ended within {_END_SECONDS:.0f} s: see {directory.log_file}"
        )
