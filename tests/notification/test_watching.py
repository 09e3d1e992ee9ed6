"""What is news is told once: not a moment's trouble, not a flicker, and not again after a restart."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorfs.database.directory import StateDirectory
from mirrorfs.notification.event import Kind
from mirrorfs.notification.told import ToldRecord
from mirrorfs.notification.watching import Watching
from mirrorfs.replication.verdict import Verdict, Word

WELL = [Verdict(Word.HEALTHY, "Every finished backup is in the bucket.", "Nothing is to be done.")]
WAITING = [Verdict(Word.WAITING, "the store is away", "wait"), *WELL]


def _so(*words: Word) -> list[Verdict]:
    return [Verdict(word, f"it is {word.value}", "mend it") for word in words]


def _told(watching: Watching, *looks: list[Verdict]) -> list[list[Kind]]:
    return [[news.kind for news in watching.look(look)] for look in looks]


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


def test_an_outage_alone_is_no_news() -> None:
    assert _told(Watching([], 1), WAITING, WELL) == [[], []]


def test_a_restart_tells_nothing_twice(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    directory = StateDirectory(str(tmp_path))
    record = ToldRecord(directory)
    record.load()
    watching = Watching(record.told("mail"), 1)
    assert _told(watching, _so(Word.BROKEN)) == [[Kind.BROKEN]]
    record.set("mail", watching.told)
    assert Path(directory.told_file).stat().st_mode & 0o777 == 0o600
    again = ToldRecord(directory)
    again.load()
    assert again.told("command") == []
    assert _told(Watching(again.told("mail"), 1), _so(Word.BROKEN), WELL) == [[], [Kind.RECOVERED]]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"mail": ["fine"]}', b'{"mail": 7}', b"[" * 100_000])
def test_a_record_that_is_none_is_as_if_nothing_was_told(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    directory = StateDirectory(str(tmp_path))
    Path(directory.told_file).write_bytes(content)
    Path(directory.told_file).chmod(0o600)
    record = ToldRecord(directory)
    record.load()
    assert record.told("mail") == []
    assert "told once more" in caplog.text


def test_a_record_that_cannot_be_written_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    record = ToldRecord(StateDirectory(str(tmp_path / "gone")))
    record.load()
    record.set("mail", [Word.BROKEN])
    assert "may be told again" in caplog.text
