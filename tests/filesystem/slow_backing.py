"""A backing directory that is slow on command: python -m tests.filesystem.slow_backing DIRECTORY MOUNTPOINT

What has "slow" in its name can be held up, per operation; everything else, and what a disk's file system has in memory
(attributes of known inodes), is answered at once. Commands come as lines on standard input: "hold OPERATION..." holds
up these operations until "go"; "delay SECONDS" makes all of them take a random time up to that. Each request that is
held up is told by a line "held OPERATION" on standard output. "traffic" is answered by "full" or "free".
"""

import os
import random
import sys
from collections.abc import Awaitable, Callable

import pyfuse3
import trio

from mirrorfs.filesystem.mount import serve
from mirrorfs.filesystem.mount_table import OwnMount
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.filesystem.slots import Traffic

_MARK = b"slow"
BY_INODE = (
    "lookup",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "readlink",
    "setattr",
    "getxattr",
    "setxattr",
    "listxattr",
    "removexattr",
    "open",
    "create",
    "opendir",
)
BY_HANDLE = ("read", "write", "flush", "fsync", "readdir", "fsyncdir")
HELD = (*BY_INODE, *BY_HANDLE, "statfs")


class SlowBacking(PassThrough):
    """A pass-through whose operations on marked names wait for their turn."""

    def __init__(self, root_descriptor: int) -> None:
        super().__init__(root_descriptor)
        self.traffic = Traffic()
        self._held: frozenset[str] = frozenset()
        self._go = trio.Event()
        self._delay = 0.0
        self._inodes: set[int] = set()
        self._handles: set[int] = set()

    async def obey(self) -> None:
        """Follows the commands until standard input ends."""
        commands = trio.lowlevel.FdStream(os.dup(sys.stdin.fileno()))
        buffer = b""
        async for data in commands:
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                self._obey(line.decode())
                print("obeyed", flush=True)

    def _obey(self, line: str) -> None:
        command, *arguments = line.split()
        if command == "hold":
            self._held = frozenset(arguments)
        elif command == "delay":
            self._delay = float(arguments[0])
        elif command == "traffic":
            print("full" if self.traffic.is_full else "free", flush=True)
        else:
            self._held = frozenset()
            self._go.set()
            self._go = trio.Event()

    async def wait(self, operation: str, arguments: tuple[object, ...]) -> None:
        """Returns when the operation may be done."""
        numbers = self._handles if operation in BY_HANDLE else self._inodes
        is_marked = operation == "statfs" or arguments[0] in numbers
        if not is_marked and not any(_is_marked(argument) for argument in arguments):
            return
        if operation in self._held:
            print("held", operation, flush=True)
            await self._go.wait()
        elif self._delay:
            await trio.sleep(random.uniform(0, self._delay))

    def mark(self, operation: str, arguments: tuple[object, ...], result: object) -> None:
        """Notes what the operation has made known of what is marked."""
        is_marked = arguments[0] in self._inodes or any(_is_marked(argument) for argument in arguments)
        info, entry = result if isinstance(result, tuple) else (result, result)
        if isinstance(entry, pyfuse3.EntryAttributes) and any(_is_marked(argument) for argument in arguments):
            # To be looked up each time, as if it were not in memory.
            entry.entry_timeout = 0
            self._inodes.add(entry.st_ino)
        handle = info.fh if isinstance(info, pyfuse3.FileInfo) else info
        if operation in ("open", "create", "opendir") and isinstance(handle, int):
            (self._handles.add if is_marked else self._handles.discard)(handle)


def _is_marked(argument: object) -> bool:
    return isinstance(argument, bytes) and _MARK in argument


async def _report_nothing(*_: object) -> None:
    """As where close may report something: elsewhere the kernel would not ask."""


def _held_up(operation: str) -> Callable[..., Awaitable[object]]:
    carry_out = _report_nothing if operation == "flush" else getattr(PassThrough, operation)

    async def answer(self: SlowBacking, *arguments: object) -> object:
        await self.wait(operation, arguments)
        result = await carry_out(self, *arguments)
        self.mark(operation, arguments, result)
        return result

    return answer


for _operation in HELD:
    setattr(SlowBacking, _operation, _held_up(_operation))


async def _run(directory: str, mountpoint: str) -> None:
    operations = SlowBacking(os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    async def serve_until_unmounted(task_status: trio.TaskStatus[None]) -> None:
        options = ("suid", "dev")
        await serve(operations, OwnMount(mountpoint), options, traffic=operations.traffic, task_status=task_status)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await nursery.start(serve_until_unmounted)
        print("mounted", flush=True)
        await operations.obey()
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(_run, sys.argv[1], sys.argv[2])
