"""How a process that dies is started again, and when that is worth telling."""

from __future__ import annotations

from mirrorfs.restarts import Failing, Restarts


def _died(restarts: Restarts, at: float, lived: float = 1.0) -> float:
    restarts.began(at - lived)
    return restarts.ended("signal 9", at, 60.0)


def test_the_third_death_in_a_row_is_told_until_it_has_lived_for_a_minute() -> None:
    restarts = Restarts("uploader")
    assert [_died(restarts, 100.0), _died(restarts, 110.0)] == [1, 2]
    assert restarts.failing(110.0) is None
    assert _died(restarts, 120.0) == 4
    restarts.began(130.0)
    failing = restarts.failing(131.0)
    assert failing == Failing("uploader", 3, failing.since if failing else 0.0, "signal 9")
    assert restarts.failing(190.0) is None
    assert _died(restarts, 200.0, lived=70.0) == 1
    assert restarts.failing(200.0) is None


def test_a_thousand_deaths_wait_no_longer_than_is_allowed() -> None:
    restarts = Restarts("uploader")
    assert {_died(restarts, float(at)) for at in range(1000)} == {1, 2, 4, 8, 16, 32, 60}
    assert Restarts("uploader").ended("x", 0.0, 0.5) == 1
