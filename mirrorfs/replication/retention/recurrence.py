"""Work that comes again when time has passed, or sooner when there is a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio


class Recurrence:
    """The rhythm of one piece of work."""

    def __init__(self) -> None:
        self._reason = trio.Event()

    def hasten(self) -> None:
        """Have the work done again as soon as it is over, or at once if it rests."""
        self._reason.set()

    async def keep_doing(self, work: Callable[[], Awaitable[float]]) -> None:
        """Do `work`, which returns after how many seconds it is due again, for ever."""
        while True:
            # Replaced before the work: a reason that comes meanwhile may be too late for what is looked at.
            self._reason = trio.Event()
            pause = await work()
            with trio.move_on_after(pause):
                await self._reason.wait()
