"""How a mirror was in the last day: one point a minute, in memory, since the page is served."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POINT_SECONDS = 60.0
MOST_POINTS = 1440


@dataclass(frozen=True, slots=True)
class Point:
    """What was so at a time (Unix time): bytes sent a second since the point before, bytes and seconds behind.

    None where it was not to be learnt.
    """

    time: float
    rate: float | None = None
    backlog: float | None = None
    age: float | None = None


class History:
    """The points of a day; those that are older make room."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=MOST_POINTS)
        self._sent: tuple[float, float, float] | None = None

    def note(self, time: float, status: Mapping[str, Any] | None) -> None:
        """Add what the mirror's answer to `status` tells at this time; None: it gave none."""
        if status is None:
            self._sent = None
            self._points.append(Point(time))
            return
        started, sent = float(status["uploader"]["started"]), float(status["uploaded"]["bytes"])
        backlog = status.get("backlog", {}).get("bytes_at_least")
        age = float(status["recovery_point"]["age_seconds"])
        rate = self._rate(time, started, sent)
        self._points.append(Point(time, rate, None if backlog is None else float(backlog), age))
        self._sent = (time, started, sent)

    def _rate(self, time: float, started: float, sent: float) -> float | None:
        """An uploader counts from its start on: from another one's bytes nothing follows."""
        if self._sent is None or self._sent[1] != started:
            return None
        then, _, sent_then = self._sent
        return max(0.0, sent - sent_then) / (time - then) if time > then else None

    def __len__(self) -> int:
        return len(self._points)

    @property
    def latest(self) -> float | None:
        """The time of the last point."""
        return self._points[-1].time if self._points else None

    def told(self) -> dict[str, Any]:
        """Return what the page is told: how far points are apart, and the points, oldest first."""
        points = [[round(one.time), _rounded(one.rate), one.backlog, _rounded(one.age)] for one in self._points]
        return {"step": POINT_SECONDS, "points": points}


def _rounded(value: float | None) -> int | None:
    return None if value is None else round(value)
