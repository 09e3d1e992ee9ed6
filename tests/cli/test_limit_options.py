"""Limits by the time of day as people write them."""

from __future__ import annotations

import click
import pytest

from mirrorfs.cli.limit_options import Schedule
from mirrorfs.cli.mount import command
from mirrorfs.cli.setting import settings_of
from mirrorfs.objectstore.rate_schedule import RateSchedule, RateWindow

MIB = 1024.0**2
BYTES, REQUESTS = (settings_of(command)[f"bandwidth-{name}"].type for name in ("up", "requests"))


@pytest.mark.parametrize(
    ("text", "schedule"),
    [
        ("unlimited", RateSchedule()),
        ("20 MiB/s", RateSchedule((), 20 * MIB)),
        ("07:00-19:00 20 MiB/s", RateSchedule((RateWindow(420, 1140, 20 * MIB),))),
        (
            "07:00-19:00 20 MiB/s, 22:30-06:00 unlimited, 50MiB",
            RateSchedule((RateWindow(420, 1140, 20 * MIB), RateWindow(1350, 360, None)), 50 * MIB),
        ),
        ("00:00-24:00 1 MiB/s", RateSchedule((RateWindow(0, 1440, MIB),))),
    ],
)
def test_what_is_written_is_understood_and_shown_again(text: str, schedule: RateSchedule) -> None:
    assert isinstance(BYTES, Schedule)
    assert BYTES.convert(text, None, None) == schedule
    assert BYTES.convert(BYTES.shown(schedule), None, None) == schedule


def test_requests_are_numbers() -> None:
    assert isinstance(REQUESTS, Schedule)
    assert REQUESTS.convert("100/s", None, None) == RateSchedule((), 100.0)
    assert REQUESTS.convert("08:00-18:00 10, 100/s", None, None).at(9 * 60) == 10.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is not a rate"),
        ("fast", "is not a rate"),
        ("1 KiB/s", "1 KiB/s is out of range: 64 KiB/s and more, or unlimited"),
        ("20 MiB/s, 30 MiB/s", "'20 MiB/s' does not begin with a window of the day"),
        ("7-19 20 MiB/s", "is not a rate"),
        ("25:00-26:00 1 MiB/s", "25:00 is no time of a day"),
        ("07:60-08:00 1 MiB/s", "07:60 is no time of a day"),
        ("07:00-07:00 1 MiB/s", "has no time in it"),
        (", ".join(["07:00-08:00 1 MiB/s"] * 17), "there are more than 16 windows"),
    ],
)
def test_what_is_none_is_said(text: str, said: str) -> None:
    with pytest.raises(click.BadParameter, match=said):
        BYTES.convert(text, None, None)
