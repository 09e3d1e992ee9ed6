"""Durations on the command line and in settings: 90s, 30m, 12h, 30d, 2w."""

from __future__ import annotations

import math
import re

import click

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_duration = re.compile(r"([0-9]{1,9})\s*([smhdw])")
_plain_seconds = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,3})?")


def parse_duration(text: str) -> float:
    """Return a duration in seconds; "0" needs no unit. Raises ValueError."""
    if text.strip() == "0":
        return 0.0
    match = _duration.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: give a number and one of s, m, h, d, w, as in 30d")
    return int(match[1]) * _SECONDS[match[2]]


def shown_duration(seconds: float) -> str:
    """Write a duration as `parse_duration` reads it, in the largest unit that it is a whole number of."""
    for unit in ("w", "d", "h", "m"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds / _SECONDS[unit]:.0f}{unit}"
    return f"{seconds:g}s" if seconds else "0"


class Duration(click.ParamType[float]):
    """A parameter that is a duration; its value is in seconds."""

    name = "duration"

    def __init__(
        self, minimum: float = 0.0, maximum: float = math.inf, *, plain_seconds: bool = False, may_be_zero: bool = True
    ) -> None:
        """Bounds are in seconds. `plain_seconds`: a number without a unit is one of seconds."""
        self._minimum = minimum
        self._maximum = maximum
        self._plain_seconds = plain_seconds
        self._may_be_zero = may_be_zero

    @property
    def range(self) -> str:
        """What it may be, for people."""
        least = shown_duration(self._minimum) if self._minimum or self._may_be_zero else "more than 0"
        return f"{least} and more" if math.isinf(self._maximum) else f"{least} to {shown_duration(self._maximum)}"

    def convert(self, value: str | int | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text; a malformed one, or one out of range, is a usage error."""
        if isinstance(value, float):
            return value
        try:
            seconds = self._parsed(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if not self._minimum <= seconds <= self._maximum or (seconds == 0 and not self._may_be_zero):
            self.fail(f"{value} is out of range: {self.range}", param, ctx)
        return seconds

    def _parsed(self, text: str) -> float:
        if self._plain_seconds and _plain_seconds.fullmatch(text.strip()):
            return float(text)
        return parse_duration(text)
