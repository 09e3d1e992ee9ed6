"""How fast the store may be used, by the time of day."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MINUTES_OF_A_DAY = 24 * 60
MOST_WINDOWS = 16
"""As many fit, three times, into one line that a pipe takes as a whole."""


@dataclass(frozen=True, slots=True)
class RateWindow:
    """From minute `begin` of the day until before minute `end`, over midnight where that is not later.

    `rate` is what may be done in a second, None where there is no limit.
    """

    begin: int
    end: int
    rate: float | None

    def holds_at(self, minute: int) -> bool:
        """Tell whether the minute lies in it."""
        if self.begin < self.end:
            return self.begin <= minute < self.end
        return minute >= self.begin or minute < self.end


@dataclass(frozen=True, slots=True)
class RateSchedule:
    """The first window that holds decides, and `otherwise` where none does; None is no limit."""

    windows: tuple[RateWindow, ...] = ()
    otherwise: float | None = None

    def at(self, minute: int) -> float | None:
        """Return what holds at a minute of the day."""
        return next((window.rate for window in self.windows if window.holds_at(minute)), self.otherwise)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RateSchedule:
        """Make it of what `dataclasses.asdict` gave."""
        return cls(tuple(RateWindow(**window) for window in value["windows"]), value["otherwise"])


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Bytes a second that are sent and received as bodies, and requests a second."""

    up: RateSchedule = field(default_factory=RateSchedule)
    down: RateSchedule = field(default_factory=RateSchedule)
    requests: RateSchedule = field(default_factory=RateSchedule)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> RateLimits:
        """Make it of what `dataclasses.asdict` gave."""
        return cls(**{name: RateSchedule.from_json(schedule) for name, schedule in value.items()})
