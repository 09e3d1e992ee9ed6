"""Rates on the command line and in settings, in bytes a second: 20 MiB/s, 160 Mbit/s, 500k, 1.5G."""

from __future__ import annotations

import math
import re

import click

_KIBI = {"KiB": 1024, "MiB": 1024**2, "GiB": 1024**3}
_UNITS = {
    "": 1.0,
    "B": 1.0,
    **{f"{letter}{end}": 10.0**power for letter, power in (("k", 3), ("M", 6), ("G", 9)) for end in ("", "B")},
    **{name: float(size) for name, size in _KIBI.items()},
    **{f"{letter}bit": 10.0**power / 8 for letter, power in (("k", 3), ("M", 6), ("G", 9))},
}
_rate = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([A-Za-z]{0,4})(?:/s)?")


def parse_rate(text: str) -> float:
    """Return a rate in bytes a second, more than 0. Raises ValueError."""
    match = _rate.fullmatch(text.strip())
    # KB and K are meant as they are mostly written, k.
    unit = None if match is None else re.sub(r"^K(?!iB)", "k", match[2])
    if match is None or unit not in _UNITS or not float(match[1]):
        raise ValueError(f"{text!r} is not a rate: give bytes a second, as in 20 MiB/s, 160 Mbit/s, 500k or 1.5G")
    return float(match[1]) * _UNITS[unit]


def shown_rate(rate: float) -> str:
    """Write a rate as `parse_rate` reads it, in the largest binary unit that it has a whole number of."""
    for unit, size in reversed(_KIBI.items()):
        if rate % size == 0:
            return f"{rate / size:.0f} {unit}/s"
    return f"{rate:g} B/s"


class Rate(click.ParamType[float]):
    """A parameter that is a rate; its value is in bytes a second, and more than 0."""

    name = "rate"

    def __init__(self, minimum: float = 0.0, maximum: float = math.inf, *, plain: float = 1.0) -> None:
        """Bounds are in bytes a second. `plain`: as many of them is a number without a unit one of."""
        self._minimum = minimum
        self._maximum = maximum
        self._plain = plain

    @property
    def range(self) -> str:
        """What it may be, for people."""
        least = shown_rate(self._minimum) if self._minimum else "more than 0"
        return f"{least} and more" if math.isinf(self._maximum) else f"{least} to {shown_rate(self._maximum)}"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text; a malformed one, or one out of range, is a usage error."""
        if isinstance(value, float):
            return value
        try:
            rate = parse_rate(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if value.strip().replace(".", "").isdigit():
            rate *= self._plain
        if not self._minimum <= rate <= self._maximum:
            self.fail(f"{value} is out of range: {self.range}", param, ctx)
        return rate
