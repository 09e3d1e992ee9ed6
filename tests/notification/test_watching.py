"""What is news is told once: not a moment's trouble, not a flicker, and not again after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorfs.database.directory import StateDirectory
from mirrorfs.notification.delivery import ways
from mirrorfs.notification.event import Kind
from mirrorfs.notification.told import ToldRecord
from mirrorfs.notification.watching import Look, Watching
from mirrorfs.replication.verdict import Verdict, Word
from mirrorfs.supervision.settings import NotifySettings

WELL = [Verdict(Word.HEALTHY, "Every finished backup is in the bucket.", "Nothing is to be done.")]
WAITING = [Verdict(Word.WAITING, "the store is away", "wait"), *WELL]


def _so(*words: Word) -> list[Verdict]:
    return [Verdict(word, f"it is {word.value}", "mend it") for word in words]


def _told(watching: Watching, *looks: list[Verdict] | Look) -> list[list[Kind]]:
    """What is told at each look, each time at once."""
    return [_told_at(watching, look if isinstance(look, Look) else Look(look)) for look in looks]


def _told_at(watching: Watching, look: Look) -> list[Kind]:
    watching.look(look)
    told = []
    while (news := watching.news()) is not None:
        watching.has_told(news)
        told.append(news.kind)
    return told


def test_what_is_so_at_enough_looks_in_a_row_is_told_once_and_so_is_its_end() -> None:
    watching, broken = Watching([], 2), _so(Word.BROKEN)
    assert _told(watching, broken, WELL, broken, broken, broken) == [[], [], [], [Kind.BROKEN], []]
    assert _told(watching, WELL, broken, WELL, WELL, WELL) == [[], [], [], [Kind.RECOVERED], []]


def test_each_word_is_told_and_only_the_end_of_all_is_a_recovery() -> None:
    watching = Watching([], 1)
    assert _told(watching, _so(Word.BROKEN, Word.HELD), _so(Word.HELD, Word.BEHIND)) == [
        [Kind.BROKEN, Kind.HELD],
        [Kind.BEHIND],
    ]
    assert _told(watching, _so(Word.BEHIND), _so(Word.BROKEN), WAITING) == [[], [Kind.BROKEN], [Kind.RECOVERED]]


def test_what_could_not_be_told_stays_news_while_it_is_so() -> None:
    watching = Watching([], 1)
    for _ in range(3):
        watching.look(Look(_so(Word.BROKEN)))
        news = watching.news()
        assert news is not None
        assert (news.kind, watching.told) == (Kind.BROKEN, frozenset())
    watching.look(Look(WELL))
    assert watching.news() is None, "nobody was told that it was broken"


def test_what_nobody_answers_is_neither_over_nor_new() -> None:
    watching, silence = Watching([], 2), Look(_so(Word.BROKEN), frozenset({Word.BROKEN}))
    held = _so(Word.HELD)
    assert _told(watching, held, held) == [[], [Kind.HELD]]
    assert _told(watching, silence, silence, silence) == [[], [Kind.BROKEN], []]
    assert _told(watching, held, held, held) == [[], [], []], "told again, or told as over"
    assert watching.told == {Word.HELD}
    assert _told(watching, WELL, WELL) == [[], [Kind.RECOVERED]]


def test_an_outage_alone_is_no_news() -> None:
    assert _told(Watching([], 1), WAITING, WELL) == [[], []]


def test_a_restart_tells_nothing_twice(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    directory = StateDirectory(str(tmp_path))
    record = ToldRecord(directory)
    record.load(["mail a"])
    watching = Watching(record.told("mail a"), 1)
    assert _told(watching, _so(Word.BROKEN)) == [[Kind.BROKEN]]
    record.set("mail a", watching.told)
    assert Path(directory.told_file).stat().st_mode & 0o777 == 0o600
    again = ToldRecord(directory)
    again.load(["mail a", "command b"])
    assert again.told("command b") == []
    assert _told(Watching(again.told("mail a"), 1), _so(Word.BROKEN), WELL) == [[], [Kind.RECOVERED]]


def test_another_address_has_been_told_nothing_and_one_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    def ways_of(address: str) -> list[str]:
        return [way.whom for way in ways(NotifySettings(("/bin/tell", "a b"), address))]

    tmp_path.chmod(0o700)
    record = ToldRecord(StateDirectory(str(tmp_path)))
    for way in ways_of("wrong@example.com"):
        record.set(way, [Word.BROKEN])
    record = ToldRecord(StateDirectory(str(tmp_path)))
    record.load(ways_of("right@example.com"))
    command, mail = ways_of("right@example.com")
    assert (record.told(command), record.told(mail)) == ([Word.BROKEN], [])
    record.set(mail, [])
    record = ToldRecord(StateDirectory(str(tmp_path)))
    record.load(ways_of("wrong@example.com"))
    assert record.told(ways_of("wrong@example.com")[1]) == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"mail": ["fine"]}', b'{"mail": 7}', b"[" * 100_000])
def test_a_record_that_is_none_is_as_if_nothing_was_told(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    directory = StateDirectory(str(tmp_path))
    Path(directory.told_file).write_bytes(content)
    Path(directory.told_file).chmod(0o600)
    record = ToldRecord(directory)
    record.load(["mail"])
    assert record.told("mail") == []
    assert "told once more" in caplog.text


def test_a_record_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = ToldRecord(StateDirectory(str(tmp_path / "gone")))
    record.load(["mail"])
    record.set("mail", [Word.BROKEN])
    assert "may be told again" in caplog.text
