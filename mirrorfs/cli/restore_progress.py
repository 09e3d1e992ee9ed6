"""How a restore shows how far it is: lines for logs and pipes, a bar on a terminal."""

from __future__ import annotations

import time
from collections import deque
from contextlib import AbstractContextManager, nullcontext

import rich.filesize

from mirrorfs.cli.now_and_then import NowAndThen
from mirrorfs.cli.screen import Bar
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.output import say
from mirrorfs.recovery.progress import Problem, RestoreObserver
from mirrorfs.recovery.selection import Plan

_LINES_OF_CHECKING = 8
# Rates are those of the last minute, so that they follow what a store does.
_RATE_SECONDS = 60.0
_SAMPLE_SECONDS = 0.5


class Progress(RestoreObserver):
    """Counts what has been done; `has_begun` says whether the target has been written to."""

    def __init__(self) -> None:
        self.has_begun = False
        self.snapshots = 0
        self.snapshots_finished = 0
        self.references = 0
        self.references_done = 0
        self.bytes = 0
        self._samples: deque[tuple[float, int, int]] = deque()

    def shown(self) -> AbstractContextManager[object]:
        """The context in which the progress is displayed."""
        return nullcontext()

    def planned(self, plan: Plan, *, is_resumed: bool, references: int) -> None:
        """See RestoreObserver."""
        self.has_begun = True
        self.snapshots, self.references = len(plan.snapshots), references
        self._samples.append((time.monotonic(), 0, 0))

    def referenced(self, snapshot: SnapshotId, count: int) -> None:
        """See RestoreObserver."""
        self.references_done += count

    def downloaded(self, size: int) -> None:
        """See RestoreObserver."""
        self.bytes += size

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        """See RestoreObserver."""
        self.snapshots_finished += 1

    def state(self) -> str:
        """Say how far it is: snapshots, bytes, rate, and the time that it still takes."""
        text = f"{self.snapshots_finished}/{self.snapshots} snapshots, {rich.filesize.decimal(self.bytes)}"
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= _SAMPLE_SECONDS:
            self._samples.append((now, self.references_done, self.bytes))
        while len(self._samples) > 2 and now - self._samples[1][0] > _RATE_SECONDS:
            self._samples.popleft()
        began, references, size = self._samples[0]
        took = now - began
        if took < _SAMPLE_SECONDS:
            return text
        text += f", {rich.filesize.decimal(int((self.bytes - size) / took))}/s"
        done = self.references_done - references
        if done > 0:
            # What older snapshots share with newer ones goes faster: it is an upper bound rather than a promise.
            text += f", {duration(max(0, self.references - self.references_done) / (done / took))} left"
        return text


class ProgressLines(Progress):
    """For logs and pipes: a line for each step that takes long, and now and then one in between."""

    def __init__(self) -> None:
        super().__init__()
        self._told = NowAndThen()

    def planned(self, plan: Plan, *, is_resumed: bool, references: int) -> None:
        """See RestoreObserver."""
        super().planned(plan, is_resumed=is_resumed, references=references)
        begin = "Going on with the restore of" if is_resumed else "Restoring"
        say(f"{begin} {count(len(plan.snapshots), 'snapshot')} of {count(len(plan.groups), 'group')}.", err=True)

    def checked_directories(self, done: int, total: int) -> None:
        """See RestoreObserver."""
        if done % (total // _LINES_OF_CHECKING) == 0:
            say(f"Checking what is there: {100 * done // total} %.", err=True)

    def downloaded(self, size: int) -> None:
        """See RestoreObserver."""
        super().downloaded(size)
        self._told.say(self.state)

    def waiting(self, snapshot: SnapshotId, reason: str) -> None:
        """See RestoreObserver."""
        self._told.say(lambda: f"{snapshot.path} is ready, and waits: {reason}.")

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        """See RestoreObserver."""
        super().snapshot_finished(snapshot, problem)
        outcome = "restored" if problem is None else "LEFT OUT, OR DAMAGED"
        transferred = rich.filesize.decimal(self.bytes)
        say(f"[{self.snapshots_finished}/{self.snapshots}] {snapshot.path} {outcome}, {transferred} so far", err=True)


class ProgressBar(Progress):
    """For terminals: a bar that counts references to chunks, which are what takes the time."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Bar("Listing")

    def shown(self) -> AbstractContextManager[object]:
        """See Progress."""
        return self._bar

    def planned(self, plan: Plan, *, is_resumed: bool, references: int) -> None:
        """See RestoreObserver."""
        super().planned(plan, is_resumed=is_resumed, references=references)
        self._bar.update("Preparing", total=None)

    def checked_directories(self, done: int, total: int) -> None:
        """See RestoreObserver."""
        self._bar.update("Checking what is there", completed=done, total=total)

    def downloaded(self, size: int) -> None:
        """See RestoreObserver."""
        super().downloaded(size)
        self._update("Restoring")

    def referenced(self, snapshot: SnapshotId, count: int) -> None:
        """See RestoreObserver."""
        super().referenced(snapshot, count)
        self._update("Restoring")

    def waiting(self, snapshot: SnapshotId, reason: str) -> None:
        """See RestoreObserver."""
        self._update("Waiting for PBS")

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        """See RestoreObserver."""
        super().snapshot_finished(snapshot, problem)
        self._update("Restoring")

    def _update(self, what: str) -> None:
        total = max(1, self.references, self.references_done)
        self._bar.update(what, completed=self.references_done, total=total, state=self.state())


def count(number: int, noun: str) -> str:
    """Say how many there are of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def duration(seconds: float) -> str:
    """Say a time as somebody who waits wants to hear it."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min" if minutes else f"{rest} s"
