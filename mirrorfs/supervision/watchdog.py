"""Seeing that the two processes of a mount do not merely live but work, and ending what does not.

An uploader that hangs is ended by the filesystem process, which starts another: PBS notices nothing. A filesystem
process that hangs is ended by the service manager (systemd's WatchdogSec=), which no longer hears of it; that costs PBS
its open files, so it is done only when the fault is surely ours and not the disk's.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial

import trio

from mirrorfs.filesystem.condition import Condition, condition_of
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
        *,
        condition: Callable[[str, float], Condition] = condition_of,
    ) -> None:
        """`root_descriptor` is the backing directory; `condition` asks the mount, from outside, under a time limit."""
        self._manager = manager
        self._mountpoint = mountpoint
        self._root_descriptor = root_descriptor
        self._condition = condition
        # One thread that a dead disk keeps is enough.
        self._disk = trio.CapacityLimiter(1)

    async def run(self) -> None:
        """Ask the mount and tell, until cancelled; returns at once if nobody wants to hear it."""
        seconds = self._manager.watchdog_seconds
        if seconds is None:
            return
        limit = seconds / _QUESTIONS
        while True:
            if await self.is_well(limit):
                self._manager.tell(WATCHDOG)
            await trio.sleep(limit)

    async def is_well(self, seconds: float) -> bool:
        """Tell whether the mount answers within that many seconds, or its disk does not either."""
        try:
            condition = await trio.to_thread.run_sync(
                partial(self._condition, self._mountpoint, seconds), abandon_on_cancel=True
            )
        except OSError as error:
            log.warning("the mount cannot be asked whether it answers (%s): it is taken to be well", error)
            return True
        if condition not in (Condition.SILENT, Condition.DEAD):
            # Or it is not to be seen at its path, because something else was mounted over it.
            return True
        if not await self._disk_answers(seconds):
            log.warning("the mount does not answer, since the datastore's disk does not: that is waited for")
            return True
        log.error("the mount has not answered within %.0f s, though the datastore's disk does", seconds)
        return False

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
