"""A disk for tests that fails as real disks do: it loses power, refuses blocks, is slow, is full. An ext4 on a loop
device on a FUSE file whose process sees every write and flush; needs root."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from tests.harness.fault_disk_medium import PowerCut, Survivors
from tests.harness.fault_disk_server import DEVICE_DIRECTORY, Extent

__all__ = ["FaultCounters", "FaultDisk", "FaultDiskError", "PowerCut", "Survivors"]

_REPOSITORY = Path(__file__).resolve().parents[2]
_ANSWER_SECONDS = 30.0
_COMMAND_SECONDS = 30.0
_END_SECONDS = 10.0
_REQUESTS_AT_ONCE = 1024
_READ_AHEAD_KIB = 1024
_SHORTEST_EXTENT = 4096
# In a directory that nobody looks into, and that is there as long as the file system is.
_BALLAST = Path("lost+found/ballast")
# linux/fiemap.h: struct fiemap, struct fiemap_extent
_FS_IOC_FIEMAP = 0xC020660B
_FIEMAP_FLAG_SYNC = 1
_FIEMAP_EXTENT_LAST = 1
_FIEMAP = struct.Struct("=QQIIII")
_FIEMAP_EXTENT = struct.Struct("=QQQ2QI3I")
_EXTENTS_AT_ONCE = 256


class FaultDiskError(Exception):
    """The disk could not be made, mounted or commanded; the text says what failed and why."""


@dataclass(frozen=True, slots=True)
class FaultCounters:
    """How often each kind of fault was injected."""

    eio_reads: int
    """Requests of fail_reads_of's blocks that were refused; those after a cut do not count."""
    delayed_requests: int
    power_cuts: int
    fills: int


class FaultDisk:
    """An ext4 on a block device that can lose power, refuse blocks, be slow, and be full.

    Any thread may call any method, but start, restore_power, check and stop only one at a time. When the process
    that holds it dies, however, the disk is taken down by its server.
    """

    def __init__(self, directory: Path, *, size: int) -> None:
        """`directory` belongs to the disk alone, is made when missing and removed by stop(). `size` in bytes, a
        multiple of 4096; ext4 takes some percent of it. Twice what is written is used of the file system below."""
        self._directory = directory
        self._size = size
        self._mountpoint = directory / "mounted"
        self._device_directory = directory / DEVICE_DIRECTORY
        self._control_directory = directory / "control"
        self._log = directory / "server.log"
        self._server: _Server | None = None
        self._image = ""
        self._powered = False
        self._power_cuts = 0
        self._fills = 0
        self._counted = {"eio_reads": 0, "delayed_requests": 0}

    @property
    def mountpoint(self) -> Path:
        """The root of the ext4. It is another file system after restore_power(): open descriptors stay behind."""
        return self._mountpoint

    @property
    def counters(self) -> FaultCounters:
        """Raises FaultDiskError."""
        if self._server is not None:
            self._counted = self._server.command("counters")
        return FaultCounters(power_cuts=self._power_cuts, fills=self._fills, **self._counted)

    def start(self) -> None:
        """Make the file system and mount it. Raises FaultDiskError, and has left nothing then."""
        if self._server is not None:
            raise FaultDiskError(f"the disk in {self._directory} is started already")
        try:
            for directory in (self._directory, self._mountpoint, self._device_directory, self._control_directory):
                directory.mkdir(parents=True, exist_ok=True)
            self._server = _Server(self._directory, self._size, self._mountpoint, self._log)
            self._image = self._server.first_image
            self._powered = True
            self._allow_requests_at_once()
            with self._loop_device() as device:
                # A new image holds only zeros, which need not be written once more.
                options = "nodiscard,lazy_itable_init=0,assume_storage_prezeroed=1"
                self._run("mkfs.ext4", "-q", "-F", "-m", "0", "-b", "4096", "-E", options, device)
                self._mount(device)
        except OSError as error:
            self.stop()
            raise FaultDiskError(f"cannot make a disk in {self._directory}: {error}") from error
        except BaseException:
            self.stop()
            raise

    def _allow_requests_at_once(self) -> None:
        # The 12 that the kernel allows would make requests to fast blocks wait for those to slow ones.
        connection = os.minor(self._device_directory.stat().st_dev)
        self._run("mount", "-t", "fusectl", "fusectl", str(self._control_directory))
        try:
            limit = self._control_directory / str(connection) / "max_background"
            limit.write_text(str(_REQUESTS_AT_ONCE))
        finally:
            self._run("umount", str(self._control_directory))

    @contextmanager
    def _loop_device(self) -> Iterator[str]:
        """A loop device on the present image. It goes when the last user of it does."""
        image = self._device_directory / self._image
        # With direct I/O the loop device keeps many requests under way, and nothing in pages of its own.
        device = self._run("losetup", "--find", "--show", "--direct-io=on", str(image)).strip()
        descriptor = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            # While it is open this only orders it to go at the last close.
            self._run("losetup", "--detach", device)
            queue = Path("/sys/block") / Path(device).name / "queue"
            # A request made of two files' blocks would fail and be late for both.
            (queue / "nomerges").write_text("2")
            (queue / "read_ahead_kb").write_text(str(_READ_AHEAD_KIB))
            yield device
        finally:
            os.close(descriptor)

    def _mount(self, device: str) -> None:
        options = "data=ordered,barrier=1,noinit_itable,errors=remount-ro"
        self._run("mount", "-t", "ext4", "-o", options, device, str(self._mountpoint))

    def lose_power(self) -> None:
        """The moment of the cut: when this returns nothing more reaches the disk. Writes, flushes and reads fail
        with EIO, also those that are being delayed; what is in the page cache can still be read.

        Raises FaultDiskError.
        """
        self._command("lose_power")
        if self._powered:
            self._powered = False
            self._power_cuts += 1

    def restore_power(self, random: Random, *, survivors: Survivors | None = None) -> PowerCut:
        """Mount what a disk may hold after the cut: all that was flushed, and of the later writes what `random`
        picks, or as told by `survivors`. Loses the power first if nobody has.

        All who used the disk should be dead: what they still have open is of the old file system, and gives EIO.
        Blocks that failed keep failing; the disk is fast again. Raises FaultDiskError.
        """
        if self._powered:
            self.lose_power()
        if _is_mounted(self._mountpoint):
            self._detach(self._mountpoint)
        if survivors is None:
            survivors = random.choice(list(Survivors))
        restored = self._command("restore_power", survivors=survivors, seed=random.getrandbits(64))
        self._image = restored["image"]
        self._powered = True
        with self._loop_device() as device:
            self._mount(device)
        return PowerCut(restored["lost_writes"], restored["kept_writes"], restored["lost_bytes"], survivors)

    def check(self) -> None:
        """Unmount, have e2fsck look at everything, mount again. Raises FaultDiskError if the file system is not
        consistent, or is in use."""
        self._run("umount", str(self._mountpoint))
        self._run("e2fsck", "-f", "-n", str(self._device_directory / self._image))
        with self._loop_device() as device:
            self._mount(device)

    def fail_reads_of(self, path: Path) -> None:
        """From now on reading the blocks that hold this file's data gives EIO, until they are written again (a disk
        puts other sectors in their place) or heal_reads(). What of the file is mapped stays readable, and what a file
        system on top of this one has in pages of its own.

        Raises OSError and FaultDiskError.
        """
        with self._blocks_of(path) as extents:
            self._command("fail_reads", extents=extents)

    def heal_reads(self) -> None:
        """Blocks that failed read well again. Raises FaultDiskError."""
        self._command("heal_reads")

    def slow_down(self, seconds: float, *, reads: bool = True, writes: bool = True, path: Path | None = None) -> None:
        """Each read or write takes so many seconds more, or only those of the blocks that hold this file's data now,
        whose pages are dropped. Requests do not wait for one another; but a flush, which is delayed as a write when
        there is no `path`, holds up what comes after it, as in the kernel. Replaces an earlier slow_down.

        What waits for the disk cannot be killed, not even by a test's time limit: another thread has to call
        speed_up(), lose_power() or stop(). Making a file may take several reads.

        Raises OSError and FaultDiskError.
        """
        if path is None:
            self._command("slow_down", seconds=seconds, reads=reads, writes=writes, extents=None)
            return
        with self._blocks_of(path) as extents:
            self._command("slow_down", seconds=seconds, reads=reads, writes=writes, extents=extents)

    @contextmanager
    def _blocks_of(self, path: Path) -> Iterator[list[Extent]]:
        """Where the disk has this file's data. Afterwards no page of it is cached, so that reads come to the disk."""
        with _opened(path) as descriptor:
            if os.fstat(descriptor).st_dev != self._mountpoint.stat().st_dev:
                raise FaultDiskError(f"{path} is not on the disk mounted at {self._mountpoint}")
            os.fsync(descriptor)
            yield _extents_of(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)

    def speed_up(self) -> None:
        """No more delays; requests that are being delayed go on at once. Raises FaultDiskError."""
        self._command("speed_up")

    def fill(self, *, leave: int = 0) -> None:
        """Take all space but `leave` bytes, rounded down to blocks. Files can still be made: inodes are left.

        Raises OSError.
        """
        with _opened(self._mountpoint / _BALLAST, os.O_RDWR | os.O_CREAT) as descriptor:
            end = _allocate_everything(descriptor, self._size)
            if leave:
                os.ftruncate(descriptor, max(0, end - leave))
            # Blocks that were given back can be used when the journal says so.
            os.fsync(descriptor)
        self._fills += 1

    def free(self) -> None:
        """Give back what fill() took. Raises OSError."""
        (self._mountpoint / _BALLAST).unlink(missing_ok=True)
        with _opened(self._mountpoint) as descriptor:
            os.fsync(descriptor)

    def stop(self) -> None:
        """Cut the power, unmount, and remove everything, as far as it is there. Never waits long for anything.

        Raises FaultDiskError if the mount could not be taken away.
        """
        server, self._server = self._server, None
        if server is not None:
            self._counted = server.end(self._counted)
            self._powered = False
        if not self._directory.exists():
            return
        for mounted in (self._mountpoint, self._device_directory, self._control_directory):
            if _is_mounted(mounted):
                self._detach(mounted)
            if mounted.exists():
                mounted.rmdir()
        self._log.unlink(missing_ok=True)
        self._directory.rmdir()

    def _detach(self, path: Path) -> None:
        self._run("umount", "--lazy", str(path))

    def _command(self, command: str, **arguments: object) -> dict[str, Any]:
        if self._server is None:
            raise FaultDiskError(f"the disk in {self._directory} is not started")
        return self._server.command(command, **arguments)

    def _run(self, *command: str) -> str:
        """The output of a program that uses the disk."""
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            output, errors = process.communicate(timeout=_COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            # It may wait for the disk, which no signal ends; without the server the kernel lets it go.
            if self._server is not None:
                self._server.kill()
            process.kill()
            raise FaultDiskError(f"{' '.join(command)} took more than {_COMMAND_SECONDS:.0f} s") from None
        if process.returncode != 0:
            raise FaultDiskError(
                f"{' '.join(command)} failed ({process.returncode}): {errors.strip() or output.strip()}"
            )
        return output


class _Server:
    """The process that is the disk, and the socket to command it."""

    def __init__(self, directory: Path, size: int, mountpoint: Path, log: Path) -> None:
        """Raises OSError and FaultDiskError."""
        self._lock = threading.Lock()
        self._log = log
        self._socket, theirs = socket.socketpair()
        self._socket.settimeout(_ANSWER_SECONDS)
        self._answers = self._socket.makefile("rb")
        arguments = (str(directory), str(size), str(mountpoint))
        with theirs, log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.harness.fault_disk_server", *arguments],
                stdin=theirs.fileno(),
                stdout=errors.fileno(),
                stderr=errors.fileno(),
                cwd=_REPOSITORY,
                # Interrupting the tests must not take the disk away before they have ended.
                start_new_session=True,
            )
        try:
            self.first_image = str(self._answer("start")["image"])
        except BaseException:
            self._close()
            raise

    def command(self, command: str, **arguments: object) -> dict[str, Any]:
        """Raises FaultDiskError."""
        with self._lock:
            try:
                self._socket.sendall(json.dumps({"command": command, **arguments}).encode() + b"\n")
            except OSError as error:
                raise FaultDiskError(f"the disk does not take {command}: {error}; {self._last_words()}") from error
            return self._answer(command)

    def _answer(self, command: str) -> dict[str, Any]:
        try:
            line = self._answers.readline()
        except OSError as error:
            raise FaultDiskError(f"the disk does not answer {command}: {error}") from error
        if not line:
            raise FaultDiskError(f"the disk's process ended at {command}; {self._last_words()}")
        answer = json.loads(line)
        assert isinstance(answer, dict)
        return answer

    def _last_words(self) -> str:
        return "it said: " + (self._log.read_text(errors="replace").strip()[-2000:] or "nothing")

    def end(self, counted: dict[str, int]) -> dict[str, int]:
        """Cut the power and end the process, which then unmounts everything. Gives the last counters, those passed
        if it does not tell."""
        try:
            self.command("lose_power")
            counted = self.command("counters")
        except FaultDiskError:
            # It is dead or stuck: what matters now is that it goes.
            self._process.kill()
        self._close()
        return counted

    def _close(self) -> None:
        self._answers.close()
        self._socket.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self._process.wait(_END_SECONDS)

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def _opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _is_mounted(path: Path) -> bool:
    """From the kernel's list: a look at the path itself may wait for the disk."""
    wanted = os.path.abspath(path)
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as lines:
        return any(line.split()[4] == wanted for line in lines)


def _extents_of(descriptor: int) -> list[Extent]:
    """Where on the device a file's data is, by ioctl FS_IOC_FIEMAP (Documentation/filesystems/fiemap.rst)."""
    extents: list[Extent] = []
    position = 0
    while True:
        request = bytearray(_FIEMAP.size + _EXTENTS_AT_ONCE * _FIEMAP_EXTENT.size)
        _FIEMAP.pack_into(request, 0, position, 2**64 - 1 - position, _FIEMAP_FLAG_SYNC, 0, _EXTENTS_AT_ONCE, 0)
        fcntl.ioctl(descriptor, _FS_IOC_FIEMAP, request)
        mapped = _FIEMAP.unpack_from(request, 0)[3]
        flags = _FIEMAP_EXTENT_LAST
        for index in range(mapped):
            logical, physical, length, _, _, flags, *_ = _FIEMAP_EXTENT.unpack_from(
                request, _FIEMAP.size + index * _FIEMAP_EXTENT.size
            )
            extents.append((physical, physical + length))
            position = logical + length
        if flags & _FIEMAP_EXTENT_LAST:
            return extents


def _allocate_everything(descriptor: int, size: int) -> int:
    """Let the file take all free space, in ever smaller pieces. Gives the file's end."""
    piece = size
    end = os.fstat(descriptor).st_size
    while piece >= _SHORTEST_EXTENT:
        try:
            os.posix_fallocate(descriptor, end, piece)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            piece //= 2
        end = os.fstat(descriptor).st_size
    return end
