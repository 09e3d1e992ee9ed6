"""The command `mirrorfs restore`: a datastore out of a bucket, or snapshots into one."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import rich.filesize

from mirrorfs.cli.bucket_reading import Stores, parallel_option, read_bucket
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.mounted import writable_datastore
from mirrorfs.cli.options import store_options
from mirrorfs.cli.rates import Rate
from mirrorfs.cli.restore_progress import Progress, ProgressBar, ProgressLines, count, duration
from mirrorfs.cli.selection_options import selection_options, usage
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.view_options import view_options
from mirrorfs.filesystem.mount_table import is_mounted, real_path
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say, say_json
from mirrorfs.recovery.attaching import attachment_of
from mirrorfs.recovery.estimate import Estimate, estimate_restore
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.ownership import Owner, parse_owner
from mirrorfs.recovery.progress import Problem, RestoreReport
from mirrorfs.recovery.restore import Manner, restore_datastore
from mirrorfs.recovery.selection import Selection
from mirrorfs.recovery.source import View


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for."""

    address: StoreAddress
    target: Path
    selection: Selection
    view: View
    manner: Manner
    owner: Owner | None
    parallel: int
    store: StoreOptions


@click.command("restore", cls=MirrorCommand, short_help="Rebuild a datastore from a bucket, or add to one.")
@click.argument("address", metavar="URL", type=MirrorURL())
@click.argument("target", required=False, type=click.Path(path_type=Path))
@click.option(
    "--into",
    type=DATASTORE,
    metavar="DATASTORE",
    help="Instead of TARGET: add what is not there to this datastore, mounted or not; PBS may be running.",
)
@selection_options("restore")
@click.option("--dry-run", is_flag=True, help="Only tell what would be restored, how much that is, and about how long.")
@click.option("--metadata-only", is_flag=True, help="Everything but chunks; with --into, what needs no other chunks.")
@click.option(
    "--keep-damaged", is_flag=True, help="Restore also snapshots of which something is damaged or missing, without it."
)
@click.option(
    "--owner",
    metavar="USER:GROUP",
    help="Whom the files shall belong to, by names or numbers.  [default: backup:backup where that user exists]",
)
@parallel_option("objects")
@click.option("--bandwidth-limit", type=Rate(), metavar="RATE", help="Read at most so many bytes a second: 500k, 20M.")
@click.option(
    "--json", "as_json", envvar="MIRRORFS_RESTORE_JSON", is_flag=True, help="Print what was done as JSON at the end."
)
@view_options
@store_options
def command(
    address: StoreAddress,
    target: Path | None,
    into: str | None,
    selection: Selection,
    dry_run: bool,
    metadata_only: bool,
    keep_damaged: bool,
    owner: str | None,
    parallel: int,
    bandwidth_limit: float | None,
    as_json: bool,
    view: View,
    store: StoreOptions,
) -> None:
    """Rebuild the datastore mirrored at URL in the directory TARGET, so that a PBS can use it.

    URL is s3://BUCKET/NAME, or a datastore by name or path: then its mirror is meant, as its settings say.
    TARGET must be empty or not exist yet. Without a selection everything is restored; --namespace, --group and
    --snapshot may be repeated and add up, --since, --until and --latest choose among these. The newest snapshot of
    each group comes first. Every chunk and file is checked on the way in, and all is on disk when the command says
    that it is done. An interrupted restore goes on where it stopped when the same command is given again.
    A snapshot of which something is missing or damaged in the bucket is left out and reported; the rest is restored.
    So is one whose manifest says that it is another: give --renamed if you know that its group was renamed by hand.

    With --into nothing is overwritten: snapshots that the datastore has are left as they are, chunks that it has are
    checked and used, and each snapshot appears when all of it is there. PBS begins no garbage collection meanwhile.

    --deleted restores snapshots that were removed and are still kept instead of published ones. --as-of restores what
    was published then. The selection is made among these. To go on with a restore of --as-of and an age, give the time
    that it has told.

    \b
    Examples:
      mirrorfs restore s3://backups/main /srv/datastore
      mirrorfs restore s3://backups/main /srv/datastore --latest 1 --dry-run
      mirrorfs restore s3://backups/main /srv/one --snapshot vm/100/2026-11-22T10:00:00Z
      mirrorfs restore s3://backups/main --into /mnt/datastore/main --group 'vm/10*' --since 7d
      mirrorfs restore s3://backups/main --into /mnt/datastore/main --deleted --group vm/100 --latest 1
      mirrorfs restore s3://backups/main /srv/before --as-of '2026-11-22 10:00' --bandwidth-limit 20M
      mirrorfs restore s3://backups/main /srv/old --group vm/100-old --renamed

    \b
    With --json, one object:
      url, target, into  as given; into is true or false
      complete           true if everything that was asked for is there
      restored, already_there, incomplete, damaged   the paths of snapshots
      problems           each with path (in the datastore) and reason
      chunks_downloaded, chunks_kept, bytes_downloaded
      attach             null with --into, else name, command (PBS 4), entry (PBS 3, for datastore.cfg)
    and with --dry-run instead
      snapshots, already_there, problems
      chunks, chunk_bytes, file_bytes, bytes   to be fetched
      chunks_there       needed, and in the directory already
      bytes_per_second, seconds   as a few chunks were read just now; null if there was none

    Exit codes: 0 everything asked for was restored; 1 something could not be restored, the restore could not be
    brought to its end, or the bucket keeps no versions (--as-of); 2 wrong usage.
    """
    if (target is None) == (into is None):
        raise click.UsageError("give either TARGET, an empty directory, or --into DATASTORE")
    if into is not None and owner is not None:
        raise click.UsageError("with --into everything belongs to whom the datastore belongs: leave --owner out")
    if into is not None and keep_damaged:
        raise click.UsageError("--into adds whole snapshots only: give --keep-damaged with an empty TARGET")
    if metadata_only and keep_damaged:
        raise click.UsageError("--metadata-only and --keep-damaged do not go together")
    order = _Order(
        address,
        writable_datastore(into, "restore into it")
        if target is None and into is not None
        else _empty_target(target or Path()),
        selection,
        view,
        Manner(into is not None, metadata_only, keep_damaged, bandwidth_limit),
        None if owner is None else usage(parse_owner, owner),
        parallel,
        store,
    )
    if view.as_of is not None:
        say(f"Looking at {address}{view.suffix}.", err=True)
    if dry_run:
        _tell_estimate(_estimate(order), order, as_json=as_json)
        return
    _tell_report(_run(order), order, as_json=as_json)


def _empty_target(target: Path) -> Path:
    if is_mounted(real_path(str(target))):
        raise Failure(
            f"{target} is mounted by mirrorfs: add snapshots to it with --into {target}, or restore into another "
            "directory"
        )
    return target


def _run(order: _Order) -> RestoreReport:
    progress: Progress = ProgressBar() if sys.stderr.isatty() else ProgressLines()

    def read(stores: Stores) -> Awaitable[RestoreReport]:
        return restore_datastore(
            stores.reading,
            order.address,
            order.target,
            owner=order.owner,
            selection=order.selection,
            view=order.view,
            manner=order.manner,
            parallelism=order.parallel,
            observer=progress,
            listing_store=stores.listing,
        )

    def going_on() -> str:
        if not progress.has_begun:
            return ""
        how = "" if order.view.as_of is None else f", with --as-of {format_moment(order.view.as_of)},"
        return f" Give the same command again{how} to go on."

    return read_bucket(order.address, order.store, order.parallel, read, shown=progress.shown(), going_on=going_on)


def _estimate(order: _Order) -> Estimate:
    def read(stores: Stores) -> Awaitable[Estimate]:
        return estimate_restore(
            stores.reading,
            order.address,
            order.target,
            selection=order.selection,
            view=order.view,
            manner=order.manner,
            parallelism=order.parallel,
            listing_store=stores.listing,
        )

    say("Looking at the bucket; nothing is restored.", err=True)
    return read_bucket(order.address, order.store, order.parallel, read, shown=nullcontext(), going_on=lambda: "")


def _tell_estimate(estimate: Estimate, order: _Order, *, as_json: bool) -> None:
    if as_json:
        say_json({**_as_json(order), "dry_run": True, **_estimate_as_json(estimate)}, indent=2)
        return
    for snapshot in estimate.snapshots:
        say(snapshot.path)
    if estimate.already_there:
        say(f"{count(len(estimate.already_there), 'snapshot')} already there.")
    for problem in estimate.problems:
        say(f"Cannot be restored: {problem.path}: {problem.reason}", err=True)
    took = "" if estimate.seconds is None else f", about {duration(estimate.seconds)}"
    there = f"; {count(estimate.chunks_there, 'chunk')} there already" if estimate.chunks_there else ""
    say(
        f"Would restore {count(len(estimate.snapshots), 'snapshot')} into {order.target}: "
        f"{count(estimate.chunks, 'chunk')} to fetch{there}, {rich.filesize.decimal(estimate.bytes)}{took}. "
        "Nothing was changed."
    )


def _tell_report(report: RestoreReport, order: _Order, *, as_json: bool) -> None:
    attachment = attachment_of(str(order.target), order.address.prefix)
    if as_json:
        say_json({**_as_json(order), **_report_as_json(report, order)}, indent=2)
    else:
        there = f", {len(report.already_there)} were there" if report.already_there else ""
        say(
            f"Restored {count(len(report.restored), 'snapshot')} into {order.target}{there}: "
            f"{count(report.chunks_downloaded, 'chunk')} downloaded, {report.chunks_kept} were there, "
            f"{rich.filesize.decimal(report.bytes_downloaded)} transferred. All of it is on disk."
        )
        if order.manner.metadata_only and not order.manner.into:
            say("It has no chunks: PBS lists the snapshots, and can restore none of them.")
        if not order.manner.into:
            say(
                f"To attach it to a PBS 4: {attachment.command}",
                f"To a PBS 3, add this to /etc/proxmox-backup/datastore.cfg{_remark(attachment.is_named)}:",
                *attachment.entry.rstrip("\n").split("\n"),
            )
    for problem in report.problems:
        say(f"Not restored: {problem.path}: {problem.reason}", err=True)
    if not report.is_complete:
        raise Failure(_incomplete(report, order))


def _remark(is_named: bool) -> str:
    return "" if is_named else " (choose a NAME of 3 to 32 letters, digits, '.', '_' and '-')"


def _incomplete(report: RestoreReport, order: _Order) -> str:
    left_out = f"{count(len(report.incomplete), 'snapshot')} left out" if report.incomplete else "some files left out"
    if report.damaged:
        left_out += f", {count(len(report.damaged), 'snapshot')} kept although damaged"
    then = "give the same command again" if order.manner.into else "restore the rest into another directory"
    return (
        f"The restore is incomplete ({left_out}); what is there can be used. When what is reported is repaired, {then}."
    )


def _as_json(order: _Order) -> dict[str, Any]:
    return {"url": str(order.address), "target": os.path.abspath(order.target), "into": order.manner.into}


def _report_as_json(report: RestoreReport, order: _Order) -> dict[str, Any]:
    attachment = attachment_of(str(order.target), order.address.prefix)
    return {
        "complete": report.is_complete,
        "restored": [snapshot.path for snapshot in report.restored],
        "already_there": [snapshot.path for snapshot in report.already_there],
        "incomplete": [snapshot.path for snapshot in report.incomplete],
        "damaged": [snapshot.path for snapshot in report.damaged],
        "problems": _problems_as_json(report.problems),
        "chunks_downloaded": report.chunks_downloaded,
        "chunks_kept": report.chunks_kept,
        "bytes_downloaded": report.bytes_downloaded,
        "attach": None
        if order.manner.into
        else {
            "name": attachment.name if attachment.is_named else None,
            "command": attachment.command,
            "entry": attachment.entry,
        },
    }


def _estimate_as_json(estimate: Estimate) -> dict[str, Any]:
    return {
        "snapshots": [snapshot.path for snapshot in estimate.snapshots],
        "already_there": [snapshot.path for snapshot in estimate.already_there],
        "problems": _problems_as_json(estimate.problems),
        "chunks": estimate.chunks,
        "chunk_bytes": estimate.chunk_bytes,
        "chunks_there": estimate.chunks_there,
        "file_bytes": estimate.file_bytes,
        "bytes": estimate.bytes,
        "bytes_per_second": estimate.bytes_per_second,
        "seconds": estimate.seconds,
    }


def _problems_as_json(problems: tuple[Problem, ...]) -> list[dict[str, str]]:
    return [{"path": problem.path, "reason": problem.reason} for problem in problems]
