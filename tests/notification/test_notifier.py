"""The notifier asks as the status does, tells by each way on its own, and tries again without end for none."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from mirrorfs.database.directory import StateDirectory
from mirrorfs.filesystem.condition import NotAsked
from mirrorfs.notification import notifier
from mirrorfs.notification.delivery import NotDelivered, Way
from mirrorfs.notification.event import Event
from mirrorfs.notification.notifier import Looking, Teller, interval_for, looks_for
from mirrorfs.notification.told import ToldRecord
from mirrorfs.replication.verdict import Verdict, Word
from mirrorfs.restarts import Failing
from mirrorfs.supervision.asking import NoAnswer, UploaderHangs, UploaderSilent
from mirrorfs.supervision.registry import RunningMount
from tests.cli.test_verdict import HELD, PROBLEM, _answer, _late

HOUR = 3600.0
WELL = [Verdict(Word.HEALTHY, "Every finished backup is in the bucket.", "Nothing.")]
BROKEN = [Verdict(Word.BROKEN, "It is broken.", "Mend it.")]


def _looking(answer: Any, clock: Callable[[], float] = time.monotonic) -> Looking:  # noqa: ANN401
    def ask(_: str) -> dict[str, Any]:
        if isinstance(answer, Exception):
            raise answer
        found: dict[str, Any] = answer
        return found

    return Looking("/srv/a", HOUR, 120.0, ask=ask, clock=clock)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (_answer(), [Word.HEALTHY]),
        (_answer(problems=[PROBLEM], recovery_point=_late(2 * HOUR)), [Word.BROKEN, Word.BEHIND]),
        (_answer(retention={"held": [HELD]}), [Word.HELD, Word.HEALTHY]),
        (NoAnswer("the mount on /srv/a does not answer"), [Word.BROKEN]),
        (NotAsked("the machine is too busy"), None),
        (ValueError("nonsense"), None),
    ],
)
def test_a_look_is_judged_as_the_status_is(answer: object, words: list[Word] | None) -> None:
    found = _looking(answer).look()
    assert (None if found is None else [verdict.word for verdict in found]) == words


@pytest.mark.parametrize(("silence", "limit"), [(UploaderHangs, 30), (UploaderSilent, 180)])
def test_a_silent_uploader_is_told_in_time_and_at_once_when_it_keeps_dying(
    monkeypatch: pytest.MonkeyPatch, silence: type[UploaderSilent], limit: int
) -> None:
    now = [0.0]
    looking = _looking(silence("it has not answered"), lambda: now[0])
    monkeypatch.setattr(notifier, "find", lambda _: None)
    for now[0] in range(0, limit, 10):
        assert looking.look() is None
    now[0] = limit
    (verdict,) = looking.look() or []
    assert (verdict.word, verdict.why) == (Word.BROKEN, "it has not answered")
    failing = Failing("uploader", 3, 1.0, "ended unexpectedly (signal 9)")
    mount = RunningMount("/srv/a", "/srv/a", "/state", 1, uploader_failing=failing)
    monkeypatch.setattr(notifier, "find", lambda _: mount)
    (verdict,) = _looking(silence("it does not run")).look() or []
    assert verdict.why == "The uploader has died 3 times in a row: it ended unexpectedly (signal 9)."


def test_an_uploader_that_answers_again_is_patiently_waited_for_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    answers: list[dict[str, Any] | NoAnswer] = [UploaderHangs("x"), _answer(), UploaderHangs("x"), UploaderHangs("x")]

    def ask(_: str) -> dict[str, Any]:
        answer = answers.pop(0)
        if isinstance(answer, NoAnswer):
            raise answer
        return answer

    monkeypatch.setattr(notifier, "find", lambda _: None)
    looking = Looking("/srv/a", HOUR, 120.0, ask=ask, clock=lambda: now[0])
    assert looking.look() is None
    now[0] = 20
    assert looking.look() is not None
    now[0] = 40
    assert looking.look() is None
    now[0] = 60
    assert looking.look() is None


class _Played(Way):
    """A way that fails as often as it is told to."""

    def __init__(self, failures: int) -> None:
        super().__init__("mail", ("/usr/sbin/sendmail",), "root")
        object.__setattr__(self, "left", failures)
        object.__setattr__(self, "events", [])

    async def tell(self, event: Event) -> None:
        await trio.lowlevel.checkpoint()
        if self.left:  # type: ignore[attr-defined]
            object.__setattr__(self, "left", self.left - 1)  # type: ignore[attr-defined]
            raise NotDelivered("the server is down")
        self.events.append(event.event)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("failures", "events", "logged"),
    [(0, ["broken", "recovered"], 0), (4, ["broken", "recovered"], 4), (5, ["recovered"], 5)],
)
def test_what_fails_is_tried_again_and_given_up_at_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failures: int, events: list[str], logged: int
) -> None:
    told: list[Collection[Word]] = []

    class Record(ToldRecord):
        def set(self, way: str, words: Collection[Word]) -> None:
            assert way == "mail"
            told.append(words)
            if not words:
                trio.from_thread.run_sync(is_told.set)

    record, way, is_told = Record(StateDirectory(str(tmp_path))), _Played(failures), trio.Event()

    async def test() -> None:
        teller = Teller("/srv/a", way, record, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(teller.run)
            for found in (BROKEN, BROKEN, WELL, WELL):
                teller.take(found)
            await is_told.wait()
            nursery.cancel_scope.cancel()

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert way.events == events  # type: ignore[attr-defined]
    assert told == [{Word.BROKEN}, frozenset()]
    assert caplog.text.count("the server is down") == logged
    assert ("it is given up" in caplog.text) == (failures == 5)


def test_a_way_that_hangs_for_hours_collects_no_more_than_it_can_hold(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    teller = Teller("/srv/a", _Played(0), ToldRecord(StateDirectory(str(tmp_path))), 1)
    for _ in range(20):
        teller.take(BROKEN)
        teller.take(WELL)
    assert "too much waits for it" in caplog.text


@pytest.mark.parametrize(("after", "interval", "looks"), [(0, 1, 1), (4, 1, 4), (120, 30, 4), (86400, 30, 2880)])
def test_looks_fill_the_time_that_is_given(after: float, interval: float, looks: int) -> None:
    assert (interval_for(after), looks_for(after)) == (interval, looks)
