"""How the next request is waited for: past the event loop, as long as one comes soon after the other.

In pyfuse3 tasks take turns at reading requests, with the lock and the wait of trio; a turn of the event loop, and a
handing on of the lock, cost more than most requests. The module that pyfuse3 uses as `trio` can be replaced, which is
how it works with asyncio (pyfuse3.asyncio). So here it gets a lock that is not handed on to who waits, but free for who
comes first, and a wait that begins with poll(2).

Nobody else is forgotten meanwhile: that is left as soon as any request is under way elsewhere, and after so many
requests in any case, so that the event loop turns about once in a millisecond.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace, TracebackType
from typing import Any

import pyfuse3
import trio

from mirrorfs.filesystem.system_calls import wait_readable

_MOST_IN_A_ROW = 32
# Who has been answered asks again within this time, if he does it at all soon.
_PATIENCE_NS = 50_000


class Turn:
    """In place of trio.Lock: who waits is woken when it is free, and waits on if somebody else was quicker."""

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting: deque[trio.lowlevel.Task] = deque()

    async def __aenter__(self) -> None:
        while self._is_taken:
            self._waiting.append(trio.lowlevel.current_task())
            await trio.lowlevel.wait_task_rescheduled(_cannot_be_aborted)
        self._is_taken = True

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_taken = False
        if self._waiting:
            # It runs as soon as this task waits for anything, also for what it has just read.
            trio.lowlevel.reschedule(self._waiting.popleft())


class Reading:
    """In place of trio.lowlevel.wait_readable."""

    def __init__(self, others_wait: Callable[[], bool]) -> None:
        """`others_wait` tells whether the event loop has anything to wait for but requests."""
        self._others_wait = others_wait
        self._in_a_row = 0

    async def wait_readable(self, descriptor: int) -> None:
        """Return when there is a request. Raises trio.ClosedResourceError."""
        if self._in_a_row < _MOST_IN_A_ROW and not self._others_wait():
            self._in_a_row += 1
            if wait_readable(descriptor, _PATIENCE_NS):
                return
        self._in_a_row = 0
        await trio.lowlevel.wait_readable(descriptor)


def read_in_a_row(others_wait: Callable[[], bool]) -> None:
    """Have pyfuse3 wait for requests in this way from now on."""
    lowlevel = SimpleNamespace(
        wait_readable=Reading(others_wait).wait_readable,
        current_task=trio.lowlevel.current_task,
        current_trio_token=trio.lowlevel.current_trio_token,
        notify_closing=trio.lowlevel.notify_closing,
    )
    replacement = SimpleNamespace(
        Lock=Turn,
        lowlevel=lowlevel,
        open_nursery=trio.open_nursery,
        ClosedResourceError=trio.ClosedResourceError,
    )
    vars(pyfuse3)["trio"] = replacement


def _cannot_be_aborted(_: Callable[[], Any]) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
