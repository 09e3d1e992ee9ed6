"""Processes: started, asked for their processor time and memory, and ended whatever state they are in."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MOUNT_SECONDS = 20.0
_END_SECONDS = 20.0
_SAMPLE_SECONDS = 0.02
# clock_getcpuclockid(3) makes the clock of another process' scheduled time of its id and this number.
_SCHEDULED_TIME = 2


class BenchFailed(Exception):
    """The benchmark cannot be run or goes on no longer; the text says why."""


def processor_seconds(pid: int) -> float:
    """Processor time, user and system, that all threads of a process have used so far."""
    return time.clock_gettime((~pid << 3) | _SCHEDULED_TIME)


class FileSystemDaemon:
    """A process of ours in the foreground that serves one mount."""

    def __init__(self, command: Sequence[str], mountpoint: Path, environment: Mapping[str, str] | None = None) -> None:
        """Starts it, with our environment if none is given; returns when the mount answers. Raises BenchFailed."""
        self._mountpoint = mountpoint
        # A session of its own keeps it away from the terminal's Ctrl-C: it is unmounted in good order.
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True, env=environment
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


def remove_all(base: Path) -> None:
    """Remove a directory and all that is in it. Raises BenchFailed where something is mounted in it."""
    with open("/proc/self/mountinfo", "rb") as table:
        mounts = [line.split(b" ")[4].decode(errors="replace") for line in table]
    if left := [mount for mount in mounts if mount.startswith(f"{base}/")]:
        raise BenchFailed(f"still mounted, so nothing below {base} is removed: {', '.join(left)}")
    # A quarter of a million directories: rm is several times as quick about them as shutil.
    subprocess.run(["rm", "--recursive", "--one-file-system", str(base)], check=True)


def unmount(path: Path) -> None:
    """Take a mount away, in use or not; nothing happens when there is none."""
    if is_mount(path):
        subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False, timeout=_END_SECONDS)


def own_memory(pid: int | None = None) -> int:
    """Bytes of memory that belong to a process (this one by default) alone, files that it has mapped not counted; 0
    when it has ended."""
    try:
        lines = Path(f"/proc/{pid or 'self'}/status").read_text().splitlines()
    except ProcessLookupError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def answer_and_memory(program: Sequence[str]) -> tuple[dict[str, Any], int]:
    """Run a program that prints a line of JSON; returns that, and the most of `own_memory` that the program had.

    Raises BenchFailed.
    """
    # A session of its own keeps it away from the terminal's Ctrl-C, of which this process makes its own end.
    with subprocess.Popen(
        program, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as child:
        try:
            most = _watch_memory(child)
        finally:
            child.kill()
        assert child.stdout is not None
        answer = child.stdout.read()
    if child.returncode != 0:
        raise BenchFailed(f"{' '.join(program)} ended with {child.returncode}")
    return json.loads(answer), most


def _watch_memory(child: subprocess.Popen[str]) -> int:
    """Wait for the end of a process; returns the most memory that it had."""
    most = 0
    while True:
        most = max(most, own_memory(child.pid))
        try:
            child.wait(_SAMPLE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        return most
