"""The options that say how a bucket is looked at: as it was at some time, and its deleted snapshots."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.moment import parse_moment
from mirrorfs.recovery.source import View

Command = TypeVar("Command", bound=Callable[..., Any])


class Moment(click.ParamType[float]):
    """A parameter that is a time in the past, as Unix time."""

    name = "time"

    def convert(self, value: str | float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse the time; what is none is a usage error."""
        if isinstance(value, float):
            return value
        try:
            return parse_moment(value, time.time())
        except RestoreError as error:
            self.fail(str(error), param, ctx)


def view_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options `--as-of` and `--deleted`, as one parameter `view`."""

    @click.option(
        "--as-of",
        type=Moment(),
        metavar="TIME",
        help="As the bucket was then; needs a bucket that keeps versions. RFC 3339 (2026-11-22T10:00:00Z), "
        "'2026-11-22 10:00' in the local time zone, or an age: 3d, 12h, 1d12h (w, d, h, m, s).",
    )
    @click.option(
        "--deleted",
        is_flag=True,
        help="Snapshots that were removed from the datastore and are still kept (retention.delete_after).",
    )
    @functools.wraps(command)
    def with_view(as_of: float | None, deleted: bool, **others: object) -> None:
        command(view=View(as_of, deleted), **others)

    return with_view
