"""When snapshots came to a datastore and left it: from this follows which of them the bucket must keep for a while."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field

from tests.harness.names import is_below


@dataclass(slots=True)
class Departures:
    """Times are Unix times of this machine's clock, which is never set wrong here. Any thread.

    A time may be earlier than what happened (`began`, where only the outcome is known), never later, for departures;
    the reverse for arrivals.
    """

    began: float = field(default_factory=time.time)
    _left: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _came: dict[str, float] = field(default_factory=dict)
    _open: set[str] = field(default_factory=set)

    def open(self, scope: str) -> None:
        """Below this path snapshots may have come and gone without our knowledge."""
        self._open.add(scope)

    def came(self, path: str) -> None:
        """A snapshot of this name is there now, and was not before, or with other content."""
        self._came[path] = time.time()

    def left(self, path: str, *, at: float | None = None) -> None:
        """It is gone, since `at`: now, unless given."""
        self._left[path].append(time.time() if at is None else at)

    def left_some_time(self, path: str) -> None:
        """It is gone; when it went is not known."""
        self.left(path, at=self.began)

    @property
    def paths(self) -> list[str]:
        """All that have ever left."""
        return sorted(self._left)

    def is_known(self, path: str) -> bool:
        """Whether there has ever been such a snapshot, or may have been."""
        return path in self._came or path in self._left or any(is_below(path, scope) for scope in self._open)

    def came_after(self, path: str, moment: float) -> bool:
        """Whether it may have come (back) after a moment."""
        return self._came.get(path, self.began) > moment

    def history(self, path: str) -> str:
        """What is known of a snapshot's coming and leaving, for whoever looks for the cause of a violation."""
        left = ", ".join(f"{at:.3f}" for at in self._left.get(path, ())) or "never"
        return f"came at {self._came.get(path, self.began):.3f}, left at {left}"

    def earliest_removal(self, path: str, published_at: float) -> float:
        """From when on the mirror may have removed a snapshot that has left and was seen published at a moment.

        That is when it left last before it was seen; or first after.
        """
        left = self._left[path]
        return max((at for at in left if at <= published_at), default=min(left, default=self.began))
