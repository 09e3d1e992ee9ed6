"""How many objects are fetched at a time, which of those that wait comes next, and how fast."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

_CREDIT_SECONDS = 1.0


class Slots:
    """So many at a time; of those that wait the one of the lowest rank is next, the first come among equals."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: list[tuple[int, int, trio.Event]] = []
        self._numbers = itertools.count()

    @asynccontextmanager
    async def taken(self, rank: int) -> AsyncIterator[None]:
        """Have one of them within."""
        if self._free:
            self._free -= 1
        else:
            await self._wait(rank)
        try:
            yield
        finally:
            self._give_back()

    async def _wait(self, rank: int) -> None:
        ours = (rank, next(self._numbers), trio.Event())
        heapq.heappush(self._waiting, ours)
        try:
            await ours[2].wait()
        except trio.Cancelled:
            if ours[2].is_set():
                self._give_back()
            else:
                self._waiting.remove(ours)
                heapq.heapify(self._waiting)
            raise

    def _give_back(self) -> None:
        if self._waiting:
            heapq.heappop(self._waiting)[2].set()
        else:
            self._free += 1


class Pace:
    """Keeps what is fetched within so many bytes a second; None is as fast as it goes."""

    def __init__(self, bytes_per_second: float | None = None) -> None:
        self._seconds_per_byte = 0.0 if bytes_per_second is None else 1.0 / bytes_per_second
        self._next = -math.inf

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return self._seconds_per_byte > 0

    async def keep(self) -> None:
        """Return when something more may be fetched."""
        await trio.sleep_until(max(self._next, 0.0))

    def fetched(self, size: int) -> None:
        """Say that so many bytes have come."""
        # What was not used just before may be made up for: fetching takes time, too.
        self._next = max(self._next, trio.current_time() - _CREDIT_SECONDS) + size * self._seconds_per_byte
