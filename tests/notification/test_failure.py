"""That a mount has failed is told once, until it is well again; what could not be told is tried again."""

from __future__ import annotations

import json
from pathlib import Path

import trio
from trio.testing import MockClock

from mirrorfs.database.directory import StateDirectory
from mirrorfs.notification import failure
from mirrorfs.notification.delivery import Way, ways
from mirrorfs.notification.told import ToldRecord
from mirrorfs.notification.watching import Look, Watching
from mirrorfs.replication.verdict import Word
from mirrorfs.supervision.settings import NotifySettings

VERDICT = failure.failed("signal", ("killed", "KILL"), "mirrorfs@store1.service")


class _Place:
    """A state directory, and a program that is told, beside what it has been told."""

    def __init__(self, base: Path, body: str = "true") -> None:
        self._base = base
        program = base / "tell"
        program.write_text(f"#!/bin/sh\n{body} && cat >>{base}/told\n")
        program.chmod(0o755)
        self.ways = ways(NotifySettings(command=(str(program),)))

    @property
    def told(self) -> list[str]:
        path = self._base / "told"
        return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []

    @property
    def record(self) -> ToldRecord:
        return ToldRecord(StateDirectory(str(self._base)))

    def tell(self, record: ToldRecord | None) -> list[str]:
        return trio.run(failure.tell, "/srv/store1", VERDICT, self.ways, record, clock=MockClock(autojump_threshold=1))


def _words(record: ToldRecord, way: Way) -> list[Word]:
    record.load([way.whom])
    return record.told(way.whom)


def test_it_says_what_systemd_says() -> None:
    assert VERDICT.why == "The mount has failed (signal: killed KILL). Until it is up again PBS does not run."
    assert "'systemctl status mirrorfs@store1.service'" in VERDICT.to_do
    assert failure.failed("timeout", (), "x").why.startswith("The mount has failed (timeout).")


def test_it_is_told_once_until_the_mount_is_well(tmp_path: Path) -> None:
    place = _Place(tmp_path)
    assert place.tell(place.record) == []
    assert place.tell(place.record) == []
    assert place.told == ["broken"]
    (way,) = place.ways
    # The notifier of the mount that comes up goes on from there.
    watching = Watching(_words(place.record, way), looks=1)
    watching.look(Look([]))
    news = watching.news()
    assert news is not None
    assert news.kind.value == "recovered"


def test_what_was_told_before_stays_told(tmp_path: Path) -> None:
    place = _Place(tmp_path)
    (way,) = place.ways
    place.record.set(way.whom, [Word.HELD])
    place.tell(place.record)
    assert set(_words(place.record, way)) == {Word.HELD, Word.BROKEN}


def test_a_way_that_fails_is_tried_again(tmp_path: Path) -> None:
    place = _Place(tmp_path, f"echo >>{tmp_path}/tries; test $(wc -l <{tmp_path}/tries) -gt 2")
    assert place.tell(place.record) == []
    assert place.told == ["broken"]


def test_a_way_that_always_fails_is_named_and_nothing_is_noted(tmp_path: Path) -> None:
    place = _Place(tmp_path, "false")
    (sentence,) = place.tell(place.record)
    assert sentence.startswith("notify.command: ")
    assert _words(place.record, place.ways[0]) == []


def test_where_a_notifier_works_nothing_is_noted(tmp_path: Path) -> None:
    place = _Place(tmp_path)
    assert place.tell(None) == []
    assert place.told == ["broken"]
    assert not (tmp_path / "mirrorfs.told").exists()
