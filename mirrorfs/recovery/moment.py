"""Points in time as an administrator writes them, and as they are shown."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from mirrorfs.recovery.errors import RestoreError

TIME_FORMS = "such as 2026-11-22T10:00:00Z, '2026-11-22 10:00' (local time), or an age such as 3d or 12h"
_MOMENT = re.compile(
    r"(?a:(\d{4}-\d{2}-\d{2})[Tt ](\d{2}:\d{2}(?::\d{2}(?:\.\d{1,6})?)?)([Zz]|[+-]\d{2}:\d{2})?)"  # RFC 3339, 5.6
)
_AGE = re.compile(r"(?:[0-9]{1,9}[wdhms])+")
_AGE_PART = re.compile(r"([0-9]+)([wdhms])")
_SECONDS = {"w": 604800, "d": 86400, "h": 3600, "m": 60, "s": 1}


def parse_moment(text: str, now: float) -> float:
    """Unix time of RFC 3339 (``2026-11-22T10:00:00Z``, ``2026-11-22T11:00:00+01:00``), of the same without offset as
    local time of this machine (the seconds may be left out), or of an age before `now` (``3d``, ``1d12h``; of weeks,
    days, hours, minutes and seconds), to the second.

    Raises RestoreError for anything else, and for what lies in the future or before 1970.
    """
    age = _AGE.fullmatch(text)
    moment = _parse_date(text) if age is None else float(int(now) - _seconds(text))
    if moment > now:
        raise RestoreError(f"{text!r} lies in the future; it is {format_moment(now)} now.")
    if moment < 0:
        raise RestoreError(f"{text!r} lies before 1970, and so before any backup.")
    return moment


def format_moment(moment: float) -> str:
    """A Unix time in UTC, as `parse_moment` reads it; fractions of a second only where there are any."""
    return datetime.fromtimestamp(moment, UTC).isoformat().replace("+00:00", "Z")


def _parse_date(text: str) -> float:
    match = _MOMENT.fullmatch(text)
    if match is None:
        raise RestoreError(f"{text!r} is no time {TIME_FORMS}.")
    date, time, offset = match.groups()
    try:
        return datetime.fromisoformat(f"{date}T{time}{(offset or '').upper()}").timestamp()
    except (ValueError, OverflowError):
        raise RestoreError(f"{text!r} is no time that there has been.") from None


def _seconds(age: str) -> int:
    return sum(int(number) * _SECONDS[unit] for number, unit in _AGE_PART.findall(age))
