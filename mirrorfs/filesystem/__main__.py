"""The plain pass-through: python -m mirrorfs.filesystem BACKING MOUNTPOINT [OPTION...]

Prints "mounted" when it is, statistics as a line of JSON for each SIGUSR1, and unmounts on SIGINT or SIGTERM.
"""

import json
import logging
import os
import signal
import sys
from collections.abc import Sequence

import trio

from mirrorfs.filesystem.mount import MountError, serve
from mirrorfs.filesystem.operations import PassThrough


async def _report(operations: PassThrough, cancel_scope: trio.CancelScope) -> None:
    with trio.open_signal_receiver(signal.SIGUSR1, signal.SIGINT, signal.SIGTERM) as signals:
        async for number in signals:
            if number == signal.SIGUSR1:
                print(json.dumps(operations.statistics()), flush=True)
            else:
                cancel_scope.cancel()


async def _run(backing: str, mountpoint: str, options: Sequence[str]) -> None:
    root_descriptor = os.open(backing, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    operations = PassThrough(root_descriptor)

    async def serve_until_unmounted(task_status: trio.TaskStatus[None]) -> None:
        await serve(operations, mountpoint, options, source=backing, task_status=task_status)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(_report, operations, nursery.cancel_scope)
        await nursery.start(serve_until_unmounted)
        print("mounted", flush=True)


def main() -> None:
    """Runs until unmounted or told to end."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    backing, mountpoint, *options = sys.argv[1:]
    failures: list[BaseException] = []
    try:
        trio.run(_run, backing, mountpoint, options)
    except* (MountError, OSError) as errors:
        failures += _leaves(errors)
    if failures:
        sys.exit("\n".join(str(failure) for failure in failures))


def _leaves(error: BaseException) -> list[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        return [leaf for part in error.exceptions for leaf in _leaves(part)]
    return [error]


if __name__ == "__main__":
    main()
