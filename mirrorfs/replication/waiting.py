"""Why nothing gets into the bucket for now, and whether somebody has to do something about that."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mirrorfs.objectstore.retry import Condition

BEFORE_THE_FIRST_ANSWER = "waiting for the store"
"""The uploader's phase until the prefix is claimed."""
PATIENCE_WITH_AN_OUTAGE = 900.0
"""In seconds: what ends by itself has mostly done so by then."""


def waiting_answer(condition: Condition, phase: str, started: float, now: float) -> dict[str, Any] | None:
    """Tell what the store keeps from being done, None where it serves. Times are Unix times.

    Before the prefix is claimed nothing at all is mirrored, so that a single failure is enough there. What fails alone
    is told where it will not end by itself: a policy may deny chunks, and allow all else.
    """
    alone = condition.fails_alone
    if alone is not None and condition.is_up and alone.error.reason.needs_an_administrator:
        return {
            "because": f"{alone.error} ({alone.count} requests fail so, while others are served)",
            "reason": alone.error.reason.value,
            "since": alone.since,
            "needs_an_administrator": True,
        }
    error = condition.last_error
    if error is None or (condition.is_up and phase != BEFORE_THE_FIRST_ANSWER):
        return None
    since = started if condition.is_up else condition.since
    is_long = now - since > PATIENCE_WITH_AN_OUTAGE
    return {
        "because": str(error),
        "reason": error.reason.value,
        "since": since,
        "needs_an_administrator": error.reason.needs_an_administrator or is_long,
    }


def needs_an_administrator(answer: Mapping[str, Any]) -> bool:
    """Tell of the uploader's answer to `status` whether nothing is mirrored until somebody has done something."""
    waiting = answer.get("waiting")
    return answer["uploader"]["refused"] is not None or bool(waiting and waiting["needs_an_administrator"])
