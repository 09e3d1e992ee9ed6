"""Whoever runs the mirror: looks at `mirrorfs status`, approves removals that are held, and sees to what is refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tests.harness.bucket import Bucket
from tests.harness.formats import MANIFEST_NAME
from tests.harness.mirror import Mirror
from tests.harness.model import Model
from tests.harness.statistics import Statistics


class Administrator:
    """Holds the mirror to its word: what it says to hold back stays in the bucket until it is approved or comes back.

    `bucket` is read past everything that may be between mirror and store; `seen_published` tells when a snapshot was
    last seen to stand there (Unix time). Raises ClientError or BotoCoreError when the store cannot be read.
    """

    def __init__(
        self,
        mirror: Mirror,
        model: Model,
        bucket: Bucket,
        statistics: Statistics,
        seen_published: Callable[[str], float | None],
    ) -> None:
        self._mirror, self._model, self._bucket, self._statistics = mirror, model, bucket, statistics
        self._seen_published = seen_published
        # Since when, by Unix time, the removal of a snapshot is held.
        self._held: dict[str, float] = {}
        self._last_approval = "never approved"

    @property
    def held(self) -> frozenset[str]:
        """Snapshots whose removal was held at the last look."""
        return frozenset(self._held)

    def look(self) -> Iterable[str]:
        """Look at what is held; gives what is wrong, as sentences."""
        retention = self._retention()
        if retention is None:
            return []
        now = time.time()
        # By its clock, which may be wrong: it is not held for longer than until now.
        held = {str(removal["snapshot"]): min(now, float(removal["since"])) for removal in retention["held"]}
        wrong = list(self._gone({**self._held, **held}))
        self._held = held
        self._statistics.checks["removals seen to be held"] += len(held)
        return wrong

    def _gone(self, held: dict[str, float]) -> Iterator[str]:
        """Those of which the manifest is not there, and nothing but the mirror can have taken it away."""
        for path, since in sorted(held.items()):
            is_back = path in self._model.snapshots or self._model.departures.came_after(path, since)
            if is_back or self._model.is_open(path) or not self._has_stood(path):
                continue
            if self._bucket.head(f".cnt/{path}/{MANIFEST_NAME}") is None:
                yield (
                    f"P5 .cnt/{path}: its removal was held, nobody has approved, and it is gone from the bucket "
                    f"(held since {since:.3f}, {self._model.departures.history(path)}, {self._last_approval})"
                )

    def _has_stood(self, path: str) -> bool:
        """A mirror may hold what went just before its manifest was to be put; then nothing is lost."""
        seen = self._seen_published(path)
        return seen is not None and not self._model.departures.came_after(path, seen)

    def approve(self) -> str | None:
        """Approve of all that is held; None, or why that failed."""
        self._held.clear()
        self._statistics.checks["approvals of held removals"] += 1
        answer = self._mirror.approve_removals()
        self._last_approval = f"last approved at {time.time():.3f}: {answer or 'done'}"
        return answer

    def forget(self) -> None:
        """The mirror has lost its state, and with it what it held."""
        self._held.clear()

    def refused(self) -> list[dict[str, Any]]:
        """What the store refuses to delete, as far as `status` names it."""
        retention = self._retention()
        return [] if retention is None else list(retention["refused"]["examples"])

    def _retention(self) -> dict[str, Any] | None:
        """None where nobody answers, or does not know yet."""
        retention: dict[str, Any] | None = self._mirror.status().get("retention")
        return retention
