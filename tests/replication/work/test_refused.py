"""What the store refuses for one reason is one condition: told once, tried again after a growing pause."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from mirrorfs.replication.work.refused import REFUSED, RefusedObjects, folded


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def refused(clock: Clock) -> RefusedObjects:
    found = RefusedObjects(clock)
    for number in range(10):
        found.reason_of("413", f"words {number}", 1000 + number)
        found.add("413", f"chunk {number}")
    return found


def test_all_share_the_words_of_the_first(refused: RefusedObjects) -> None:
    assert refused.reason_of("413", "other words", 5000) == f"{REFUSED}words 0"
    assert refused.reason_of("418", "other words", None) == f"{REFUSED}other words"


def test_what_is_as_large_as_what_was_refused_is_not_sent_and_what_is_smaller_is(refused: RefusedObjects) -> None:
    assert refused.foresees(1000) == ("413", f"{REFUSED}words 0")
    assert refused.foresees(999) is None


def test_another_refusal_says_nothing_of_other_objects(clock: Clock) -> None:
    refused = RefusedObjects(clock)
    refused.reason_of("InvalidStorageClass", "words", None)
    refused.add("InvalidStorageClass", "a")
    assert refused.foresees(10**9) is None


def test_a_few_are_tried_when_the_pause_is_over_other_ones_each_time_and_it_grows(
    refused: RefusedObjects, clock: Clock
) -> None:
    assert refused.due() == []
    tried: list[str] = []
    pauses: list[float] = []
    for _ in range(8):
        began = clock.now
        while not (asked := refused.due()):
            clock.now += 1
        pauses.append(clock.now - began)
        assert refused.foresees(1000) is None
        # The first that is refused again closes the way for the others.
        refused.reason_of("413", "words", 1005)
        assert refused.foresees(1005) is not None
        tried += asked
    assert pauses == sorted(pauses)
    assert (pauses[0], pauses[-1]) == (15, 600)
    assert {f"chunk {number}" for number in range(10)} == set(tried)


def test_when_one_is_taken_all_are_tried_once(refused: RefusedObjects) -> None:
    assert refused.remove("chunk 3") == [f"chunk {number}" for number in range(10) if number != 3]
    assert refused.foresees(10**9) is None
    assert refused.remove("chunk 4") == []
    refused.reason_of("413", "again", 1005)
    assert refused.foresees(1005) is not None
    for number in range(10):
        refused.remove(f"chunk {number}")
    assert refused.waiting() == set()
    assert refused.foresees(10**9) is None


def test_an_administrator_who_asks_has_all_tried(refused: RefusedObjects) -> None:
    refused.ask_again()
    assert refused.foresees(10**9) is None


def test_only_what_the_store_refuses_is_one_line() -> None:
    reason = f"{REFUSED}it is too large"
    told = folded([("a", reason, 3.0), ("b", "it is missing", 4.0), ("c", reason, 2.0), ("d", "it is missing", 1.0)])
    assert [(one.name, one.count, one.since) for one in told] == [("a", 2, 2.0), ("b", 1, 4.0), ("d", 1, 1.0)]
    assert told[0].reason == f"{reason} (and 1 more are refused so, or wait for what is)"
    assert told[1].reason == "it is missing"
