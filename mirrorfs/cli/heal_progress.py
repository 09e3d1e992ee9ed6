"""How healing shows how far it is: lines for logs and pipes, a bar on a terminal."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext

import rich.filesize

from mirrorfs.cli.now_and_then import NowAndThen
from mirrorfs.cli.restore_progress import count
from mirrorfs.cli.screen import Bar
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.output import say
from mirrorfs.recovery.heal_report import HealedChunk, HealObserver, LostChunk

_SHORTEST_SECONDS = 0.001


class Progress(HealObserver):
    """Counts what has been looked at; `has_begun` says whether anything was."""

    def __init__(self) -> None:
        self.has_begun = False
        self.snapshots = 0
        self.snapshots_finished = 0
        self._chunks = 0
        self._bytes = 0
        self._healed = 0
        self._lost = 0
        self._began = time.monotonic()

    def shown(self) -> AbstractContextManager[object]:
        """The context in which the progress is displayed."""
        return nullcontext()

    def planned(self, snapshots: int) -> None:
        """See HealObserver."""
        self.has_begun = True
        self.snapshots, self._began = snapshots, time.monotonic()

    def chunk_finished(self, size: int) -> None:
        """See HealObserver."""
        self._chunks += 1
        self._bytes += size
        self.changed()

    def healed(self, chunk: HealedChunk) -> None:
        """See HealObserver."""
        self._healed += 1

    def lost(self, chunk: LostChunk) -> None:
        """See HealObserver."""
        self._lost += 1

    def snapshot_finished(self, snapshot: SnapshotId) -> None:
        """See HealObserver."""
        self.snapshots_finished += 1
        self.changed()

    def changed(self) -> None:
        """Show how far it is now."""

    def state(self) -> str:
        """Say how far it is. Snapshots share chunks, so those that come first take the longest."""
        rate = self._bytes / max(time.monotonic() - self._began, _SHORTEST_SECONDS)
        return (
            f"{self.snapshots_finished}/{self.snapshots} snapshots, {count(self._chunks, 'chunk')} looked at, "
            f"{rich.filesize.decimal(self._bytes)}, {rich.filesize.decimal(int(rate))}/s; "
            f"{self._healed} to be put back, {self._lost} lost"
        )


class _ProgressLines(Progress):
    """For logs and pipes: now and then a line."""

    def __init__(self) -> None:
        super().__init__()
        self._told = NowAndThen()

    def planned(self, snapshots: int) -> None:
        """See HealObserver."""
        super().planned(snapshots)
        say(f"Looking at {count(snapshots, 'snapshot')}, the newest of each group first.", err=True)

    def changed(self) -> None:
        """See Progress."""
        self._told.say(self.state)


class _ProgressBar(Progress):
    """For terminals: a bar that counts snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Bar("Listing")

    def shown(self) -> AbstractContextManager[object]:
        """See Progress."""
        return self._bar

    def changed(self) -> None:
        """See Progress."""
        self._bar.update("Healing", completed=self.snapshots_finished, total=max(1, self.snapshots), state=self.state())


def shown_progress(is_terminal: bool) -> Progress:
    """Return what shows how far healing is, as suits standard error."""
    return _ProgressBar() if is_terminal else _ProgressLines()
