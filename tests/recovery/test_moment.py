"""Times as people write them: understood as they mean them, or refused with a sentence."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.moment import format_moment, parse_moment

# 2026-11-22T12:00:00.5Z
NOW = 1795348800.5
ALWAYS = 253402300799.0
dates = st.datetimes(datetime(1970, 1, 3), datetime(9999, 12, 30))


@pytest.fixture(params=["Europe/Vienna", "America/New_York", "UTC"])
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A local time zone."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield str(request.param)
    time.tzset()


@given(dates)
def test_what_is_shown_can_be_given(date: datetime) -> None:
    moment = date.replace(tzinfo=UTC).timestamp()
    assert parse_moment(format_moment(moment), ALWAYS) == moment


@given(dates, st.integers(-1439, 1439), st.sampled_from("Tt "))
def test_rfc_3339_with_offset(date: datetime, minutes: int, separator: str) -> None:
    aware = date.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    assert parse_moment(aware.isoformat(separator), ALWAYS) == aware.timestamp()


@given(st.lists(st.tuples(st.integers(0, 99), st.sampled_from("wdhms")), min_size=1, max_size=4))
def test_ages(parts: list[tuple[int, str]]) -> None:
    length = {"w": 7 * 24 * 3600, "d": 24 * 3600, "h": 3600, "m": 60, "s": 1}
    text = "".join(f"{number}{unit}" for number, unit in parts)
    assert parse_moment(text, NOW) == int(NOW) - sum(number * length[unit] for number, unit in parts)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
        ("2026-11-22t10:00:00z", "2026-11-22T10:00:00Z"),
        ("2026-11-22T11:00+01:00", "2026-11-22T10:00:00Z"),
        ("2026-11-22 10:00:00.25Z", "2026-11-22T10:00:00.250000Z"),
        ("3d", "2026-11-19T12:00:00Z"),
        ("1d12h", "2026-11-21T00:00:00Z"),
        ("0s", "2026-11-22T12:00:00Z"),
    ],
)
def test_examples(text: str, shown: str) -> None:
    assert format_moment(parse_moment(text, NOW)) == shown


def test_without_an_offset_it_is_local_time(zone: str) -> None:
    offset = {"Europe/Vienna": 1, "America/New_York": -5, "UTC": 0}[zone]
    expected = datetime(2026, 11, 20, 10, tzinfo=timezone(timedelta(hours=offset))).timestamp()
    for text in ("2026-11-20 10:00", "2026-11-20T10:00:00", "2026-11-20 10:00:00.0"):
        assert parse_moment(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "yesterday",
        "3",
        "d",
        "-3d",
        "3D",
        "3 d",
        "1.5h",
        "٣d",
        "3d\n",
        "1795348800",
        "2026-11-22",
        "20261122T100000Z",
        "2026-W47-7",
        "2026-11-22T10",
        "2026-11-22T10:00:00 Z",
        "2026-11-22T10:00:00Z\n",
        "2026-13-22T10:00:00Z",
        "2026-11-31T10:00:00Z",
        "2026-11-22T24:00:00Z",
        "2026-11-22T10:00:00+25:00",
        "2026-11-22T12:00:01Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "0001-01-01 00:00",
        "1969-12-31T23:59:59Z",
        "99w99999999d",
        "999999999w999999999w",
    ],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(RestoreError):
        parse_moment(text, NOW)


@given(st.text() | st.from_regex(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?(Z|[+-]\d\d:\d\d)?", fullmatch=True))
def test_nothing_else_is_raised(text: str) -> None:
    try:
        moment = parse_moment(text, NOW)
    except RestoreError:
        return
    assert 0 <= moment <= NOW
