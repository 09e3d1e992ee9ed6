"""Mounting: the session with the kernel from mount to unmount, and what is to be seen of it from outside."""

import errno
import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import pyfuse3
import trio

from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.filesystem.system_calls import open_file_system, unmount

log = logging.getLogger(__name__)

SUBTYPE = "mirrorfs"
FILE_SYSTEM_TYPE = b"fuse.mirrorfs"
_READ_AHEAD_KIB = 4096
# Requests that are served at a time. One costs little while it waits; who comes when all are stuck waits with them.
_MOST_REQUESTS = 512
# Of these, requests that nobody waits for yet: reading ahead, and closing. The kernel's limit of 12 is less than what
# it reads ahead of one file: if that is stuck, no other file would be read any more.
_MOST_IN_BACKGROUND = 384
# From here on it reads only what somebody waits for.
_CONGESTION = 256
_GRACE_SECONDS = 3.0


class MountError(Exception):
    """The mount could not be made; the text says of what and why."""


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/self/mountinfo (proc(5))."""

    mountpoint: bytes
    file_system_type: bytes
    source: bytes
    device: str
    """major:minor, as in /sys/class/bdi"""


def mount_at(path: str) -> MountEntry | None:
    """What is mounted at exactly this path, topmost; None if it is no mount point."""
    wanted = os.fsencode(os.path.abspath(path))
    found = None
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            entry = _parse_mount_entry(line)
            if entry.mountpoint == wanted:
                found = entry
    return found


def is_mounted(path: str) -> bool:
    """Whether a mirrorfs is mounted at this path, alive or dead."""
    entry = mount_at(path)
    return entry is not None and entry.file_system_type == FILE_SYSTEM_TYPE


def is_dead(path: str) -> bool:
    """Whether a mirrorfs is mounted at this path whose process is gone. Its detached mount blocks the path."""
    if not is_mounted(path):
        return False
    try:
        # Not stat: the kernel may answer that from its cache although nobody is there any more.
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach(path: str) -> None:
    """Takes the topmost mount away from this path at once; it ends when nobody uses it any more."""
    unmount(os.fsencode(path), lazily=True)


async def serve(
    operations: PassThrough,
    mountpoint: str,
    options: Sequence[str] = (),
    *,
    source: str = SUBTYPE,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mounts and serves until the mount is taken away from outside or this task is cancelled.

    Reports started when the mount answers. When cancelled it unmounts: at once if nobody uses the mount; else
    it writes dirty pages, takes the mount out of the tree and goes on serving those who use it for a few
    seconds. Closes `operations`.

    `options` are mount options as after -o (nosuid and nodev hold unless `suid` or `dev` is among them);
    `source` is what shows as the mounted device. One mount a process, since pyfuse3 has one session only.
    Sets the umask of the process to 0 (the kernel applies the caller's).
    Raises MountError.
    """
    os.umask(0)
    session = _Session(operations, mountpoint)
    session.mount(_all_options(source, options))
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.run)
            nursery.start_soon(session.unmount_when_cancelled)
            await session.announce(task_status)
            await session.ended.wait()
            nursery.cancel_scope.cancel()
    finally:
        session.close()


class _Session:
    """pyfuse3's session, with an orderly end."""

    def __init__(self, operations: PassThrough, mountpoint: str) -> None:
        self._operations = operations
        self._mountpoint = os.path.abspath(mountpoint)
        self._unmounted = False
        self._entry: MountEntry | None = None
        self.ended = trio.Event()

    def mount(self, options: set[str]) -> None:
        self._refuse_loop()
        try:
            pyfuse3.init(self._operations, self._mountpoint, options)
        except (RuntimeError, UnicodeEncodeError) as error:
            raise MountError(f"cannot mount on {self._mountpoint}: {error}") from None

    def _refuse_loop(self) -> None:
        # Below the backing directory we would find our own mount there, and wait for ourselves.
        backing = os.fsdecode(self._operations.backing_path())
        mountpoint = os.path.realpath(self._mountpoint)
        if mountpoint != backing and os.path.commonpath((mountpoint, backing)) == backing:
            raise MountError(
                f"cannot mount on {mountpoint}: it is inside {backing}; mount over that itself, or elsewhere"
            )

    async def run(self) -> None:
        """Serves until the mount is gone, cancelled or not: requests under way are answered."""
        try:
            with trio.CancelScope(shield=True):
                await pyfuse3.main(max_tasks=_MOST_REQUESTS)
        finally:
            self.ended.set()

    async def announce(self, task_status: trio.TaskStatus[None]) -> None:
        self._entry = entry = mount_at(self._mountpoint)
        # Answered only when the kernel and we have agreed on everything.
        await _ask_from_outside("stat", "--format=", self._mountpoint)
        if entry is not None:
            _raise_read_ahead(entry.device)
            await trio.to_thread.run_sync(_raise_background, entry.device)
        task_status.started()

    async def unmount_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self._unmount()

    async def _unmount(self) -> None:
        if self.ended.is_set():
            return
        path = os.fsencode(self._mountpoint)
        try:
            await trio.to_thread.run_sync(unmount, path)
        except OSError as error:
            if error.errno == errno.EINVAL:
                log.info("%s was unmounted meanwhile", self._mountpoint)
            else:
                await self._detach(path)
        self._unmounted = True
        with trio.move_on_after(_GRACE_SECONDS):
            await self.ended.wait()
        if not self.ended.is_set():
            log.warning("%s is still in use: those who use it get errors from now on", self._mountpoint)
            pyfuse3.terminate()

    async def _detach(self, path: bytes) -> None:
        log.info("%s is in use: detaching it", self._mountpoint)
        await _ask_from_outside("sync", "--file-system", self._mountpoint)
        await trio.to_thread.run_sync(partial(unmount, path, lazily=True))

    def close(self) -> None:
        # What was unmounted must not be unmounted once more: something else may be mounted there by now.
        pyfuse3.close(unmount=not self._unmounted)
        if self._entry is not None and mount_at(self._mountpoint) == self._entry:
            # libfuse leaves the mount of a connection that was aborted.
            detach(self._mountpoint)
        self._operations.close()


def _all_options(source: str, options: Sequence[str]) -> set[str]:
    printable = re.sub(r"[^\x21-\x7e]", "?", source)
    escaped = printable.replace("\\", "\\\\").replace(",", "\\,")
    return {"default_permissions", "allow_other", f"fsname={escaped}", f"subtype={SUBTYPE}", *options}


def _raise_read_ahead(device: str) -> None:
    path = f"/sys/class/bdi/{device}/read_ahead_kb"
    try:
        with open(path, "w") as setting:
            setting.write(str(_READ_AHEAD_KIB))
    except OSError as error:
        log.info("reading ahead stays at the kernel's default: %s", error)


def _raise_background(device: str) -> None:
    """Sets the connection's limits where the kernel has them, in fusectl, whether or not that is mounted."""
    try:
        control = open_file_system(b"fusectl")
    except OSError as error:
        log.warning("the kernel may let few requests on a stuck file hold up the reading of others: %s", error)
        return
    try:
        _, _, connection = device.partition(":")
        for name, limit in (("max_background", _MOST_IN_BACKGROUND), ("congestion_threshold", _CONGESTION)):
            setting = os.open(f"{connection}/{name}", os.O_WRONLY, dir_fd=control)
            with open(setting, "w") as file:
                file.write(str(limit))
    except OSError as error:
        log.warning("the limits of requests in the background stay at the kernel's default: %s", error)
    finally:
        os.close(control)


async def _ask_from_outside(command: str, option: str, mountpoint: str) -> None:
    """Runs a command on our own mount, and waits for it.

    A thread of ours that waits for what we have not answered could not be killed, and would keep the connection to the
    kernel open: with it all who use the mount would hang for ever. Another process is let go when we end.
    """
    try:
        done = await trio.run_process(
            [command, option, mountpoint], capture_stdout=True, capture_stderr=True, check=False
        )
    except OSError as error:
        log.warning("cannot run %s for %s: %s", command, mountpoint, error)
        return
    if done.returncode != 0:
        log.warning("%s of %s: %s", command, mountpoint, done.stderr.decode(errors="replace").strip())


def _parse_mount_entry(line: bytes) -> MountEntry:
    fields, _, rest = line.partition(b" - ")
    _, _, device, _, mountpoint = fields.split(b" ")[:5]
    file_system_type, source = rest.split(b" ")[:2]
    return MountEntry(_unescape(mountpoint), file_system_type, _unescape(source), device.decode())


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
