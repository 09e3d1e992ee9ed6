"""The notifier asks as the status does, tells by each way on its own, and tries again what was not delivered."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Sequence
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
from mirrorfs.notification.watching import Look
from mirrorfs.replication.verdict import Verdict, Word
from mirrorfs.restarts import Failing
from mirrorfs.supervision.asking import NoAnswer, UploaderHangs, UploaderSilent
from mirrorfs.supervision.registry import RunningMount
from tests.cli.test_verdict import HELD, PROBLEM, _answer, _late

HOUR = 3600.0
WELL = Look([Verdict(Word.HEALTHY, "Every finished backup is in the bucket.", "Nothing.")])
BROKEN = Look([Verdict(Word.BROKEN, "It is broken.", "Mend it.")])


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
    assert (None if found is None else [verdict.word for verdict in found.verdicts]) == words
    if isinstance(answer, NoAnswer):
        assert found is not None
        assert found.judged == {Word.BROKEN}


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
    (verdict,) = _verdicts(looking)
    assert (verdict.word, verdict.why) == (Word.BROKEN, "it has not answered")
    failing = Failing("uploader", 3, 1.0, "ended unexpectedly (signal 9)")
    mount = RunningMount("/srv/a", "/srv/a", "/state", 1, uploader_failing=failing)
    monkeypatch.setattr(notifier, "find", lambda _: mount)
    (verdict,) = _verdicts(_looking(silence("it does not run")))
    assert verdict.why == "The uploader has ended 3 times in a row: it ended unexpectedly (signal 9)."


def _verdicts(looking: Looking) -> Sequence[Verdict]:
    look = looking.look()
    return () if look is None else look.verdicts


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


@pytest.mark.parametrize("failures", [0, 4, 7])
def test_what_fails_is_tried_again_until_it_was_delivered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, failures: int
) -> None:
    told: list[Collection[Word]] = []

    class Record(ToldRecord):
        def set(self, way: str, words: Collection[Word]) -> None:
            assert way == "mail root"
            # Written before it was delivered it would be lost with a restart.
            assert len(events) == len(told) + 1
            told.append(words)
            trio.from_thread.run_sync(noted[len(told)].set)

    noted = {number: trio.Event() for number in (1, 2)}
    record, way = Record(StateDirectory(str(tmp_path))), _Played(failures)
    events: list[str] = way.events  # type: ignore[attr-defined]

    async def test() -> float:
        teller = Teller("/srv/a", way, record, 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(teller.run)
            teller.take(BROKEN)
            teller.take(BROKEN)
            began = trio.current_time()
            await noted[1].wait()
            took = trio.current_time() - began
            teller.take(WELL)
            await noted[2].wait()
            nursery.cancel_scope.cancel()
        return took

    took = trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert events == ["broken", "recovered"]
    assert told == [{Word.BROKEN}, frozenset()]
    assert caplog.text.count("the server is down") == failures
    assert took // 3600 == {0: 0, 4: 1, 7: 4}[failures], "hourly at last"


def test_what_is_over_before_it_could_be_told_is_not_told(tmp_path: Path) -> None:
    way = _Played(2)

    async def test() -> None:
        teller = Teller("/srv/a", way, ToldRecord(StateDirectory(str(tmp_path))), 1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(teller.run)
            teller.take(BROKEN)
            await trio.sleep(90)
            assert not way.left  # type: ignore[attr-defined]
            teller.take(WELL)
            await trio.sleep(7200)
            nursery.cancel_scope.cancel()

    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0.05))
    assert way.events == []  # type: ignore[attr-defined]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("after", "interval", "looks"), [(0, 10, 1), (4, 10, 1), (120, 30, 4), (86400, 30, 2880)])
def test_looks_fill_the_time_that_is_given(after: float, interval: float, looks: int) -> None:
    assert (interval_for(after), looks_for(after)) == (interval, looks)
