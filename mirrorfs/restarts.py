"""A process that is started again whenever it ends: how long to wait before that, and whether it keeps dying."""

from __future__ import annotations

import time
from dataclasses import dataclass

# A process that has lived so long was well: the next death is the first one again.
WELL_AFTER = 60.0
_FIRST_DELAY = 1.0
# One death is an accident, and so are two: somebody may have killed it, or memory was short for a moment.
_DEATHS_OF_A_FAILING_ONE = 3


@dataclass(frozen=True, slots=True)
class Failing:
    """A process that dies again and again: how often in a row, since when (Unix time), and how it ended last."""

    process: str
    deaths: int
    since: float
    last: str


class Restarts:
    """The deaths in a row of one process. Times of life are in seconds of any clock that goes on evenly."""

    def __init__(self, process: str) -> None:
        """`process` is what people call it."""
        self._process = process
        self._deaths = 0
        self._since = 0.0
        self._last = ""
        self._began: float | None = None

    def began(self, now: float) -> None:
        """Take note that it was started, or that it was tried."""
        self._began = now

    def ended(self, how: str, now: float, longest_delay: float) -> float:
        """Take note that it has ended, and return how many seconds to wait before it is started again."""
        if self._is_well(now):
            self._deaths = 0
        if not self._deaths:
            self._since = time.time()
        self._deaths += 1
        self._last = how
        self._began = None
        # Not 2 to the power of as many deaths as a bad week has.
        return min(_FIRST_DELAY * 2.0 ** min(self._deaths - 1, 16), max(_FIRST_DELAY, longest_delay))

    def failing(self, now: float) -> Failing | None:
        """Tell how it is with a process that keeps dying; None while it does not, or has lived for long by now."""
        if self._deaths < _DEATHS_OF_A_FAILING_ONE or self._is_well(now):
            return None
        return Failing(self._process, self._deaths, self._since, self._last)

    def _is_well(self, now: float) -> bool:
        return self._began is not None and now - self._began >= WELL_AFTER
