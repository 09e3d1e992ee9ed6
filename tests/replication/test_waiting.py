"""Whoever could end a standstill is told of it: also before the first claim, and however long it takes."""

from __future__ import annotations

import pytest

from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import Condition
from mirrorfs.replication.waiting import (
    BEFORE_THE_FIRST_ANSWER,
    PATIENCE_WITH_AN_OUTAGE,
    needs_an_administrator,
    waiting_answer,
)

pytestmark = pytest.mark.trio


def failed(condition: Condition, reason: StoreReason, times: int = 3, *, writes: bool = False) -> Condition:
    series = condition.begin(writes=writes)
    for _ in range(times):
        condition.failed(series, StoreUnavailable("store m/a", "the store says no", reason))
    return condition


async def test_a_store_that_serves_keeps_nothing_waiting() -> None:
    assert waiting_answer(Condition(), "mirroring", 0.0, 1e9) is None
    condition = failed(Condition(), StoreReason.WRONG_KEY)
    condition.succeeded(condition.begin())
    assert waiting_answer(condition, "mirroring", 0.0, 1e9) is None


@pytest.mark.parametrize("reason", StoreReason)
async def test_before_the_first_claim_one_failure_is_told(reason: StoreReason) -> None:
    found = waiting_answer(failed(Condition(), reason, 1), BEFORE_THE_FIRST_ANSWER, 100.0, 100.0)
    assert found is not None
    assert found["reason"] == reason.value
    assert found["needs_an_administrator"] is reason.needs_an_administrator


@pytest.mark.parametrize("reason", [StoreReason.UNREACHABLE, StoreReason.SERVER_ERROR, StoreReason.NOT_S3])
async def test_what_ends_by_itself_is_an_administrators_when_it_does_not(reason: StoreReason) -> None:
    condition = failed(Condition(), reason)
    soon = waiting_answer(condition, "mirroring", 0.0, condition.since + 1)
    late = waiting_answer(condition, "mirroring", 0.0, condition.since + PATIENCE_WITH_AN_OUTAGE + 1)
    assert soon is not None
    assert late is not None
    assert (soon["needs_an_administrator"], late["needs_an_administrator"]) == (False, True)


async def test_what_alone_is_denied_is_told_and_how_many_there_are() -> None:
    condition = Condition()
    denied = [condition.begin(writes=True) for _ in range(3)]
    for _ in range(4):
        for series in denied:
            condition.succeeded(condition.begin(writes=True))
            condition.failed(series, StoreUnavailable("store m/a", "no", StoreReason.ACCESS_DENIED))
    assert condition.is_up
    found = waiting_answer(condition, "mirroring", 0.0, 1e9)
    assert found is not None
    assert "(3 requests fail so" in found["because"]
    assert (found["reason"], found["needs_an_administrator"]) == ("access-denied", True)
    for series in denied:
        condition.ended(series)
    assert waiting_answer(condition, "mirroring", 0.0, 1e9) is None


async def test_a_store_that_is_full_goes_on_waiting_though_it_is_read() -> None:
    condition = failed(Condition(), StoreReason.FULL, 1, writes=True)
    condition.succeeded(condition.begin())
    found = waiting_answer(condition, "mirroring", 0.0, condition.since)
    assert found is not None
    assert found["needs_an_administrator"]
    condition.succeeded(condition.begin(writes=True))
    assert waiting_answer(condition, "mirroring", 0.0, condition.since) is None


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"uploader": {"refused": None}, "waiting": None}, False),
        ({"uploader": {"refused": "because"}, "waiting": None}, True),
        ({"uploader": {"refused": None}, "waiting": {"needs_an_administrator": True}}, True),
        ({"uploader": {"refused": None}, "waiting": {"needs_an_administrator": False}}, False),
    ],
)
async def test_the_exit_code_and_the_metric_follow(answer: dict[str, object], expected: bool) -> None:
    assert needs_an_administrator(answer) is expected
