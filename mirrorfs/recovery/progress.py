"""What a restore tells: while it goes on, and at its end."""

from __future__ import annotations

from dataclasses import dataclass

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.recovery.selection import Plan

_MOST_PROBLEMS_OF_ONE = 20


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that could not be restored: its path in the datastore, and why as a sentence."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True)
class RestoreReport:
    """What a restore did. `chunks_kept` were there before, all of them checked again; `already_there` are snapshots
    that a living datastore has had, `damaged` those that were restored although something of them is not.
    """

    restored: tuple[SnapshotId, ...]
    incomplete: tuple[SnapshotId, ...]
    problems: tuple[Problem, ...]
    chunks_downloaded: int
    chunks_kept: int
    bytes_downloaded: int
    already_there: tuple[SnapshotId, ...] = ()
    damaged: tuple[SnapshotId, ...] = ()

    @property
    def is_complete(self) -> bool:
        """Whether everything that was asked for is there."""
        return not self.problems


class RestoreObserver:
    """Told of a restore's progress, in the trio thread; each method does nothing unless overridden."""

    def planned(self, plan: Plan, *, is_resumed: bool, references: int) -> None:
        """The bucket has been listed and the target is fit; writing begins. By the sizes of their indexes, the
        snapshots reference about so many chunks, each counted as often as it is referenced.
        """

    def checked_directories(self, done: int, total: int) -> None:
        """So many chunk directories of an interrupted restore have been checked."""

    def snapshot_started(self, snapshot: SnapshotId) -> None:
        """The manifest of a snapshot is about to be read."""

    def referenced(self, snapshot: SnapshotId, count: int) -> None:
        """So many more references of the snapshot are to chunks that are there now."""

    def downloaded(self, size: int) -> None:
        """An object of so many bytes has been downloaded."""

    def waiting(self, snapshot: SnapshotId, reason: str) -> None:
        """A snapshot is ready and cannot be put in its place for now."""

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        """A snapshot is complete, or given up."""


class Account:
    """What a restore has done until now, for its report."""

    def __init__(self) -> None:
        self.chunks_downloaded = 0
        self.chunks_kept = 0
        self.bytes_downloaded = 0
        self._restored: list[SnapshotId] = []
        self._incomplete: list[SnapshotId] = []
        self._damaged: list[SnapshotId] = []
        self._problems: list[Problem] = []

    def report(self, path: str, reason: str) -> Problem:
        """Note a problem."""
        problem = Problem(path, reason)
        self._problems.append(problem)
        return problem

    def left_out(self, snapshot: SnapshotId, reason: str) -> Problem:
        """Note a snapshot that is not restored."""
        self._incomplete.append(snapshot)
        return self.report(snapshot.path, reason)

    def restored(self, snapshot: SnapshotId, damages: Damages) -> Problem | None:
        """Note a snapshot that is restored, but for these damages."""
        self._restored.append(snapshot)
        if not damages.count:
            return None
        self._damaged.append(snapshot)
        self._problems.extend(damages.problems)
        more = damages.count - len(damages.problems)
        return self.report(
            snapshot.path,
            f"{damages.count} of its parts are damaged or missing{f', {more} not listed' if more else ''}",
        )

    @property
    def incomplete(self) -> tuple[SnapshotId, ...]:
        """The snapshots that are not restored, in no order."""
        return tuple(self._incomplete)

    def as_report(self, already_there: tuple[SnapshotId, ...]) -> RestoreReport:
        """All of it, sorted."""
        return RestoreReport(
            tuple(sorted(self._restored)),
            tuple(sorted(self._incomplete)),
            tuple(sorted(self._problems, key=lambda problem: problem.path)),
            self.chunks_downloaded,
            self.chunks_kept,
            self.bytes_downloaded,
            already_there,
            tuple(sorted(self._damaged)),
        )


class Damages:
    """What of one snapshot is damaged and left out of it; all of it counted, and some of it kept."""

    def __init__(self) -> None:
        self.count = 0
        self.problems: list[Problem] = []

    def note(self, path: str, reason: str) -> None:
        """Count one, and keep it if there are not too many."""
        self.count += 1
        if len(self.problems) < _MOST_PROBLEMS_OF_ONE:
            self.problems.append(Problem(path, reason))
