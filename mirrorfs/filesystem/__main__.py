"""The plain pass-through: python -m mirrorfs.filesystem BACKING MOUNTPOINT [OPTION...]

Prints "mounted" when it is, statistics as a line of JSON for each SIGUSR1, and unmounts on SIGINT or SIGTERM.
"""

import os
import signal
import sys
from collections.abc import Sequence

import trio

from mirrorfs.filesystem.mount import MountError, serve
from mirrorfs.filesystem.mount_table import OwnMount
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.output import begin_log, say, say_json


async def _report(operations: PassThrough, cancel_scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1, signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            if number == signal.SIGUSR1:
                say_json(operations.statistics())
            else:
                cancel_scope.cancel()


async def _run(backing: str, mountpoint: str, options: Sequence[str]) -> None:
    root_descriptor = os.open(backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    operations = PassThrough(root_descriptor)

    async def serve_until_unmounted(task_status: trio.TaskStatus[None]) -> None:
        await serve(operations, OwnMount(mountpoint), options, source=backing, task_status=task_status)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report, operations, nursery.cancel_scope)
        await nursery.start(serve_until_unmounted)
        say("mounted")


def main() -> None:
    """Runs until unmounted or told to end."""
    begin_log("filesystem")
    if len(sys.argv) < 3:
        say(*str(__doc__).splitlines(), err=True)
        sys.exit(2)
    backing, mountpoint, *options = sys.argv[1:]
    failures: list[BaseException] = []
    try:
        trio.run(_run, backing, mountpoint, options)
    except* (MountError, OSError) as errors:
        failures += _leaves(errors)
    if failures:
        say(*(str(failure) for failure in failures), err=True)
        sys.exit(1)


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


if __name__ == "__main__":
    main()
