"""`mirrorfs reconcile`: what it asks, what it prints, and with which code it ends."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from mirrorfs.cli import reconcile
from mirrorfs.filesystem.condition import Condition
from mirrorfs.replication.questions import Answer
from mirrorfs.supervision import asking

NOTHING = {"send": 0, "compare": 0, "delete": 0, "none": 0}
SENT = {"key": "n/.chunks/0000/00", "found": "the bucket does not have it", "remedy": "send"}
FOREIGN = {"key": "n/readme", "found": "it is none of this mirror's", "remedy": "leave"}


class Uploader:
    """Answers as it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.told: list[Answer] = []
        self.answer: Answer = {
            "differences": NOTHING,
            "foreign_objects": {"count": 0, "examples": []},
            "problems": [],
        }
        self.error: Exception | None = None
        self.asked: list[tuple[str, dict[str, Any], float | None]] = []

    def ask(
        self,
        _: str,
        command: str,
        timeout: float | None,
        *,
        arguments: Mapping[str, Any],
        told: Callable[[Answer], None],
    ) -> Answer:
        self.asked.append((command, dict(arguments), timeout))
        if self.error is not None:
            raise self.error
        for difference in self.told:
            told(difference)
        return self.answer


@pytest.fixture
def uploader(monkeypatch: pytest.MonkeyPatch) -> Uploader:
    """An uploader of whatever directory is named."""
    made = Uploader()
    monkeypatch.setattr(reconcile, "ask", made.ask)
    monkeypatch.setattr(asking, "condition_of", lambda _: Condition.SERVING)
    return made


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(reconcile.command, arguments)
    return result.exit_code, result.output


def test_nothing_found(uploader: Uploader, tmp_path: Path) -> None:
    assert run(str(tmp_path)) == (0, "found: none\n")
    assert run(str(tmp_path), "--deep", "--dry-run", "--timeout", "5") == (0, "differences: none\n")
    assert uploader.asked == [
        ("reconcile", {"deep": False, "dry_run": False}, None),
        ("reconcile", {"deep": True, "dry_run": True}, 5.0),
    ]


def test_differences_are_printed_and_told_by_the_exit_code(uploader: Uploader, tmp_path: Path) -> None:
    uploader.told = [SENT, FOREIGN]
    uploader.answer["differences"] = {**NOTHING, "send": 1}
    uploader.answer["foreign_objects"] = {"count": 1, "examples": ["n/readme"]}
    code, output = run(str(tmp_path), "--deep", "--dry-run")
    assert code == 3
    assert output.splitlines() == [
        "send     n/.chunks/0000/00: the bucket does not have it",
        "foreign  n/readme: it is none of this mirror's; it is left alone",
        "differences: 1 to be sent to the bucket",
        "foreign objects, left alone: 1",
    ]
    code, output = run(str(tmp_path), "--deep", "--dry-run", "--json")
    assert code == 3
    assert [json.loads(line) for line in output.splitlines()] == [SENT, FOREIGN, uploader.answer]


def test_foreign_objects_alone_are_no_difference(uploader: Uploader, tmp_path: Path) -> None:
    uploader.answer["foreign_objects"] = {"count": 1, "examples": ["n/readme"]}
    assert run(str(tmp_path), "--deep", "--dry-run")[0] == 0
    code, output = run(str(tmp_path), "--deep")
    assert code == 0
    assert "n/readme" in output


def test_what_cannot_be_mirrored_is_named(uploader: Uploader, tmp_path: Path) -> None:
    uploader.answer["problems"] = [{"name": "vm/1/x", "reason": "its copy in the bucket is incomplete"}]
    code, output = run(str(tmp_path), "--deep")
    assert code == 1
    assert "vm/1/x: its copy in the bucket is incomplete" in output


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (TimeoutError(), "not everything is compared"),
        (ConnectionResetError(), "does not run"),
        (FileNotFoundError(), "does not run"),
    ],
)
def test_an_uploader_that_does_not_answer(uploader: Uploader, tmp_path: Path, error: Exception, words: str) -> None:
    uploader.error = error
    code, output = run(str(tmp_path), "--timeout", "1")
    assert code == 1
    assert words in output


def test_a_refusal(uploader: Uploader, tmp_path: Path) -> None:
    uploader.answer = {"error": "5 of the 5 snapshots that the mirror holds are gone"}
    code, output = run(str(tmp_path))
    assert code == 1
    assert "5 of the 5" in output


def test_without_a_mount_it_says_that_it_needs_one(
    uploader: Uploader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(asking, "condition_of", lambda _: Condition.ABSENT)
    code, output = run(str(tmp_path), "--deep")
    assert code == 1
    assert "mount it first" in output
    assert uploader.asked == []
