"""Seeing that the two processes of a mount do not merely live but work, and ending what does not.

An uploader that hangs is ended by the filesystem process, which starts another: PBS notices nothing. A filesystem
process that hangs is ended by the service manager (systemd's WatchdogSec=), which no longer hears of it; that costs PBS
its open files, so it is done only when the fault is surely ours and neither the disk's nor the machine's: the event
loop stands still, and tells nothing; or it lives, but the mount serves nobody though it could.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial

import trio

from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.filesystem.slots import Traffic
from mirrorfs.replication.parent import ALIVE_SECONDS
from mirrorfs.supervision.notify import WATCHDOG, ServiceManager

log = logging.getLogger(__name__)

# Looks in a row at which nothing has been heard. Counted, not timed: a machine that was stopped for an hour, with both
# processes, has one silent look when it goes on.
_SILENT_LOOKS = 10
# So many questions fit into the time after which the service manager ends us: one that fails is no reason yet.
_QUESTIONS = 5


class SignsOfLife:
    """Whether a process that is to say every few seconds that it works still does."""

    def __init__(self) -> None:
        self._heard = 0

    def hear(self) -> None:
        """Take note that it has said so."""
        self._heard += 1

    async def watch(self) -> None:
        """Return when it has said so once, and then no more for `_SILENT_LOOKS` times the interval.

        Before it has said so for the first time it opens its state, which takes as long as that is large.
        """
        silent, before = 0, 0
        while silent < _SILENT_LOOKS:
            await trio.sleep_until(trio.current_time() + ALIVE_SECONDS)
            silent = silent + 1 if self._heard == before > 0 else 0
            before = self._heard


class Watchdog:
    """Tells the service manager, as often as it wants to hear it, that the mount answers."""

    def __init__(
        self,
        manager: ServiceManager,
        mountpoint: str,
        root_descriptor: int,
        traffic: Traffic,
        *,
        condition: Callable[[str, float], Condition] = condition_of,
    ) -> None:
        """`root_descriptor` is the backing directory, `traffic` the mount's; `condition` asks it as `condition_of`."""
        self._manager = manager
        self._mountpoint = mountpoint
        self._root_descriptor = root_descriptor
        self._traffic = traffic
        self._condition = condition
        # Of each kind one thread that a dead disk keeps is enough.
        self._asking = trio.CapacityLimiter(1)
        self._disk = trio.CapacityLimiter(1)

    async def run(self) -> None:
        """Ask the mount and tell, until cancelled; returns at once if nobody wants to hear it."""
        seconds = self._manager.watchdog_seconds
        if seconds is None:
            return
        limit = seconds / _QUESTIONS
        while True:
            begun = trio.current_time()
            if await self.is_well(limit):
                self._manager.tell(WATCHDOG)
            # A question that took all of it is followed by the next: each that is not put makes a kill more likely.
            await trio.sleep_until(begun + limit)

    async def is_well(self, seconds: float) -> bool:
        """Tell whether the mount answers within that many seconds from when it is asked, or cannot be blamed if not.

        It cannot if nobody could ask it, if it has served others meanwhile (it is slow), if all that it can serve at a
        time waits (a disk hangs: the event loop does not, since this runs in it), or if its disk does not answer.
        """
        done = self._traffic.done
        condition = await self._ask(seconds)
        if condition not in (Condition.SILENT, Condition.DEAD):
            # Or it is not to be seen at its path, because something else was mounted over it.
            return True
        if condition is Condition.SILENT and self._traffic.done != done:
            log.warning("the mount has not answered within %.0f s, but serves others: that is waited for", seconds)
        elif condition is Condition.SILENT and self._traffic.is_full:
            log.warning("the mount does not answer, since a disk holds up all requests: that is waited for")
        elif not await self._disk_answers(seconds):
            log.warning("the mount does not answer, since the datastore's disk does not: that is waited for")
        else:
            log.error("the mount has not answered within %.0f s, though the datastore's disk does", seconds)
            return False
        return True

    async def _ask(self, seconds: float) -> Condition | None:
        """Return how the mount is; None if that could not be asked."""
        # So long it may take to begin to ask, and so long to be answered. Nor may a disk that is not the datastore's,
        # from which no process can be started any more, keep us.
        with trio.move_on_after(2 * seconds):
            try:
                return await trio.to_thread.run_sync(
                    partial(self._condition, self._mountpoint, seconds), abandon_on_cancel=True, limiter=self._asking
                )
            except OSError as error:
                log.warning("the mount cannot be asked whether it answers (%s): it is taken to be well", error)
                return None
        log.warning("nobody could be made to ask the mount within %.0f s: it is taken to be well", 2 * seconds)
        return None

    async def _disk_answers(self, seconds: float) -> bool:
        with trio.move_on_after(seconds):
            try:
                await trio.to_thread.run_sync(
                    os.fstatvfs, self._root_descriptor, abandon_on_cancel=True, limiter=self._disk
                )
            except OSError as error:
                log.warning("the datastore's disk is sick: %s", error)
            return True
        return False
