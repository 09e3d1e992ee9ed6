"""One word for how a mirror is, and the same for a monitoring system."""

from __future__ import annotations

from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirrorfs.cli import status
from mirrorfs.replication.verdict import Word, verdict
from mirrorfs.supervision import asking
from tests.json_schema import STATUS_SCHEMA, violations

HOUR = 3600.0
PROBLEM = {"name": "vm/1", "reason": "it is damaged", "since": 1.0, "count": 2}
HELD = {"snapshot": "vm/1/x", "since": 1.0, "reason": "wave", "goes_at": None}
FAILING = {"process": "worker 2", "deaths": 4, "since": 1.0, "last": "ended unexpectedly (signal 9)"}
OUTAGE = {"because": "the store is away", "reason": "unreachable", "since": 1.0, "needs_an_administrator": False}


def _answer(**changed: Any) -> dict[str, Any]:  # noqa: ANN401
    return {
        "datastore": "/srv/a",
        "bucket": "b",
        "prefix": "n",
        "store_options": {},
        "uploader": {"pid": 1, "started": 1.0, "phase": "mirroring", "refused": None},
        "waiting": None,
        "recovery_point": {"missing": 0, "oldest": None, "finished": None, "age_seconds": 0.0},
        "store": {
            "place": "s3://b", "up": True, "since": 1.0, "last_error": None, "last_error_at": None,
            "confirmation": "put-checksum", "conditional_puts": True, "versioned": False, "object_lock": False,
            "clock_difference": None, "clock_is_trusted": True, "does_without": {}, "requests_without_progress": [],
        },
        "claim": {"looked_at": 1.0, "is_current": True},
        "uploaded": {"objects": 0, "bytes": 0, "bytes_per_second": 0.0},
        "snapshots": [],
        "chunks": 0,
        "problems": [],
        "failing_processes": [],
        "workers": {"wanted": 2, "running": 2},
        "foreign": {"count": 0, "examples": []},
        "quarantined": {"count": 0, "examples": []},
        "retention": {"held": [], "deleted": [], "refused": {"count": 0, "examples": []}},
        "journal_broken_since": None,
        "chunk_store": {"in_use": "native", "reason": "", "event_overflows": 0},
        "backlog": {"items": 3, "bytes_at_least": 2048, "drain_seconds": 90.0},
        "lag_seconds": 1.0,
        **changed,
    }  # fmt: skip


def _hanging(seconds: float) -> dict[str, Any]:
    request = {"request": "PUT s3://b/x", "seconds": seconds}
    store: dict[str, Any] = _answer()["store"]
    return {**store, "requests_without_progress": [{"request": "GET", "seconds": 31.0}, request]}


def _sent(rate: float) -> dict[str, Any]:
    return {"objects": 1, "bytes": 1, "bytes_per_second": rate}


def _late(seconds: float) -> dict[str, Any]:
    return {"missing": 2, "oldest": "vm/1/2026-01-01T00:00:00Z", "finished": 1.0, "age_seconds": seconds}


def _uploader(**changed: Any) -> dict[str, Any]:  # noqa: ANN401
    return {"pid": 1, "started": 1.0, "phase": "mirroring", "refused": None, **changed}


@pytest.mark.parametrize(
    ("changed", "word", "why"),
    [
        ({}, Word.HEALTHY, "Every finished backup is in the bucket."),
        ({"recovery_point": _late(59)}, Word.HEALTHY, "2 finished backups are not in the bucket yet, for less"),
        ({"recovery_point": _late(HOUR + 1)}, Word.BEHIND, "the oldest is vm/1/2026-01-01T00:00:00Z."),
        ({"retention": {"held": [HELD]}, "recovery_point": _late(HOUR + 1)}, Word.HELD, "1 snapshot is gone from"),
        ({"waiting": OUTAGE, "retention": {"held": [HELD]}}, Word.WAITING, "the store is away"),
        ({"uploader": _uploader(phase="waiting for the store")}, Word.WAITING, "has not answered yet"),
        ({"waiting": {**OUTAGE, "needs_an_administrator": True}}, Word.BROKEN, "Nothing gets into the bucket."),
        ({"problems": [PROBLEM], "waiting": OUTAGE}, Word.BROKEN, "2 names cannot be mirrored as they are."),
        ({"problems": [{**PROBLEM, "count": 1}]}, Word.BROKEN, "1 name cannot be mirrored as it is."),
        ({"uploader": _uploader(refused="it is another's")}, Word.BROKEN, "Nothing is mirrored."),
        ({"journal_broken_since": 1.0}, Word.BROKEN, "The journal cannot be written"),
        (
            {"failing_processes": [FAILING]},
            Word.BROKEN,
            "The worker 2 has ended 4 times in a row: it ended unexpectedly",
        ),
        ({"store": _hanging(901)}, Word.BROKEN, "for 901 s nothing has come or gone"),
        ({"store": _hanging(899)}, Word.HEALTHY, "Every finished backup"),
        ({"store": _hanging(901), "uploaded": _sent(5.0)}, Word.HEALTHY, "Every finished backup"),
    ],
)
def test_the_gravest_is_said(changed: dict[str, Any], word: Word, why: str) -> None:
    judged = verdict(_answer(**changed), HOUR)
    assert judged.word is word
    assert why in judged.why
    assert judged.to_do.endswith(("." if word is not Word.BROKEN else "", "it is another's", "the store is away"))


def _check(monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], *arguments: str) -> Result:
    monkeypatch.setattr(status, "locate", lambda path: path)
    monkeypatch.setattr(asking, "ask_for_status", lambda _: answer)
    return CliRunner().invoke(status.command, ["/srv/a", *arguments])


@pytest.mark.parametrize(
    ("changed", "arguments", "code", "line"),
    [
        ({}, (), 0, "MIRRORFS OK - healthy: "),
        ({"recovery_point": _late(2 * HOUR)}, (), 1, "MIRRORFS WARNING - behind: "),
        ({"recovery_point": _late(2 * HOUR)}, ("--warning", "3h"), 0, "MIRRORFS OK - healthy: "),
        ({"recovery_point": _late(2 * HOUR)}, ("--critical", "90m"), 2, "MIRRORFS CRITICAL - behind: "),
        ({"waiting": OUTAGE}, (), 1, "MIRRORFS WARNING - waiting: the store is away"),
        ({"problems": [PROBLEM]}, (), 2, "MIRRORFS CRITICAL - broken: "),
    ],
)
def test_a_plugin_says_one_line(
    monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any], arguments: tuple[str, ...], code: int, line: str
) -> None:
    done = _check(monkeypatch, _answer(**changed), "--check", *arguments)
    assert done.exit_code == code
    assert done.output.startswith(line)
    assert done.output.count("\n") == 1
    assert " | recovery_point=" in done.output


def test_a_plugin_says_also_that_nothing_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> dict[str, Any]:
        raise asking.NoAnswer("no mirrorfs is mounted on /srv/a")

    monkeypatch.setattr(status, "locate", lambda path: path)
    monkeypatch.setattr(asking, "ask_for_status", fail)
    done = CliRunner().invoke(status.command, ["/srv/a", "--check"])
    assert (done.exit_code, done.output) == (2, "MIRRORFS CRITICAL - no mirrorfs is mounted on /srv/a\n")


def test_an_outage_is_no_failure_of_the_command_in_its_first_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _check(monkeypatch, _answer(waiting=OUTAGE))
    assert done.exit_code == 0
    assert done.output.startswith("waiting: the store is away\n")


def test_the_status_says_word_recovery_point_and_time_to_drain_first(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _check(monkeypatch, _answer(recovery_point=_late(90061)))
    first, what, empty, *rest = done.output.split("\n")
    assert first.startswith("behind: 2 finished backups are not in the bucket yet")
    assert what == "  Nothing, if the backlog shrinks."
    assert empty == ""
    assert "recovery    1 d 1 h ago: vm/1/2026-01-01T00:00:00Z, 2 are not in the bucket" in rest
    assert any(line.endswith("; done in 1 min 30 s at the present rate") for line in rest)


def test_a_process_that_keeps_dying_is_told_and_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    done = _check(monkeypatch, _answer(failing_processes=[FAILING]))
    assert done.exit_code == 1
    assert "failing     the worker 2 has ended 4 times in a row since 1970-01-01T00:00:01Z: it ended" in done.output


def test_the_schema_tells_what_is_wrong() -> None:
    answer = {"word": "healthy", "why": "", "to_do": "", **_answer(), "reconciled": True}
    assert list(violations(answer, STATUS_SCHEMA)) == []
    assert list(violations({**answer, "word": "fine"}, STATUS_SCHEMA)) != []
    assert list(violations({**answer, "chunks": True}, STATUS_SCHEMA)) == ["$.chunks is True, not integer"]
    assert list(violations({**answer, "new": 1}, STATUS_SCHEMA)) == ["$ has new, which the schema does not name"]
    del answer["problems"]
    assert list(violations(answer, STATUS_SCHEMA)) == ["$ lacks problems"]
