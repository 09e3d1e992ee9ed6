"""The rates that hold now, from limits that hold by the time of day and may be others at any moment."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from mirrorfs.objectstore.rate_schedule import MINUTES_OF_A_DAY, RateLimits
from mirrorfs.objectstore.throttle import Flow, Throttle

log = logging.getLogger(__name__)

_MINUTE_SECONDS = 60.0


class Limiting:
    """Keeps a throttle at what the limits say; the time of day is that of this machine's zone."""

    def __init__(
        self, throttle: Throttle, limits: RateLimits, local_time: Callable[[], time.struct_time] = time.localtime
    ) -> None:
        """Set the rates that hold now. `local_time` tells the time of day."""
        self._throttle = throttle
        self._limits = limits
        self._local_time = local_time
        self._changed = trio.Event()
        self._apply()

    def take(self, limits: RateLimits) -> None:
        """Have other limits hold at once."""
        self._limits = limits
        self._changed.set()

    async def run(self) -> None:
        """Follow the time of day, until cancelled."""
        while True:
            with trio.move_on_after(_MINUTE_SECONDS - self._local_time().tm_sec):
                await self._changed.wait()
                self._changed = trio.Event()
            self._apply()

    def _apply(self) -> None:
        now = self._local_time()
        minute = (now.tm_hour * 60 + now.tm_min) % MINUTES_OF_A_DAY
        limits = self._limits
        for flow, schedule in ((Flow.UP, limits.up), (Flow.DOWN, limits.down), (Flow.REQUESTS, limits.requests)):
            rate = schedule.at(minute)
            if self._throttle.set_rate(flow, rate):
                log.info(
                    "the limit of %s is %s a second now", flow.name.lower(), "gone," if rate is None else f"{rate:g}"
                )
