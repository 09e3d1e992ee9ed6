"""Whether a mount answers: asked under a time limit, by a process of its own that can be left behind.

`python -m mirrorfs.filesystem.condition PATH` is that process; it is not to be called by hand. Whoever asks a file
system that hangs waits for as long as it does, and may not even be killed meanwhile.
"""

from __future__ import annotations

import errno
import os
import select
import subprocess
import sys
from enum import Enum

from mirrorfs import interpreter
from mirrorfs.filesystem.mount_table import is_mounted

_ANSWER_SECONDS = 10.0
_IS_DEAD = 3
_MILLISECONDS = 1000


class NotAsked(OSError):
    """The process that was to ask the mount did not come to that: nothing is known of the mount."""


class Condition(Enum):
    """What is to be seen of the mirrorfs at a path."""

    ABSENT = "absent"
    """None is mounted there."""
    SERVING = "serving"
    """It answers; what was closed before it was asked has been recorded, since it answers in order."""
    DEAD = "dead"
    """Its process is gone; the mount still blocks the path."""
    SILENT = "silent"
    """It was asked and has not answered in time: its process is stopped, or its disk hangs."""


def condition_of(path: str, seconds: float = _ANSWER_SECONDS) -> Condition:
    """Tell how the mirrorfs at a path is: it has that many seconds to answer, from when it is asked.

    As many again are waited for the process that asks to begin: on a machine with too much to do that takes longer
    than any answer, and says nothing of the mount.

    Raises:
        NotAsked: it had not begun by then, or was ended by somebody.
        OSError: no process can be started that would ask.
    """
    if not is_mounted(path):
        return Condition.ABSENT
    asking = subprocess.Popen(
        interpreter.command("mirrorfs.filesystem.condition", path),
        env=interpreter.environment(),
        cwd=interpreter.WORKING_DIRECTORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait_until_it_asks(asking, seconds)
        code = asking.wait(seconds)
    except subprocess.TimeoutExpired:
        return Condition.SILENT
    finally:
        # Not waited for: it ends when the file system lets it.
        asking.kill()
    if code == _IS_DEAD:
        return Condition.DEAD
    if code != 0:
        raise NotAsked(f"the process that asks the mount on {path} was ended ({code}) before it had an answer")
    return Condition.SERVING if is_mounted(path) else Condition.ABSENT


def _wait_until_it_asks(asking: subprocess.Popen[bytes], seconds: float) -> None:
    assert asking.stdout is not None
    with asking.stdout as begun:
        # Not select: this process may have more descriptors than that can take.
        watch = select.poll()
        watch.register(begun, select.POLLIN)
        if not watch.poll(seconds * _MILLISECONDS):
            raise NotAsked(
                f"a process that asks the mount has not begun within {seconds:g} s: is the machine too busy?"
            )
        if not os.read(begun.fileno(), 1):
            raise NotAsked("the process that asks the mount has ended before it did")


def is_dead(path: str) -> bool:
    """Tell whether a mirrorfs is mounted at this path whose process is gone. Its mount blocks the path."""
    return condition_of(path) is Condition.DEAD


def main() -> int:
    """Say on standard output that it asks now, and ask the file system at the path; the exit code says how it is."""
    os.write(sys.stdout.fileno(), b".")
    try:
        # Not stat: the kernel may answer that from its cache although nobody is there any more.
        os.statvfs(sys.argv[1])
    except OSError as error:
        return _IS_DEAD if error.errno in (errno.ENOTCONN, errno.ECONNABORTED) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
