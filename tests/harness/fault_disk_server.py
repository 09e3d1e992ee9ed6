"""The disk itself: a FUSE file system in a process of its own, whose one file is the content of a block device and
which obeys commands about power, bad blocks and slowness that come as JSON lines through the socket on stdin."""

from __future__ import annotations

import argparse
import ctypes
import errno
import json
import os
import socket
import stat
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pyfuse3
import trio

from tests.harness.fault_disk_medium import Medium, Survivors

DEVICE_DIRECTORY = "device"
"""Where in the disk's directory the file system with the image is mounted."""

_FIRST_IMAGE = pyfuse3.ROOT_INODE + 1
_FOREVER = 1e9
# The loop device has 128 requests under way at most; each may come in pieces.
_REQUESTS_AT_ONCE = 1024
_PR_SET_IO_FLUSHER = 57
_UNMOUNT_SECONDS = 10.0
_LARGEST_COMMAND = 64 * 1024 * 1024

Extent = tuple[int, int]
"""First byte on the device, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Slowness:
    """How much longer requests take, and which: those of `extents`, or all."""

    seconds: float
    reads: bool
    writes: bool
    extents: tuple[Extent, ...] | None
    ended: trio.Event = field(default_factory=trio.Event)

    def concerns(self, offset: int, size: int, *, writing: bool) -> bool:
        if not (self.writes if writing else self.reads):
            return False
        return self.extents is None or overlaps(self.extents, offset, size)


class FaultDiskOperations(pyfuse3.Operations):
    """Serves the image. Each time the power comes back the image is another file, so that nobody who still holds
    the previous one can touch what is on the disk now."""

    def __init__(self, medium: Medium, size: int) -> None:
        super().__init__()
        self._medium = medium
        self._size = size
        self._image = _FIRST_IMAGE
        self._powered = True
        self._bad: tuple[Extent, ...] = ()
        self._slowness: Slowness | None = None
        self._eio_reads = 0
        self._delayed_requests = 0

    @property
    def image_name(self) -> str:
        return f"image-{self._image - _FIRST_IMAGE}"

    # What the harness commands.

    def lose_power(self) -> None:
        self._powered = False
        self.speed_up()

    def restore_power(self, survivors: str, seed: int) -> dict[str, Any]:
        self.lose_power()
        cut = self._medium.cut(Survivors(survivors), Random(seed))
        self._image = pyfuse3.InodeT(self._image + 1)
        self._powered = True
        return {"image": self.image_name, **asdict(cut)}

    def fail_reads(self, extents: Sequence[Sequence[int]]) -> None:
        self._bad = (*self._bad, *_extents(extents))

    def heal_reads(self) -> None:
        self._bad = ()

    def slow_down(self, seconds: float, reads: bool, writes: bool, extents: Sequence[Sequence[int]] | None) -> None:
        self.speed_up()
        self._slowness = Slowness(seconds, reads, writes, None if extents is None else _extents(extents))

    def speed_up(self) -> None:
        if self._slowness is not None:
            self._slowness.ended.set()
            self._slowness = None

    def counters(self) -> dict[str, int]:
        return {"eio_reads": self._eio_reads, "delayed_requests": self._delayed_requests}

    # What the kernel asks.

    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = inode
        attributes.entry_timeout = attributes.attr_timeout = _FOREVER
        is_directory = inode == pyfuse3.ROOT_INODE
        attributes.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o700 if is_directory else stat.S_IFREG | 0o600)
        attributes.st_nlink = 1
        attributes.st_size = 0 if is_directory else self._size
        return attributes

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if os.fsdecode(name) != self.image_name:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(self._image)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        # Without direct_io the kernel would answer reads from its own pages of this file.
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), direct_io=True)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing is held for an open file."""

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        await self._delay(off, size, writing=False)
        self._require_power(fh)
        if overlaps(self._bad, off, size):
            self._eio_reads += 1
            raise pyfuse3.FUSEError(errno.EIO)
        return self._medium.read(off, size)

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        await self._delay(off, len(buf), writing=True)
        self._require_power(fh)
        if off + len(buf) > self._size:
            raise pyfuse3.FUSEError(errno.ENOSPC)
        self._medium.write(off, buf)
        self._bad = without(self._bad, off, len(buf))
        return len(buf)

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """The loop device's form of a flush. Size 0: a flush is of no block in particular."""
        await self._delay(0, 0, writing=True)
        self._require_power(fh)
        self._medium.flush()

    async def _delay(self, offset: int, size: int, *, writing: bool) -> None:
        slowness = self._slowness
        if slowness is not None and slowness.concerns(offset, size, writing=writing):
            self._delayed_requests += 1
            with trio.move_on_after(slowness.seconds):
                await slowness.ended.wait()

    def _require_power(self, handle: pyfuse3.FileHandleT) -> None:
        if not self._powered or handle != self._image:
            raise pyfuse3.FUSEError(errno.EIO)


def overlaps(extents: Sequence[Extent], offset: int, size: int) -> bool:
    """Whether any byte of offset and size is in the extents."""
    return any(start < offset + size and offset < end for start, end in extents)


def without(extents: tuple[Extent, ...], offset: int, size: int) -> tuple[Extent, ...]:
    """The extents but for the bytes of offset and size."""
    if not overlaps(extents, offset, size):
        return extents
    pieces = [
        piece for start, end in extents for piece in ((start, min(end, offset)), (max(start, offset + size), end))
    ]
    return tuple((start, end) for start, end in pieces if start < end)


def _extents(listed: Sequence[Sequence[int]]) -> tuple[Extent, ...]:
    return tuple((start, end) for start, end in listed)


async def _obey(operations: FaultDiskOperations, connection: trio.SocketStream) -> None:
    """Run commands until the harness closes its end, which it does by ending, too."""
    commands: Mapping[str, Callable[..., Any]] = {
        "lose_power": operations.lose_power,
        "restore_power": operations.restore_power,
        "fail_reads": operations.fail_reads,
        "heal_reads": operations.heal_reads,
        "slow_down": operations.slow_down,
        "speed_up": operations.speed_up,
        "counters": operations.counters,
    }
    await _send(connection, {"image": operations.image_name})
    received = bytearray()
    while data := await connection.receive_some():
        received += data
        while b"\n" in received:
            line, _, rest = received.partition(b"\n")
            received = bytearray(rest)
            command = json.loads(line)
            answer = commands[command.pop("command")](**command)
            await _send(connection, answer or {})


async def _send(connection: trio.SocketStream, answer: Mapping[str, Any]) -> None:
    await connection.send_all(json.dumps(answer).encode() + b"\n")


async def _serve(operations: FaultDiskOperations, control: socket.socket) -> None:
    connection = trio.SocketStream(trio.socket.from_stdlib_socket(control))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pyfuse3.main, 1, _REQUESTS_AT_ONCE)
        try:
            await _obey(operations, connection)
        except trio.BrokenResourceError:
            # The harness was killed with an answer unread.
            return
        finally:
            nursery.cancel_scope.cancel()


def _announce_as_part_of_writeback() -> None:
    """Never wait for dirty pages to be written, or for memory that only they can give: they may wait for us.

    PR_SET_IO_FLUSHER, see prctl(2). It needs CAP_SYS_RESOURCE, which a container's root may lack; the disk then
    works, but is slow when the machine's memory is full of dirty pages.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0:
        print(f"cannot become an I/O flusher: {os.strerror(ctypes.get_errno())}", flush=True)


def _detach(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], timeout=_UNMOUNT_SECONDS, check=False, stderr=subprocess.DEVNULL)


def main() -> None:
    """Serve a disk until stdin, a socket, is closed at its other end; then take down what is mounted from it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("size", type=int)
    parser.add_argument("mountpoint", type=Path, help="where the harness mounts the disk's file system")
    arguments = parser.parse_args()
    control = socket.socket(fileno=os.dup(0))
    medium = Medium(arguments.directory, arguments.size)
    operations = FaultDiskOperations(medium, arguments.size)
    _announce_as_part_of_writeback()
    pyfuse3.init(operations, str(arguments.directory / DEVICE_DIRECTORY), {"fsname=fault-disk", "subtype=fault-disk"})
    try:
        trio.run(_serve, operations, control)
    finally:
        pyfuse3.close()
        # Only now: while we serve, an unmount that waits for the disk would wait for us.
        _detach(arguments.mountpoint)
        medium.close()


if __name__ == "__main__":
    main()
