"""Rates on the command line, in bytes a second: 500k, 20M, 1.5G."""

from __future__ import annotations

import re

import click

_BYTES = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
_rate = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,3})?)\s*([kKMG]?)")


class Rate(click.ParamType[float]):
    """A parameter that is a rate; its value is in bytes a second, and more than 0."""

    name = "rate"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the text; a malformed one is a usage error."""
        if isinstance(value, float):
            return value
        match = _rate.fullmatch(value.strip())
        rate = 0.0 if match is None else float(match[1]) * _BYTES[match[2].replace("K", "k")]
        if not rate:
            self.fail(f"{value!r} is not a rate: give bytes a second, as in 500k, 20M or 1.5G", param, ctx)
        return rate
