"""Whether a mount answers: asked under a time limit, by a process of its own that can be left behind.

`python -m mirrorfs.filesystem.condition PATH` is that process; it is not to be called by hand. Whoever asks a file
system that hangs waits for as long as it does, and may not even be killed meanwhile.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from enum import Enum

from mirrorfs import interpreter
from mirrorfs.filesystem.mount_table import is_mounted

_ANSWER_SECONDS = 10.0
_IS_DEAD = 3


class Condition(Enum):
    """What is to be seen of the mirrorfs at a path."""

    ABSENT = "absent"
    """None is mounted there."""
    SERVING = "serving"
    """It answers; what was closed before it was asked has been recorded, since it answers in order."""
    DEAD = "dead"
    """Its process is gone; the mount still blocks the path."""
    SILENT = "silent"
    """It has not answered in time: its process is stopped, or its disk hangs."""


def condition_of(path: str, seconds: float = _ANSWER_SECONDS) -> Condition:
    """Tell how the mirrorfs at a path is, within that many seconds.

    Raises:
        OSError: no process can be started that would ask.
    """
    if not is_mounted(path):
        return Condition.ABSENT
    asking = subprocess.Popen(
        interpreter.command("mirrorfs.filesystem.condition", path),
        env=interpreter.environment(),
        cwd=interpreter.WORKING_DIRECTORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        code = asking.wait(seconds)
    except subprocess.TimeoutExpired:
        # Not waited for: it ends when the file system lets it.
        asking.kill()
        return Condition.SILENT
    if code == _IS_DEAD:
        return Condition.DEAD
    return Condition.SERVING if is_mounted(path) else Condition.ABSENT


def is_dead(path: str) -> bool:
    """Tell whether a mirrorfs is mounted at this path whose process is gone. Its mount blocks the path."""
    return condition_of(path) is Condition.DEAD


def main() -> int:
    """Ask the file system at the path; the exit code says how it is."""
    try:
        # Not stat: the kernel may answer that from its cache although nobody is there any more.
        os.statvfs(sys.argv[1])
    except OSError as error:
        return _IS_DEAD if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
