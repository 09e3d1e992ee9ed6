"""The options that say how fast the store may be used, by the time of day."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import click

from mirrorfs.cli.rates import parse_rate, shown_rate
from mirrorfs.cli.setting import TakesEffect, setting
from mirrorfs.objectstore.rate_schedule import (
    MINUTES_OF_A_DAY,
    MOST_WINDOWS,
    RateLimits,
    RateSchedule,
    RateWindow,
)
from mirrorfs.objectstore.throttle import LEAST_BYTES, LEAST_REQUESTS

_UNLIMITED = "unlimited"
_window = re.compile(r"([0-9]{2}):([0-9]{2})-([0-9]{2}):([0-9]{2})\s+(.+)")
_count = re.compile(r"([0-9]{1,6})(?:/s)?")


def _requests(text: str) -> float:
    match = _count.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a number of requests a second, as in 100/s")
    return float(match[1])


class Schedule(click.ParamType[RateSchedule]):
    """A parameter of rates by the time of day: `07:00-19:00 20 MiB/s, 50 MiB/s`."""

    name = "schedule"

    def __init__(self, parse: Callable[[str], float], least: float, shown: Callable[[float], str]) -> None:
        """`parse` reads one rate and raises ValueError, `least` is the lowest, `shown` writes one."""
        self._parse = parse
        self._least = least
        self.shown_rate = shown

    @property
    def range(self) -> str:
        """What it may be, for people."""
        return f"{self.shown_rate(self._least)} and more"

    def convert(
        self, value: str | RateSchedule, param: click.Parameter | None, ctx: click.Context | None
    ) -> RateSchedule:
        """Parse the text; a malformed one is a usage error."""
        if isinstance(value, RateSchedule):
            return value
        try:
            return self._schedule([part.strip() for part in value.split(",")])
        except ValueError as error:
            self.fail(f"{error}. Write rates behind their times, as in 07:00-19:00 RATE, RATE", param, ctx)

    def _schedule(self, parts: list[str]) -> RateSchedule:
        *first, last = parts
        windows = [self._window(part) for part in first]
        if _window.fullmatch(last):
            return self._bounded((*windows, self._window(last)), None)
        return self._bounded(tuple(windows), self._rate(last))

    @staticmethod
    def _bounded(windows: tuple[RateWindow, ...], otherwise: float | None) -> RateSchedule:
        if len(windows) > MOST_WINDOWS:
            raise ValueError(f"there are more than {MOST_WINDOWS} windows")
        return RateSchedule(windows, otherwise)

    def _window(self, text: str) -> RateWindow:
        match = _window.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} does not begin with a window of the day, as 07:00-19:00")
        begin, end = _minute(match[1], match[2]), _minute(match[3], match[4])
        if begin in (end, MINUTES_OF_A_DAY):
            raise ValueError(f"the window of {text!r} has no time in it")
        return RateWindow(begin, end, self._rate(match[5]))

    def _rate(self, text: str) -> float | None:
        if text == _UNLIMITED:
            return None
        rate = self._parse(text)
        if rate < self._least:
            raise ValueError(f"{text} is out of range: {self.range}, or {_UNLIMITED}")
        return rate

    def shown(self, schedule: RateSchedule) -> str:
        """Write it as it is read."""
        parts = [
            f"{_clock(window.begin)}-{_clock(window.end)} {self._shown(window.rate)}" for window in schedule.windows
        ]
        return ", ".join([*parts, self._shown(schedule.otherwise)])

    def _shown(self, rate: float | None) -> str:
        return _UNLIMITED if rate is None else self.shown_rate(rate)


def _minute(hours: str, minutes: str) -> int:
    minute = int(hours) * 60 + int(minutes)
    if int(minutes) > 59 or minute > MINUTES_OF_A_DAY:
        raise ValueError(f"{hours}:{minutes} is no time of a day, 00:00 to 24:00")
    return minute


def _clock(minute: int) -> str:
    return f"{minute // 60:02}:{minute % 60:02}"


_BYTES = Schedule(parse_rate, LEAST_BYTES, shown_rate)
_REQUESTS = Schedule(_requests, LEAST_REQUESTS, lambda rate: f"{rate:g}/s")
_BY_TIME = "By the time of day: '07:00-19:00 20 MiB/s, 50 MiB/s'; the first window that holds counts."


def limit_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of limits, as one parameter `limits`."""

    @setting(
        "--bandwidth-up",
        type=_BYTES,
        default=_UNLIMITED,
        metavar="RATES",
        takes_effect=TakesEffect.AT_ONCE,
        help=f"What may be sent to the store in a second. {_BY_TIME}",
    )
    @setting(
        "--bandwidth-down",
        type=_BYTES,
        default=_UNLIMITED,
        metavar="RATES",
        takes_effect=TakesEffect.AT_ONCE,
        help="What may be read from the store in a second, as --bandwidth-up. A restore has its own limit.",
    )
    @setting(
        "--bandwidth-requests",
        type=_REQUESTS,
        default=_UNLIMITED,
        metavar="RATES",
        takes_effect=TakesEffect.AT_ONCE,
        help="How many requests may be made in a second: '100/s', also by the time of day.",
    )
    @functools.wraps(command)
    def with_limits(
        bandwidth_up: RateSchedule, bandwidth_down: RateSchedule, bandwidth_requests: RateSchedule, **others: object
    ) -> None:
        command(limits=RateLimits(bandwidth_up, bandwidth_down, bandwidth_requests), **others)

    return with_limits
