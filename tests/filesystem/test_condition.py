"""Whether a mount answers is told only by a process that has asked it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mirrorfs import interpreter
from mirrorfs.filesystem import condition
from mirrorfs.filesystem.condition import Condition, NotAsked, condition_of

_AT_ONCE = 0.1
_IN_TIME = 60.0


def _asked_by(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    monkeypatch.setattr(interpreter, "command", lambda *_: ["sh", "-c", program])
    monkeypatch.setattr(condition, "is_mounted", lambda _: True)


def test_who_has_not_begun_to_ask_has_not_been_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    _asked_by(monkeypatch, "exec sleep 600")
    with pytest.raises(NotAsked, match=r"has not begun within 0\.1 s"):
        condition_of("/mnt/datastore", _AT_ONCE)


@pytest.mark.parametrize("program", ["exit 0", "kill -9 $$", "printf .; kill -9 $$", "printf .; exit 1"])
def test_who_was_ended_knows_nothing_of_the_mount(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    _asked_by(monkeypatch, program)
    with pytest.raises(NotAsked, match="ended"):
        condition_of("/mnt/datastore", _IN_TIME)


def test_who_has_asked_and_waits_meets_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = condition._wait_until_it_asks
    monkeypatch.setattr(condition, "_wait_until_it_asks", lambda asking, _: begin(asking, _IN_TIME))
    _asked_by(monkeypatch, "printf .; exec sleep 600")
    assert condition_of("/mnt/datastore", _AT_ONCE) is Condition.SILENT


@pytest.mark.parametrize(("code", "expected"), [(0, Condition.SERVING), (3, Condition.DEAD)])
def test_what_it_was_told_counts(monkeypatch: pytest.MonkeyPatch, code: int, expected: Condition) -> None:
    _asked_by(monkeypatch, f"printf .; exit {code}")
    assert condition_of("/mnt/datastore", _IN_TIME) is expected


def test_it_says_that_it_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real one, on a directory that is taken for a mount."""
    monkeypatch.setattr(condition, "is_mounted", lambda _: True)
    assert condition_of(str(tmp_path), _IN_TIME) is Condition.SERVING
