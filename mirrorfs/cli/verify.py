"""The command `mirrorfs verify`: is the bucket good?"""

from __future__ import annotations

import sys
import time
from collections.abc import Awaitable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import click
import rich.filesize

from mirrorfs.cli.bucket_reading import Stores, parallel_option, read_bucket
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.now_and_then import NowAndThen
from mirrorfs.cli.options import store_options
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.restore_progress import count, duration
from mirrorfs.cli.screen import Bar, Column, Row, show_table
from mirrorfs.cli.selection_options import selection_options
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say, say_json
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.source import View
from mirrorfs.recovery.verification import (
    Damage,
    Depth,
    VerificationObserver,
    VerificationReport,
    verify_bucket,
)

MOST_SHOWN = 100
"""How many of the damages are shown one by one; JSON has all of them."""
_SHOWN_SNAPSHOTS = 5
_COLUMNS = (
    Column("Group", copied=True),
    Column("Snapshots", is_number=True),
    Column("Damaged", is_number=True),
    Column("Size", is_number=True),
)


@click.command("verify", cls=MirrorCommand, short_help="Check whether a bucket is good.")
@click.argument("address", metavar="URL", type=MirrorURL())
@click.option("--deep", is_flag=True, help="Read every chunk that is needed, and check every byte.")
@click.option(
    "--sample",
    type=FiniteRange(min=0, max=100, min_open=True),
    metavar="PERCENT",
    help="Read so many of the chunks that are needed, another choice each time.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --deep or --sample: keep in FILE how far it has come, and go on from there.",
)
@selection_options("verify")
@click.option("--deleted", is_flag=True, help="Snapshots that were removed and are still kept, not published ones.")
@parallel_option("objects")
@click.option("--json", "as_json", envvar="MIRRORFS_VERIFY_JSON", is_flag=True, help="Print JSON instead of a table.")
@store_options
def command(
    address: StoreAddress,
    deep: bool,
    sample: float | None,
    resume: Path | None,
    selection: Selection,
    deleted: bool,
    parallel: int,
    as_json: bool,
    store: StoreOptions,
) -> None:
    """Verify that every snapshot published at URL can be restored. Changes nothing.

    URL is s3://BUCKET/NAME, or a datastore by name or path: then its mirror is meant, as its settings say.
    All manifests, indexes and other files of the snapshots are read and checked. Of the chunks it is looked whether
    they are there, and how large they are; with --deep they are read too: their CRC, and the SHA-256 of what is not
    encrypted. It needs no mount, and a key that may list and read.

    Progress goes to standard error. The table tells the snapshots of each group; then follows what is damaged, why,
    and which snapshots that costs. What the datastore still has good is sent again by its mount, which finds it by
    itself in time (verify.percent_per_day), and at once with 'mirrorfs heal --bucket DATASTORE'.

    \b
    Examples:
      mirrorfs verify s3://backups/main
      mirrorfs verify s3://backups/main --deep --resume /var/tmp/verify-main
      mirrorfs verify s3://backups/main --sample 5 --latest 1
      mirrorfs verify s3://backups/main --group 'vm/*' --since 7d
      mirrorfs verify s3://backups/main --json | jq '.damages[].path'

    \b
    With --json, one object:
      url          as given
      good         true if nothing is damaged
      groups       each with path, snapshots, damaged (numbers), size (bytes before compression)
      damages      each with path (in the datastore), reason, snapshots (those that it costs)
      damages_left_out   how many more there are
      damaged_snapshots  the paths of all snapshots that cannot be restored as they are
      chunks, chunk_bytes      chunk objects in the bucket
      chunks_needed            of these, referenced by what was verified
      chunks_read, bytes_read  read whole, by this run and those that it went on from

    Exit codes: 0 all is good; 1 something is damaged, or it could not be verified; 2 wrong usage.
    """
    if deep and sample is not None:
        raise click.UsageError("--deep reads everything, --sample a part: give one of them")
    if resume is not None and not deep and sample is None:
        raise click.UsageError("--resume goes with --deep or --sample: without them there is little to go on with")
    depth = Depth(100.0 if deep else sample or 0.0)
    progress = shown_progress()
    report = verified(address, selection, View(deleted=deleted), depth, resume, parallel, store, progress)
    if as_json:
        say_json(_as_json(address, report), indent=2)
    else:
        _show(report, depth)
    if not report.is_good:
        raise SystemExit(1)


def verified(
    address: StoreAddress,
    selection: Selection,
    view: View,
    depth: Depth,
    resume: Path | None,
    parallel: int,
    options: StoreOptions,
    progress: Progress,
) -> VerificationReport:
    """Verify a bucket with its progress shown. Raises Failure."""

    def read(stores: Stores) -> Awaitable[VerificationReport]:
        return verify_bucket(
            stores.reading,
            address,
            selection=selection,
            view=view,
            depth=depth,
            resume=resume,
            parallelism=parallel,
            observer=progress,
            listing_store=stores.listing,
        )

    def going_on() -> str:
        return " Give the same command again to go on." if resume is not None and progress.has_begun else ""

    return read_bucket(address, options, parallel, read, shown=progress.shown(), going_on=going_on)


def _show(report: VerificationReport, depth: Depth) -> None:
    rows = [
        Row(
            [found.group.path, str(found.snapshots), str(found.damaged), rich.filesize.decimal(found.size)],
            bool(found.damaged),
        )
        for found in report.groups
    ]
    if rows:
        show_table(_COLUMNS, rows)
    for damage in report.damages[:MOST_SHOWN]:
        say(f"Damaged: {damage.path}: {damage.reason}{cost_of(damage)}", err=True)
    more = len(report.damages) - MOST_SHOWN + report.damages_left_out
    if more > 0:
        say(f"and {more} more; --json lists {len(report.damages)} of them", err=True)
    snapshots = sum(found.snapshots for found in report.groups)
    say(f"{count(snapshots, 'snapshot')}, {len(report.damaged_snapshots)} of them damaged. {_chunks(report, depth)}")


def _chunks(report: VerificationReport, depth: Depth) -> str:
    needed = f"They need {report.chunks_needed} of the {report.chunks} chunks in the bucket"
    if not depth.percent:
        return f"{needed}; no chunk was read (--deep reads them)."
    return f"{needed}; {report.chunks_read} were read, {rich.filesize.decimal(report.bytes_read)}."


def cost_of(damage: Damage) -> str:
    """Say which snapshots a damage costs, to be put after the reason."""
    if not damage.snapshots:
        return ""
    named = ", ".join(snapshot.path for snapshot in damage.snapshots[:_SHOWN_SNAPSHOTS])
    more = len(damage.snapshots) - _SHOWN_SNAPSHOTS
    return f"; it costs {named}" + (f" and {more} more" if more > 0 else "")


def _as_json(address: StoreAddress, report: VerificationReport) -> dict[str, object]:
    return {
        "url": str(address),
        "good": report.is_good,
        "groups": [
            {"path": found.group.path, "snapshots": found.snapshots, "damaged": found.damaged, "size": found.size}
            for found in report.groups
        ],
        "damages": [
            {
                "path": damage.path,
                "reason": damage.reason,
                "snapshots": [snapshot.path for snapshot in damage.snapshots],
            }
            for damage in report.damages
        ],
        "damages_left_out": report.damages_left_out,
        "damaged_snapshots": [snapshot.path for snapshot in sorted(report.damaged_snapshots)],
        "chunks": report.chunks,
        "chunk_bytes": report.chunk_bytes,
        "chunks_needed": report.chunks_needed,
        "chunks_read": report.chunks_read,
        "bytes_read": report.bytes_read,
    }


class Progress(VerificationObserver):
    """Knows how far it is; `has_begun` says whether the bucket could be listed."""

    def __init__(self) -> None:
        self.has_begun = False
        self.snapshots = 0
        self.snapshots_finished = 0
        self.chunks = 0
        self.chunks_finished = 0
        self.bytes = 0
        self.total_bytes = 0.0
        self._began, self._chunks_before = time.monotonic(), 0

    def shown(self) -> AbstractContextManager[object]:
        """The context in which the progress is displayed."""
        return nullcontext()

    def planned(self, snapshots: int) -> None:
        self.has_begun = True
        self.snapshots = snapshots

    def snapshot_finished(self, snapshot: SnapshotId, *, is_damaged: bool) -> None:
        self.snapshots_finished += 1

    def chunks_begin(self, done: int, total: int, total_bytes: float) -> None:
        self._began, self._chunks_before = time.monotonic(), done
        self.chunks_finished, self.chunks, self.total_bytes = done, max(total, done), total_bytes

    def chunk_finished(self, size: int) -> None:
        self.chunks_finished += 1
        self.bytes = size

    def state(self) -> str:
        """Say how far the reading of chunks is: bytes, rate, and the time that it still takes."""
        took = max(time.monotonic() - self._began, 0.001)
        rate = (self.chunks_finished - self._chunks_before) / took
        left = "" if not rate else f", {duration((self.chunks - self.chunks_finished) / rate)} left"
        return (
            f"{self.chunks_finished}/{self.chunks} chunks, {rich.filesize.decimal(self.bytes)} of about "
            f"{rich.filesize.decimal(int(self.total_bytes))}, {rate:.0f} chunks/s{left}"
        )


class _ProgressLines(Progress):
    """For logs and pipes: a line for each step, and now and then one for how far the chunks are."""

    def __init__(self) -> None:
        super().__init__()
        self._told = NowAndThen()

    def planned(self, snapshots: int) -> None:
        super().planned(snapshots)
        say(f"Looking at {count(snapshots, 'snapshot')}.", err=True)

    def chunks_begin(self, done: int, total: int, total_bytes: float) -> None:
        super().chunks_begin(done, total, total_bytes)
        begin = f"Going on after {done}" if done else "Reading about"
        say(f"{begin} {'of about ' if done else ''}{self.chunks} chunks.", err=True)

    def chunk_finished(self, size: int) -> None:
        super().chunk_finished(size)
        self._told.say(self.state)


class _ProgressBar(Progress):
    """For terminals."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Bar("Listing")

    def shown(self) -> AbstractContextManager[object]:
        return self._bar

    def listed(self, chunks: int) -> None:
        self._bar.update("Listing", total=None, state=f"{chunks} chunks")

    def snapshot_finished(self, snapshot: SnapshotId, *, is_damaged: bool) -> None:
        super().snapshot_finished(snapshot, is_damaged=is_damaged)
        state = f"{self.snapshots_finished}/{self.snapshots} snapshots"
        self._bar.update("Files", completed=self.snapshots_finished, total=self.snapshots, state=state)

    def chunk_finished(self, size: int) -> None:
        super().chunk_finished(size)
        self._bar.update("Chunks", completed=self.chunks_finished, total=self.chunks, state=self.state())


def shown_progress() -> Progress:
    """Return what shows how far a verification is, as suits standard error."""
    return _ProgressBar() if sys.stderr.isatty() else _ProgressLines()
