"""Mounting: the session with the kernel from mount to unmount, and what is to be seen of it from outside."""

import logging
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import pyfuse3
import trio

from mirrorfs.filesystem.handshake import Handshake
from mirrorfs.filesystem.interruption import interrupted_reads
from mirrorfs.filesystem.mount_table import OwnMount, detach
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.filesystem.reading import read_in_a_row
from mirrorfs.filesystem.shares import shares_of_requests
from mirrorfs.filesystem.slots import MOST_REQUESTS, Slots, Traffic
from mirrorfs.filesystem.system_calls import open_file_system, unmount
from mirrorfs.memory import use_one_arena

log = logging.getLogger(__name__)

SUBTYPE = "mirrorfs"
_READ_AHEAD_KIB = 4096
# Of MOST_REQUESTS, requests that nobody waits for yet: reading ahead, and closing. The kernel's limit of 12 is less
# than what it reads ahead of one file: if that is stuck, no other file would be read any more.
_MOST_IN_BACKGROUND = 384
# From here on it reads only what somebody waits for.
_CONGESTION = 256
_GRACE_SECONDS = 3.0


class MountError(Exception):
    """The mount could not be made; the text says of what and why."""


async def serve(
    operations: PassThrough,
    mount: OwnMount,
    options: Sequence[str] = (),
    *,
    source: str = SUBTYPE,
    traffic: Traffic | None = None,
    leaving: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Mounts and serves until the mount is taken away from outside or this task is cancelled.

    Reports started when the mount answers. When cancelled it unmounts: at once if nobody uses the mount; else
    it writes dirty pages, takes the mount out of the tree and goes on serving those who use it for a few
    seconds. Closes `operations`.

    `mount` says where, and knows afterwards which mount is ours.
    `options` are mount options as after -o (nosuid and nodev hold unless `suid` or `dev` is among them);
    `source` is what shows as the mounted device; `leaving` is called before it unmounts when cancelled;
    `traffic` is kept up to date. One mount a process, since pyfuse3 has one session only; to be run in the main thread.
    Sets the umask of the process to 0 (the kernel applies the caller's).
    Raises MountError.
    """
    os.umask(0)
    use_one_arena()
    session = _Session(operations, mount, Traffic() if traffic is None else traffic, leaving)
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

    def __init__(
        self, operations: PassThrough, mount: OwnMount, traffic: Traffic, leaving: Callable[[], Awaitable[None]]
    ) -> None:
        self._operations = operations
        self._traffic = traffic
        self._leaving = leaving
        self._own = mount
        self._mountpoint = mount.path
        self.ended = trio.Event()

    def mount(self, options: set[str]) -> None:
        self._refuse_loop()
        Slots(shares_of_requests(self._operations.owners, MOST_REQUESTS), self._traffic).bound(self._operations)
        read_in_a_row(self._operations.is_waiting)
        try:
            pyfuse3.init(self._operations, self._mountpoint, options)
        except (RuntimeError, UnicodeEncodeError) as error:
            raise MountError(f"cannot mount on {self._mountpoint}: {error}") from None
        self._own.note()
        try:
            self._operations.when_begun = Handshake().end
        except OSError as error:
            self.close()
            raise MountError(f"cannot mount on {self._mountpoint}: {error}") from error

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
            with trio.CancelScope(shield=True), interrupted_reads():
                await pyfuse3.main(max_tasks=MOST_REQUESTS)
        finally:
            self.ended.set()

    async def announce(self, task_status: trio.TaskStatus[None]) -> None:
        # Answered only when the kernel and we have agreed on everything.
        await _ask_from_outside("stat", "--format=", self._mountpoint)
        if self._own.entry is not None:
            _raise_read_ahead(self._own.entry.device)
            await trio.to_thread.run_sync(_raise_background, self._own.entry.device)
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
        if self._own.stands():
            await self._leaving()
            await self._take_away()
        else:
            log.info("%s is not ours to unmount any more: %s", self._mountpoint, self._own.describe_other())
        with trio.move_on_after(_GRACE_SECONDS):
            await self.ended.wait()
        if not self.ended.is_set():
            log.warning("%s is still in use: those who use it get errors from now on", self._mountpoint)
            pyfuse3.terminate()

    async def _take_away(self) -> None:
        path = os.fsencode(self._mountpoint)
        try:
            await trio.to_thread.run_sync(unmount, path)
        except OSError:
            await _ask_from_outside("sync", "--file-system", self._mountpoint)
            if self._own.stands():
                log.info("%s is in use: detaching it", self._mountpoint)
                await trio.to_thread.run_sync(partial(unmount, path, lazily=True))

    def close(self) -> None:
        # libfuse would unmount whatever stands at the path.
        pyfuse3.close(unmount=False)
        if self._own.stands():
            # The mount of a connection that was aborted stays.
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
