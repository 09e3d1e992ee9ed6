"""A pass-through that stops where its event loop is worst to be stopped: python -m ... BACKING MOUNTPOINT

Each line on standard input is answered by the same line on standard output, by the event loop: so it is seen to run.
After the line "stop", the process stops itself (SIGSTOP) when it has been told of the next request and has not read it.
"""

import os
import signal
import sys
from typing import Protocol

import trio

from mirrorfs.filesystem.mount import serve
from mirrorfs.filesystem.mount_table import OwnMount
from mirrorfs.filesystem.operations import PassThrough


class _HasFileNo(Protocol):
    def fileno(self) -> int: ...


_wait_readable = trio.lowlevel.wait_readable
_stops = False


async def _wait_and_stop(fd: "int | _HasFileNo") -> None:
    """What pyfuse3 waits with before it reads a request."""
    global _stops
    await _wait_readable(fd)
    if _stops:
        _stops = False
        os.kill(os.getpid(), signal.SIGSTOP)


async def _answer() -> None:
    global _stops
    lines = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
    async for line in lines:
        _stops = line == b"stop\n"
        os.write(sys.stdout.fileno(), line)


async def _run(backing: str, mountpoint: str) -> None:
    trio.lowlevel.wait_readable = _wait_and_stop
    operations = PassThrough(os.open(backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    async def serve_until_unmounted(task_status: trio.TaskStatus[None]) -> None:
        await serve(operations, OwnMount(mountpoint), task_status=task_status)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_until_unmounted)
        print("mounted", flush=True)
        await _answer()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_run, sys.argv[1], sys.argv[2])
