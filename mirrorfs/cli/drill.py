"""The command `mirrorfs drill`: a restore for the sake of the proof."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TypeVar

import click
import rich.filesize
import trio

from mirrorfs.cli.bucket_reading import parallel_option
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.now_and_then import NowAndThen
from mirrorfs.cli.options import store_options
from mirrorfs.cli.restore_progress import count
from mirrorfs.cli.screen import Bar
from mirrorfs.cli.selection_options import selection_options
from mirrorfs.database.directory import DEFAULT_BASE
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.retry import Patience
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say, say_json
from mirrorfs.recovery.catalog import list_contents
from mirrorfs.recovery.drill import DrillObserver, DrillReport, drill
from mirrorfs.recovery.drill_report import DrillNotes, as_json, keep_report
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.progress import Problem
from mirrorfs.recovery.selection import Plan, Selection, plan_restore
from mirrorfs.recovery.source import PresentSource

_LISTING_PATIENCE = Patience(total=10.0)
_PATIENCE = Patience(ceiling=30.0, total=600.0)
_DEFAULT_SCRATCH = "/var/tmp"  # noqa: S108 - what is found there is looked at before it is trusted
NOTES_DIRECTORY = f"{DEFAULT_BASE}/drills"
"""Where it is noted what was drilled without --keep-report."""
_LATEST = 1
_SHOWN_PROBLEMS = 20

Result = TypeVar("Result")


@click.command("drill", cls=MirrorCommand, short_help="Restore for a trial, check every byte, and write a report.")
@click.argument("address", metavar="URL", type=MirrorURL())
@selection_options("drill")
@click.option(
    "--scratch",
    type=click.Path(path_type=Path),
    default=Path(_DEFAULT_SCRATCH),
    metavar="DIR",
    help="Where to restore, in a directory that is made for it and removed.",
)
@click.option(
    "--keep-report",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write a report into DIR, as Markdown and as JSON.",
)
@click.option(
    "--full",
    is_flag=True,
    help="One group after the other, each by itself: those never drilled first, then those drilled longest ago.",
)
@click.option("--turns", type=click.IntRange(min=1), metavar="N", help="With --full: end after N groups.")
@parallel_option("objects")
@click.option("--json", "as_json_", envvar="MIRRORFS_DRILL_JSON", is_flag=True, help="Print the report as JSON.")
@store_options
def command(
    address: StoreAddress,
    selection: Selection,
    scratch: Path,
    keep_report: Path | None,
    full: bool,
    turns: int | None,
    parallel: int,
    as_json_: bool,
    store: StoreOptions,
) -> None:
    """Restore from URL into a scratch directory, check every byte, and delete it again.

    URL is s3://BUCKET/NAME, or a datastore by name or path: then its mirror is meant, as its settings say.
    Nothing is mounted, and nothing in the bucket is changed. Of each group the latest snapshot is taken (--latest for
    more), of all groups unless some are chosen. What was restored is read back from disk: each file is compared with
    its manifest, each chunk with its CRC and, if it is not encrypted, with its SHA-256. The report says what was
    restored when, from which store, how many bytes, how fast, what failed, and has a SHA-256 over the SHA-256 of each
    file.

    With --full each group has its turn, so that there need be room for one only. When each was drilled is noted in
    the directory of the reports, or in /var/lib/mirrorfs/drills. The room that is needed is estimated before anything
    is fetched. A drill that is interrupted leaves nothing; what one that was killed has left, the next one removes.

    \b
    Examples:
      mirrorfs drill s3://backups/main --keep-report /var/lib/mirrorfs/reports
      mirrorfs drill s3://backups/main --group vm/100 --latest 3 --scratch /mnt/big
      mirrorfs drill s3://backups/main --full --turns 5 --keep-report /var/lib/mirrorfs/reports
      mirrorfs drill s3://backups/main --group vm/100 --json | jq .listing_sha256

    \b
    The JSON report is one object, with --full one for each group; times are RFC 3339, sizes in bytes:
      format, good, url, store, host, version, began, ended
      selection        what was chosen: namespaces, groups, snapshots, latest, since, until
      failure          null, or what ended it early
      snapshots        each with path, size (before compression), problem (null: restored)
      problems         each with path and reason; problems_left_out: how many more
      bytes_downloaded, chunks_downloaded, restore_seconds, restore_bytes_per_second
      files_read, chunks_read, bytes_read, read_seconds
      listing_sha256, listing_command   the sum, and how to make it again in a restored datastore

    Exit codes: 0 everything came back; 1 something did not, or there could be no drill; 2 wrong usage.
    """
    if turns is not None and not full:
        raise click.UsageError("--turns goes with --full: without it there is one turn")
    names_snapshots = bool(selection.snapshots or selection.snapshot_patterns)
    if full and names_snapshots:
        raise click.UsageError("--full takes the latest of each group in turn: leave --snapshot or --full out")
    # A snapshot that is named is wanted, whatever else there is of its group.
    if selection.latest is None and not names_snapshots:
        selection = dataclasses.replace(selection, latest=_LATEST)
    client = S3Client(address.bucket, store, parallelism=parallel)
    run = _Run(client, address, scratch.absolute(), parallel)
    if not full:
        reports = [_kept(run.drill(selection), keep_report, address, None, as_json_)]
    else:
        reports = _in_turns(run, selection, turns, keep_report, as_json_)
    if not all(report.is_good for report in reports):
        raise SystemExit(1)


def _in_turns(
    run: _Run, selection: Selection, turns: int | None, keep_report: Path | None, as_json_: bool
) -> list[DrillReport]:
    reports: list[DrillReport] = []
    try:
        notes = DrillNotes(Path(NOTES_DIRECTORY) if keep_report is None else keep_report.absolute(), run.address)
        notes.load()
        groups = run.groups(selection)
        for group in notes.in_turn(groups)[:turns]:
            one = dataclasses.replace(selection, namespaces=(), groups=(group,), group_patterns=())
            reports.append(_kept(run.drill(one), keep_report, run.address, group, as_json_))
            notes.note(group, reports[-1])
    except RestoreError as error:
        raise Failure(str(error)) from None
    if not as_json_:
        good = sum(report.is_good for report in reports)
        say(f"{good} of {len(reports)} groups came back, of {len(groups)} that there are.")
    return reports


class _Run:
    """Drills of one bucket, as a command makes them."""

    def __init__(self, client: S3Client, address: StoreAddress, scratch: Path, parallel: int) -> None:
        self._client = client
        self.address = address
        self._scratch = scratch
        self._parallel = parallel

    def groups(self, selection: Selection) -> list[GroupId]:
        """Return the groups with snapshots that are chosen. Raises Failure."""

        async def look() -> list[GroupId]:
            store = ObjectStore(self._client, patience=_LISTING_PATIENCE)
            contents = await list_contents(PresentSource(store), BucketLayout(self.address.prefix))
            return sorted({snapshot.group for snapshot in plan_restore(contents, selection).snapshots})

        groups = _told(look)
        if not groups:
            raise Failure(f"There are no snapshots at {self.address} to be drilled. See: mirrorfs snapshots URL")
        return groups

    def drill(self, selection: Selection) -> DrillReport:
        """Make one drill. Raises Failure."""
        progress = _ProgressBar() if sys.stderr.isatty() else _ProgressLines()

        async def run() -> DrillReport:
            return await drill(
                ObjectStore(self._client, parallelism=self._parallel, patience=_PATIENCE),
                self.address,
                self._scratch,
                selection=selection,
                parallelism=self._parallel,
                observer=progress,
                listing_store=ObjectStore(self._client, patience=_LISTING_PATIENCE),
            )

        with progress.shown():
            return _told(run)


def _told(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run it, and end in good order at SIGINT and SIGTERM. Raises Failure."""
    interruptions: list[BaseException] = []

    async def run() -> Result:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_told)
            result = await work()
            nursery.cancel_scope.cancel()
        return result

    try:
        try:
            return trio.run(run)
        except* (KeyboardInterrupt, _Terminated) as group:
            interruptions.extend(group.exceptions)
        except* (RestoreError, StoreError) as group:
            raise Failure(str(_first(group))) from None
    except BaseExceptionGroup as group:
        # What is raised in an except* comes in a group.
        raise _first(group) from None
    raise Failure("Interrupted. The scratch directory is removed.")


class _Terminated(Exception):
    """SIGTERM has come."""


async def _end_when_told() -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            raise _Terminated


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _kept(
    report: DrillReport, directory: Path | None, address: StoreAddress, group: GroupId | None, as_json_: bool
) -> DrillReport:
    """Show a report, and write it if that is wanted. Raises Failure."""
    if as_json_:
        say_json(as_json(report), indent=2)
    else:
        _show(report)
    if directory is None:
        return report
    try:
        path = keep_report(directory.absolute(), report, address, group)
    except RestoreError as error:
        raise Failure(str(error)) from None
    say(f"The report is {path}.", err=as_json_)
    return report


def _show(report: DrillReport) -> None:
    good = sum(drilled.problem is None for drilled in report.snapshots)
    if report.failure is not None:
        say(f"The drill did not come to its end: {report.failure}", err=True)
    for problem in report.problems[:_SHOWN_PROBLEMS]:
        say(f"Not as it should be: {problem.path}: {problem.reason}", err=True)
    if len(report.problems) > _SHOWN_PROBLEMS:
        say(f"and {len(report.problems) - _SHOWN_PROBLEMS} more, in the report", err=True)
    restored = "" if report.restore is None else _speed(report.restore.bytes_downloaded, report.restore_seconds)
    read = "" if report.read is None else f", read back {_speed(report.read.bytes, report.read_seconds)}"
    of_all = f"{good} of {len(report.snapshots)} snapshots came back from {report.url}"
    say(f"{of_all}: restored {restored or 'nothing'}{read}.")
    if report.read is not None:
        say(f"SHA-256 of the listing: {report.read.listing_sha256}")


def _speed(size: int, seconds: float) -> str:
    rate = rich.filesize.decimal(int(size / max(seconds, 0.001)))
    return f"{rich.filesize.decimal(size)} in {seconds:.1f} s ({rate}/s)"


class _Progress(DrillObserver):
    """Counts what has been done."""

    def __init__(self) -> None:
        self.snapshots = 0
        self.finished = 0
        self.bytes = 0

    def shown(self) -> AbstractContextManager[object]:
        """The context in which the progress is displayed."""
        return nullcontext()

    def planned(self, plan: Plan, *, is_resumed: bool, references: int) -> None:
        self.snapshots = len(plan.snapshots)

    def abandoned_removed(self, path: Path) -> None:
        say(f"Removed {path}, which a drill has left that was killed.", err=True)

    def downloaded(self, size: int) -> None:
        self.bytes += size

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        self.finished += 1


class _ProgressLines(_Progress):
    """For logs and pipes."""

    def __init__(self) -> None:
        super().__init__()
        self._told = NowAndThen()

    def planned(self, plan: Plan, *, is_resumed: bool, references: int) -> None:
        super().planned(plan, is_resumed=is_resumed, references=references)
        say(f"Restoring {count(self.snapshots, 'snapshot')} for a trial.", err=True)

    def snapshot_finished(self, snapshot: SnapshotId, problem: Problem | None) -> None:
        super().snapshot_finished(snapshot, problem)
        self._told.say(lambda: f"{self.finished} of {self.snapshots} snapshots, {rich.filesize.decimal(self.bytes)}")

    def read_back(self, size: int) -> None:
        self._told.say(lambda: f"{rich.filesize.decimal(size)} read back")


class _ProgressBar(_Progress):
    """For terminals."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Bar("Listing")

    def shown(self) -> AbstractContextManager[object]:
        return self._bar

    def downloaded(self, size: int) -> None:
        super().downloaded(size)
        state = f"{self.finished}/{self.snapshots} snapshots, {rich.filesize.decimal(self.bytes)}"
        self._bar.update("Restoring", completed=self.finished, total=self.snapshots, state=state)

    def read_back(self, size: int) -> None:
        self._bar.update("Reading back", total=None, state=rich.filesize.decimal(size))
