"""`mirrorfs umount`."""

from __future__ import annotations

import errno
import os
import select
import signal

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.wait import wait_until_published
from mirrorfs.database.directory import StateDirectory
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.filesystem.mount_table import FILE_SYSTEM_TYPE, detach, mount_at
from mirrorfs.output import say
from mirrorfs.supervision.asking import describe_silence, lingering_at
from mirrorfs.supervision.attached_chunks import unmount_with_chunks, users_of_chunks
from mirrorfs.supervision.registry import RunningMount, find, unregister
from mirrorfs.supervision.users import MountUser, copies_of, holders_of, how_to_let_go, lives, named, users_of

_END_SECONDS = 30.0


@click.command("umount")
@click.argument("datastore", type=DATASTORE)
@click.option("--drain", is_flag=True, help="First wait until everything that exists now is published.")
@click.option("--timeout", type=FiniteRange(min=0), metavar="SECONDS", help="With --drain: wait so long at most.")
@click.option("--while-in-use", is_flag=True, help="Also if somebody uses it, who gets errors then.")
def command(datastore: str, drain: bool, timeout: float | None, while_in_use: bool) -> None:
    """Unmount the datastore; returns when the journal is on disk and the processes have ended.

    What is not mirrored yet is not lost: the next mount goes on with it. A mount that is in use stays, and who uses
    it is named. A PBS need not be stopped, it can be told to let go of the datastore:

    \b
    Example:
      proxmox-backup-manager datastore update store1 --maintenance-mode type=offline
      mirrorfs umount --drain /mnt/datastore/store1
      proxmox-backup-manager datastore update store1 --delete maintenance-mode

    Exit codes: 0 unmounted, 1 not unmounted (or not drained in time: then it stays mounted), 2 wrong usage.
    """
    require_root("unmount a datastore")
    path = locate(datastore)
    match condition_of(path):
        case Condition.ABSENT:
            _end_lingering(path)
        case Condition.DEAD:
            _take_away_dead(path)
        case Condition.SILENT if drain:
            raise Failure(describe_silence(path))
        case condition:
            if drain:
                _drain(path, timeout)
            _unmount(path, while_in_use=while_in_use, answers=condition is Condition.SERVING)


def _end_lingering(path: str) -> None:
    mount = lingering_at(path)
    if mount is None:
        raise Failure(f"no mirrorfs is mounted on {path}: 'mirrorfs status' lists what is mounted")
    process = _open_process(mount.pid)
    if process is not None:
        held = "something" if mount.device is None else holders_of(mount.device)
        _ask_to_end(process)
        _wait_for_end(mount, process)
        say(f"{mount.mountpoint} had been unmounted before; its process {mount.pid} has ended now")
        _say_who_held_it(held)


def _take_away_dead(path: str) -> None:
    entry = find(path)
    detach(path)
    if entry is not None:
        unregister(entry)
    say(f"{path} was left by a killed mirrorfs; it is unmounted now")


def _unmount(path: str, *, while_in_use: bool, answers: bool) -> None:
    entry, mount = mount_at(path), find(path)
    if entry is None or entry.file_system_type != FILE_SYSTEM_TYPE:
        raise Failure(f"{path} was unmounted meanwhile")
    process = None if mount is None else _open_process(mount.pid)
    if while_in_use and process is not None:
        # It serves those who use it for a few seconds more, and writes what they have changed.
        held = holders_of(entry.device)
        _ask_to_end(process)
    else:
        _refuse_if_used(path, list(dict.fromkeys([*users_of(entry.device), *users_of_chunks(entry.device)])))
        copies = copies_of(entry.device, besides=entry.identifier)
        _unmount_idle(path, answers=answers)
        held = ", ".join(map(str, copies)) or holders_of(entry.device) if lives(entry) else ""
        if held and process is not None:
            _ask_to_end(process)
    if mount is not None and process is not None:
        _wait_for_end(mount, process)
    say(f"{path} is unmounted")
    if held:
        _say_who_held_it(held)


def _refuse_if_used(path: str, users: list[MountUser]) -> None:
    if users:
        raise Failure(
            f"{path} is in use by {named(users)} and stays mounted: stop what uses it, then unmount again. "
            f"{how_to_let_go(path)} Or say --while-in-use: then they get errors"
        )


def _unmount_idle(path: str, *, answers: bool) -> None:
    try:
        unmount_with_chunks(path, answers=answers)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise Failure(
                f"{path} is in use by something that /proc does not show (another mount inside it, perhaps: "
                f"'findmnt -R {path}') and stays mounted"
            ) from error
        raise Failure(f"cannot unmount {path}: {error.strerror}") from error


def _ask_to_end(process: int) -> None:
    try:
        signal.pidfd_send_signal(process, signal.SIGTERM)
    except ProcessLookupError:
        # It has ended by itself.
        return


def _say_who_held_it(held: str) -> None:
    say(f"It was still held by {held}: there, it gives errors from now on.", err=True)


def _drain(path: str, timeout: float | None) -> None:
    try:
        wait_until_published(path, timeout)
    except Failure as failure:
        raise Failure(
            *failure.lines,
            f"{path} stays mounted. Without --drain it is unmounted at once; the next mount goes on.",
        ) from failure


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
