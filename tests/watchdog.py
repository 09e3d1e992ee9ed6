"""What gets a test out of a system call that a hung mount never answers: the mount is killed.

A process that waits for a FUSE daemon cannot be interrupted by a signal handler, so the time limit of pytest cannot
help it. When the daemon dies the kernel answers everything that waits.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MARK = "MIRRORFS_TEST_RUN"
_DAEMONS = (b"mirrorfs.supervision", b"mirrorfs.filesystem", b"mirrorfs.replication", b"mirrorfs.cli")


@contextmanager
def killing_mounts_after(seconds: float) -> Iterator[None]:
    """Kill every mirrorfs process of this test run if the block takes longer than so many seconds."""
    timer = threading.Timer(seconds, kill_mounts)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def kill_mounts() -> None:
    """Kill every mirrorfs process that inherited this run's mark in its environment."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            daemon = any(name in (entry / "cmdline").read_bytes() for name in _DAEMONS)
            if daemon and mark in (entry / "environ").read_bytes().split(b"\0"):
                os.kill(int(entry.name), signal.SIGKILL)
        except (FileNotFoundError, ProcessLookupError):
            continue
