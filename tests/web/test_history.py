"""The last day of a mirror is told as it was, with gaps where nothing was known."""

from __future__ import annotations

from typing import Any

from mirrorfs.web.history import MOST_POINTS, History


def status(started: float, sent: int, backlog: int | None = 0, age: float = 0.0) -> dict[str, Any]:
    told: dict[str, Any] = {
        "uploader": {"started": started},
        "uploaded": {"bytes": sent},
        "recovery_point": {"age_seconds": age},
    }
    return told if backlog is None else {**told, "backlog": {"bytes_at_least": backlog}}


def test_bytes_are_counted_between_points_of_one_uploader() -> None:
    history = History()
    history.note(1000, status(1, 100, backlog=None))
    history.note(1060, status(1, 6100, 70, 30.4))
    history.note(1120, None)
    history.note(1180, status(1, 9000))
    history.note(1240, status(1200, 600))
    history.note(1300, status(1200, 1200))
    assert history.told()["points"] == [
        [1000, None, None, 0],
        [1060, 100, 70, 30],
        [1120, None, None, None],
        [1180, None, 0, 0],
        [1240, None, 0, 0],
        [1300, 10, 0, 0],
    ]
    assert history.latest == 1300


def test_a_clock_that_was_set_back_is_no_rate() -> None:
    history = History()
    history.note(1000, status(1, 100))
    history.note(900, status(1, 200))
    assert history.told()["points"][1][1] is None


def test_a_day_is_kept_and_no_more() -> None:
    history = History()
    for number in range(MOST_POINTS + 10):
        history.note(60.0 * number, status(1, number))
    points = history.told()["points"]
    assert (len(points), points[0][0]) == (MOST_POINTS, 600)
