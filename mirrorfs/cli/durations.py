"""Durations on the command line: 90s, 30m, 12h, 30d, 2w."""

from __future__ import annotations

import re

import click

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_duration = re.compile(r"([0-9]{1,9})\s*([smhdw])")


def parse_duration(text: str) -> float:
    """Return a duration in seconds; "0" needs no unit. Raises ValueError."""
    if text.strip() == "0":
        return 0.0
    match = _duration.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration: give a number and one of s, m, h, d, w, as in 30d")
    return int(match[1]) * _SECONDS[match[2]]


class Duration(click.ParamType[float]):
    """A parameter that is a duration; its value is in seconds."""

    name = "duration"

    def convert(self, value: str | int | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text; a malformed one is a usage error."""
        if isinstance(value, float):
            return value
        try:
            return parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)
