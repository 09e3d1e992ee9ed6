"""The processes that serve a mount: started, asked for their processor time, and ended whatever state they are in."""

from __future__ import annotations

import os
import select
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

_MOUNT_SECONDS = 20.0
_END_SECONDS = 20.0
# clock_getcpuclockid(3) makes the clock of another process' scheduled time of its id and this number.
_SCHEDULED_TIME = 2


class BenchFailed(Exception):
    """The benchmark cannot be run or goes on no longer; the text says why."""


def processor_seconds(pid: int) -> float:
    """Processor time, user and system, that all threads of a process have used so far."""
    return time.clock_gettime((~pid << 3) | _SCHEDULED_TIME)


class FileSystemDaemon:
    """A process of ours in the foreground that serves one mount."""

    def __init__(self, command: Sequence[str], mountpoint: Path) -> None:
        """Starts it, and returns when the mount answers. Raises BenchFailed."""
        self._mountpoint = mountpoint
        # A session of its own keeps it away from the terminal's Ctrl-C: it is unmounted in good order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        try:
            self._wait_until_mounted()
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def stop(self) -> None:
        """Take the mount away and end the process, by force if need be."""
        unmount(self._mountpoint)
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        # One that was killed leaves its mount.
        unmount(self._mountpoint)

    def _wait_until_mounted(self) -> None:
        ended = os.pidfd_open(self._process.pid)
        try:
            with open("/proc/self/mountinfo", "rb") as table:
                poll = select.poll()
                # The kernel tells of each change of the table in this way: proc(5).
                poll.register(table, select.POLLPRI)
                poll.register(ended, select.POLLIN)
                while not is_mount(self._mountpoint):
                    happened = dict(poll.poll(_MOUNT_SECONDS * 1000))
                    if not happened or ended in happened:
                        raise BenchFailed(f"{self._process.args!r} does not mount {self._mountpoint}")
        finally:
            os.close(ended)
        os.stat(self._mountpoint)


def is_mount(path: Path) -> bool:
    """Whether something is mounted at exactly this path, by the kernel's table: nothing is asked of the mount."""
    wanted = str(path).encode()
    with open("/proc/self/mountinfo", "rb") as table:
        return any(line.split(b" ")[4] == wanted for line in table)


def unmount(path: Path) -> None:
    """Take a mount away, in use or not; nothing happens when there is none."""
    if is_mount(path):
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False, timeout=_END_SECONDS)
