"""What a restore shows of its rate, and of the time that is left."""

from __future__ import annotations

import pytest

from mirrorfs.cli.restore_progress import Progress, ProgressBar, ProgressLines, duration
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.recovery.selection import Plan

SNAPSHOT = SnapshotId.parse("vm/100/2026-01-01T00:00:00Z")
PLAN = Plan((), (SNAPSHOT.group,), (SNAPSHOT,))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be set."""
    now = [1000.0]
    monkeypatch.setattr("mirrorfs.cli.restore_progress.time.monotonic", lambda: now[0])
    return now


def advance(progress: Progress, clock: list[float], seconds: float, references: int, size: int) -> None:
    clock[0] += seconds
    progress.referenced(SNAPSHOT, references)
    progress.downloaded(size)


def test_rate_and_time_left(clock: list[float]) -> None:
    progress = Progress()
    progress.planned(PLAN, is_resumed=False, references=1000)
    assert progress.state() == "0/1 snapshots, 0 bytes"
    advance(progress, clock, 10, 100, 50_000_000)
    assert progress.state() == "0/1 snapshots, 50.0 MB, 5.0 MB/s, 1 min left"


def test_they_are_those_of_the_last_minute(clock: list[float]) -> None:
    progress = Progress()
    progress.planned(PLAN, is_resumed=False, references=10_000)
    for _ in range(60):
        advance(progress, clock, 10, 10, 10_000_000)
        progress.state()
    for _ in range(12):
        advance(progress, clock, 10, 100, 100_000_000)
        progress.state()
    assert progress.state() == "0/1 snapshots, 1.8 GB, 10.0 MB/s, 13 min left"


def test_more_references_than_were_planned_leave_no_time(clock: list[float]) -> None:
    progress = Progress()
    progress.planned(PLAN, is_resumed=False, references=10)
    advance(progress, clock, 10, 100, 1000)
    assert progress.state().endswith(", 0 s left")


def test_lines_come_now_and_then(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    progress = ProgressLines()
    progress.planned(PLAN, is_resumed=True, references=100)
    for _ in range(40):
        advance(progress, clock, 1, 1, 1_000_000)
    progress.waiting(SNAPSHOT, "PBS works on it")
    clock[0] += 31
    progress.waiting(SNAPSHOT, "PBS works on it")
    progress.snapshot_finished(SNAPSHOT, None)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Going on with the restore of 1 snapshot of 1 group."
    assert lines[1].startswith("0/1 snapshots, 30.0 MB, 1.0 MB/s, ")
    assert lines[2] == f"{SNAPSHOT.path} is ready, and waits: PBS works on it."
    assert lines[3] == f"[1/1] {SNAPSHOT.path} restored, 40.0 MB so far"
    assert len(lines) == 4


def test_a_bar(clock: list[float]) -> None:
    progress = ProgressBar()
    with progress.shown():
        progress.planned(PLAN, is_resumed=False, references=0)
        progress.checked_directories(1, 10)
        advance(progress, clock, 1, 5, 100)
        progress.waiting(SNAPSHOT, "PBS works on it")
        progress.snapshot_finished(SNAPSHOT, None)
    assert progress.has_begun


@pytest.mark.parametrize(("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (61, "1 min"), (3661, "1 h 1 min")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text
