"""The auditors that look into a world's bucket all the time, whatever happens in it."""

from __future__ import annotations

import threading

from tests.harness.auditor import Auditor, ContinuousAudit, audit_continuously
from tests.harness.statistics import Statistics
from tests.harness.store_route import StoreRoute

_LISTINGS_LAG_SECONDS = 3.0
_PAUSE_SECONDS = 0.3


class Watch:
    """Watches from its making on: one by the bucket as it is, and where that can be had, one by listings that lag.

    `auditor`, the first one's, may be asked for more at any time.
    """

    def __init__(self, route: StoreRoute, seed: int) -> None:
        self._stop = threading.Event()
        self.auditor = Auditor(route.bucket(), deep=True, threads=2)
        self._audits = [self._begin(self.auditor, _PAUSE_SECONDS)]
        lagging = route.lagging_bucket(_LISTINGS_LAG_SECONDS, seed)
        if lagging is not None:
            self._audits.append(self._begin(Auditor(lagging, listings_lag=True, threads=2), 1.0))

    def _begin(self, auditor: Auditor, pause_seconds: float) -> ContinuousAudit:
        return audit_continuously(auditor, self._stop, pause_seconds=pause_seconds)

    def violations(self) -> list[str]:
        """What they have found until now."""
        return [str(violation) for audit in self._audits for violation in audit.violations]

    def let_looks_end(self) -> None:
        """Wait until nothing is left of looks at the bucket that have begun before."""
        for audit in self._audits:
            audit.let_look_end()

    def finish(self, statistics: Statistics) -> None:
        """Stop after a last look each, and count what they have found."""
        for audit in self._audits:
            statistics.violate(audit.finish())
            statistics.checks["audits of the bucket (P1, P5, P6)"] += audit.samples
            statistics.checks["audits while the store was down"] += audit.unreadable

    def stop(self) -> None:
        """Have them end, and do not wait for that."""
        self._stop.set()
