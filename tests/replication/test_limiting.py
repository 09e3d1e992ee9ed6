"""Limits follow the time of day, and are others at once."""

from __future__ import annotations

import time

import pytest
import trio
import trio.testing

from mirrorfs.objectstore.rate_schedule import RateLimits, RateSchedule, RateWindow
from mirrorfs.objectstore.throttle import Flow, Throttle
from mirrorfs.replication.limiting import Limiting

DAY = RateSchedule((RateWindow(7 * 60, 19 * 60, 1e6),), 5e6)
NIGHT = RateSchedule((RateWindow(22 * 60, 6 * 60, None),), 2e6)


@pytest.mark.parametrize(
    ("schedule", "minute", "rate"),
    [
        (DAY, 0, 5e6), (DAY, 419, 5e6), (DAY, 420, 1e6), (DAY, 1139, 1e6), (DAY, 1140, 5e6),
        (NIGHT, 1319, 2e6), (NIGHT, 1320, None), (NIGHT, 0, None), (NIGHT, 359, None), (NIGHT, 360, 2e6),
    ],
)  # fmt: skip
def test_the_window_that_holds(schedule: RateSchedule, minute: int, rate: float | None) -> None:
    assert schedule.at(minute) == rate


@pytest.mark.trio
async def test_it_follows_the_clock_and_takes_others(autojump_clock: trio.testing.MockClock) -> None:
    midnight = time.mktime((2026, 3, 2, 6, 58, 30, 0, 0, -1))

    def local_time() -> time.struct_time:
        return time.localtime(midnight + trio.current_time() - began)

    began = trio.current_time()
    throttle = Throttle()
    limiting = Limiting(throttle, RateLimits(up=DAY), local_time)
    assert throttle.rate(Flow.UP) == 5e6
    async with trio.open_nursery() as nursery:
        nursery.start_soon(limiting.run)
        await trio.sleep(89)
        assert throttle.rate(Flow.UP) == 5e6
        await trio.sleep(2)
        assert throttle.rate(Flow.UP) == 1e6
        limiting.take(RateLimits(up=NIGHT, requests=RateSchedule(otherwise=7.0)))
        await trio.testing.wait_all_tasks_blocked()
        assert throttle.rate(Flow.UP) == 2e6
        assert throttle.rate(Flow.REQUESTS) == 7.0
        nursery.cancel_scope.cancel()
