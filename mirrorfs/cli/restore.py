"""The command `mirrorfs restore`: a datastore out of a bucket."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click
import rich.filesize

from mirrorfs.cli.bucket_reading import Stores, read_bucket
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.options import StoreURL, store_options
from mirrorfs.cli.screen import Bar
from mirrorfs.cli.selection_options import selection_options, usage
from mirrorfs.cli.view_options import view_options
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.ownership import Owner, default_owner, parse_owner
from mirrorfs.recovery.restore import Problem, RestoreObserver, RestoreReport, restore_datastore
from mirrorfs.recovery.selection import Plan, Selection
from mirrorfs.recovery.source import View

_LINES_OF_CHECKING = 8


@click.command("restore", short_help="Rebuild a datastore from a bucket.")
@click.argument("address", metavar="URL", type=StoreURL())
@click.argument("target", type=click.Path(path_type=Path))
@selection_options("restore")
@click.option(
    "--owner",
    metavar="USER:GROUP",
    help="Whom the files shall belong to, by names or numbers.  [default: backup:backup where that user exists]",
)
@click.option(
    "--parallel", type=click.IntRange(1, 64), default=8, show_default=True, help="How many objects to fetch at a time."
)
@view_options
@store_options
def command(
    address: StoreAddress,
    target: Path,
    selection: Selection,
    owner: str | None,
    parallel: int,
    view: View,
    store: StoreOptions,
) -> None:
    """Rebuild the datastore mirrored at URL (s3://BUCKET/NAME) in the directory TARGET, so that a PBS can use it.

    TARGET must be empty or not exist yet. Without a selection everything is restored; --namespace, --group and
    --snapshot may be repeated and add up. Every chunk and file is checked on the way in, and all is on disk when the
    command says that it is done. An interrupted restore goes on where it stopped when the same command is given again.
    A snapshot of which something is missing or damaged in the bucket is left out and reported; the rest is restored.
    So is one whose manifest says that it is another: give --renamed if you know that its group was renamed by hand.

    --deleted restores snapshots that were removed and are still kept instead of published ones. --as-of restores what
    was published then. The selection is made among these. To go on with a restore of --as-of and an age, give the time
    that it has told.

    \b
    Examples:
      mirrorfs restore s3://backups/main /srv/datastore
      mirrorfs restore s3://backups/main /srv/datastore --latest 1
      mirrorfs restore s3://backups/main /srv/one --snapshot vm/100/2026-11-22T10:00:00Z
      mirrorfs restore s3://backups/main /srv/back --deleted --group vm/100 --latest 1
      mirrorfs restore s3://backups/main /srv/before --as-of '2026-11-22 10:00'
      mirrorfs restore s3://backups/main /srv/old --group vm/100-old --renamed

    Exit codes: 0 everything asked for was restored; 1 something could not be restored, the restore could not be
    brought to its end, or the bucket keeps no versions (--as-of); 2 wrong usage.
    """
    chosen_owner = default_owner() if owner is None else usage(parse_owner, owner)
    if view.as_of is not None:
        say(f"Looking at {address}{view.suffix}.", err=True)
    progress = _ProgressBar() if sys.stderr.isatty() else _ProgressLines()
    report = _run(address, target, selection, view, chosen_owner, parallel, store, progress)
    _conclude(report, target)


def _run(
    address: StoreAddress,
    target: Path,
    selection: Selection,
    view: View,
    owner: Owner,
    parallel: int,
    options: StoreOptions,
    progress: _Progress,
) -> RestoreReport:
    def read(stores: Stores) -> Awaitable[RestoreReport]:
        return restore_datastore(
            stores.reading,
            address,
            target,
            owner=owner,
            selection=selection,
            view=view,
            parallelism=parallel,
            observer=progress,
            listing_store=stores.listing,
        )

    def going_on() -> str:
        if not progress.has_begun:
            return ""
        how = "" if view.as_of is None else f", with --as-of {format_moment(view.as_of)},"
        return f" Give the same command again{how} to go on."

    return read_bucket(address, options, parallel, read, shown=progress.shown(), going_on=going_on)


def _conclude(report: RestoreReport, target: Path) -> None:
    say(
        f"Restored {_count(len(report.restored), 'snapshot')} into {target}: "
        f"{_count(report.chunks_downloaded, 'chunk')} downloaded, {report.chunks_kept} were there, "
        f"{rich.filesize.decimal(report.bytes_downloaded)} transferred. All of it is on disk."
    )
    if report.is_complete:
        return
    for problem in report.problems:
        say(f"Not restored: {problem.path}: {problem.reason}", err=True)
    left_out = f"{_count(len(report.incomplete), 'snapshot')} left out" if report.incomplete else "some files left out"
    raise Failure(
        f"The restore is incomplete ({left_out}); what is there can be used. When the bucket is repaired, restore the "
        "rest into another directory."
    )


class _Progress(RestoreObserver):
    """Counts what has been done; `has_begun` says whether the target has been written to."""

    def __init__(self) -> None:
        self.has_begun = False
        self.snapshots = 0
        self.snapshots_finished = 0
        self.bytes = 0

    def shown(self) -> AbstractContextManager[object]:
        """The context in which the progress is displayed."""
        return nullcontext()

    def planned(self, plan: Plan, *, is_resumed: bool) -> None:
        self.has_begun = True
        self.snapshots = len(plan.snapshots)

    def downloaded(self, size: int) -> None:
        self.bytes += size

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        self.snapshots_finished += 1


class _ProgressLines(_Progress):
    """For logs and pipes: a line for each step that takes long."""

    def planned(self, plan: Plan, *, is_resumed: bool) -> None:
        super().planned(plan, is_resumed=is_resumed)
        begin = "Going on with the restore of" if is_resumed else "Restoring"
        what = f"{_count(len(plan.snapshots), 'snapshot')} of {_count(len(plan.groups), 'group')}"
        say(f"{begin} {what}.", err=True)

    def checked_directories(self, done: int, total: int) -> None:
        if done % (total // _LINES_OF_CHECKING) == 0:
            say(f"Checking what is there: {100 * done // total} %.", err=True)

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        super().snapshot_finished(snapshot, problem)
        outcome = "restored" if problem is None else "LEFT OUT"
        transferred = rich.filesize.decimal(self.bytes)
        say(f"[{self.snapshots_finished}/{self.snapshots}] {snapshot.path} {outcome}, {transferred} so far", err=True)


class _ProgressBar(_Progress):
    """For terminals: a bar that counts snapshots, those under way by their chunks."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Bar("Listing")
        self._chunks: dict[SnapshotId, tuple[int, int]] = {}

    def shown(self) -> AbstractContextManager[object]:
        return self._bar

    def planned(self, plan: Plan, *, is_resumed: bool) -> None:
        super().planned(plan, is_resumed=is_resumed)
        self._bar.update("Preparing", total=None)

    def checked_directories(self, done: int, total: int) -> None:
        self._bar.update("Checking what is there", completed=done, total=total)

    def snapshot_started(self, snapshot: SnapshotId) -> None:
        self._chunks[snapshot] = (0, 0)
        self._update()

    def chunks_needed(self, snapshot: SnapshotId, missing: int, total: int) -> None:
        done, needed = self._chunks[snapshot]
        self._chunks[snapshot] = (done, needed + missing)
        self._update()

    def chunk_finished(self, snapshot: SnapshotId) -> None:
        done, needed = self._chunks[snapshot]
        self._chunks[snapshot] = (done + 1, needed)
        self._update()

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        super().snapshot_finished(snapshot, problem)
        del self._chunks[snapshot]
        self._update()

    def _update(self) -> None:
        under_way = sum(done / needed for done, needed in self._chunks.values() if needed)
        self._bar.update(
            "Restoring",
            completed=self.snapshots_finished + under_way,
            total=self.snapshots,
            state=f"{self.snapshots_finished}/{self.snapshots} snapshots, {rich.filesize.decimal(self.bytes)}",
        )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
