"""The command `mirrorfs heal`: chunks that a datastore has lost come back from its mirror."""

from __future__ import annotations

import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from pathlib import Path

import click
import rich.filesize

from mirrorfs.cli.bucket_reading import Stores, parallel_option, read_bucket
from mirrorfs.cli.errors import require_root
from mirrorfs.cli.heal_bucket import heal_bucket
from mirrorfs.cli.heal_progress import Progress, shown_progress
from mirrorfs.cli.mirror_of import MirrorOfDatastore
from mirrorfs.cli.mounted import locate, writable_datastore
from mirrorfs.cli.options import StoreURL, store_options
from mirrorfs.cli.restore_progress import count
from mirrorfs.cli.selection_options import selection_options
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say, say_json
from mirrorfs.recovery.heal_report import HealReport, LostChunk
from mirrorfs.recovery.healing import heal_datastore
from mirrorfs.recovery.selection import Selection

_SHOWN = 100
_SHOWN_SNAPSHOTS = 5


@dataclass(frozen=True, slots=True)
class _Order:
    """What was asked for."""

    path: Path
    address: StoreAddress
    selection: Selection
    dry_run: bool
    parallel: int
    store: StoreOptions


@click.command("heal", cls=MirrorOfDatastore, short_help="Bring chunks that a datastore has lost back.")
@click.argument("datastore", type=DATASTORE)
@click.option(
    "--from",
    "address",
    envvar="MIRRORFS_HEAL_FROM",
    type=StoreURL(),
    metavar="s3://BUCKET/NAME",
    help="The mirror to take chunks from, with the options of its store.  [default: where it is mirrored to]",
)
@click.option("--bucket", is_flag=True, help="The other way round: send again what the bucket has lost.")
@selection_options("heal", renamed=False)
@click.option("--dry-run", is_flag=True, help="Change nothing; tell what is damaged, and what the bucket has of it.")
@parallel_option("chunks")
@click.option("--json", "as_json", envvar="MIRRORFS_HEAL_JSON", is_flag=True, help="Print JSON at the end.")
@store_options
def command(
    datastore: str,
    address: StoreAddress | None,
    bucket: bool,
    selection: Selection,
    dry_run: bool,
    parallel: int,
    as_json: bool,
    store: StoreOptions,
) -> None:
    """Bring chunks that DATASTORE has lost back from its mirror. PBS may be running, and DATASTORE be mounted or not.

    Every chunk that its snapshots need is read and checked. Those that are missing, empty, damaged or in quarantine are
    fetched from the bucket, checked, and put in their place as PBS does it. A '.bad' file is removed when its good
    chunk is there. What the bucket does not have good either is listed, with the snapshots that it costs.

    It may be interrupted and given again. Damaged manifests, indexes and blobs are told and left as they are: restore
    such a snapshot into another directory.

    With --bucket, everything that the published snapshots need is read from the bucket, as 'mirrorfs verify --deep'
    does it. What is damaged or gone there is sent again by the mount of DATASTORE; where it is not mounted, by this
    command, which mirrors nothing else and removes nothing. What the datastore does not have good either is listed,
    with the snapshots that it costs.

    Without --from, bucket and store are those of the mount, or else of the settings file in /etc/mirrorfs.

    \b
    Examples:
      mirrorfs heal /mnt/datastore/store1
      mirrorfs heal /mnt/datastore/store1 --dry-run
      mirrorfs heal /mnt/datastore/store1 --group 'vm/10*' --latest 1
      mirrorfs heal /srv/datastore --from s3://backups/store1 --endpoint-url https://s3.example.com
      mirrorfs heal /mnt/datastore/store1 --json | jq '.lost[].path'
      mirrorfs heal /mnt/datastore/store1 --bucket --dry-run
      mirrorfs heal /mnt/datastore/store1 --bucket

    \b
    With --json, one object:
      datastore, url     where it was looked at, and where chunks were taken from
      dry_run            true: healed is what would be, and nothing was changed
      good               true if nothing that was looked at stays damaged
      snapshots, chunks, chunk_bytes   looked at: numbers, and bytes that were read
      healed             each with path (in the datastore) and reason; healed_count counts all
      bytes_fetched      from the bucket
      quarantine_ended   how many .bad files were removed
      lost               each with path, reason, obstacle, snapshots; lost_count counts all
      lost_snapshots     the paths of all snapshots that lack a chunk
      damaged_files      each with path and reason: not healed; damaged_files_left_out: how many more

    
    With --bucket --json: datastore, url, dry_run, good; chunks_read, bytes_read; healed, each with path and reason;
    lost, each with path, reason, snapshots; damages_left_out: how many more are damaged (give the command again).

    Exit codes: 0 all is good, or was healed (with --dry-run: could be); 1 something stays damaged, or it could not be
    brought to its end; 2 wrong usage.
    """
    require_root("put chunks back into a datastore")
    if address is None:
        raise click.UsageError(
            f"it is not known where {datastore} is mirrored to: it is not mounted by mirrorfs, and has no settings "
            "file in /etc/mirrorfs. Give --from s3://BUCKET/NAME"
        )
    if bucket:
        path = locate(datastore)
        if not heal_bucket(path, address, selection, dry_run=dry_run, parallel=parallel, store=store, as_json=as_json):
            raise SystemExit(1)
        return
    order = _Order(writable_datastore(datastore, "heal it"), address, selection, dry_run, parallel, store)
    report = _run(order)
    if as_json:
        say_json(_as_json(order, report), indent=2)
    else:
        _tell(order, report)
    if not report.is_good:
        raise SystemExit(1)


def _run(order: _Order) -> HealReport:
    progress: Progress = shown_progress(sys.stderr.isatty())

    def read(stores: Stores) -> Awaitable[HealReport]:
        return heal_datastore(
            stores.reading,
            order.address,
            order.path,
            selection=order.selection,
            dry_run=order.dry_run,
            parallelism=order.parallel,
            observer=progress,
            listing_store=stores.listing,
        )

    def going_on() -> str:
        return " What was put back stays; give the same command again." if progress.has_begun else ""

    return read_bucket(order.address, order.store, order.parallel, read, shown=progress.shown(), going_on=going_on)


def _tell(order: _Order, report: HealReport) -> None:
    could = "could be healed" if order.dry_run else "healed"
    for healed in report.healed[:_SHOWN]:
        say(f"{could}: {healed.path}: {healed.reason}", err=True)
    _tell_more(report.healed_count - _SHOWN)
    for lost in report.lost[:_SHOWN]:
        say(f"LOST: {lost.path}: {lost.reason}; {lost.obstacle}{_cost(lost)}", err=True)
    _tell_more(report.lost_count - _SHOWN)
    for damaged in report.damaged_files[:_SHOWN]:
        say(f"Damaged, and not healed: {damaged.path}: {damaged.reason}", err=True)
    _tell_more(len(report.damaged_files) + report.damaged_files_left_out - _SHOWN)
    if report.damaged_files:
        say(
            f"Restore such a snapshot into another directory: mirrorfs restore {order.address} DIR --snapshot ...",
            err=True,
        )
    ended = f", {count(report.quarantine_ended, '.bad file')} removed" if report.quarantine_ended else ""
    say(
        f"Looked at {count(report.snapshots, 'snapshot')}, {count(report.chunks, 'chunk')}, "
        f"{rich.filesize.decimal(report.chunk_bytes)}. {report.healed_count} {could}{ended}, {report.lost_count} lost"
        f"{_costs(report)}, {len(report.damaged_files) + report.damaged_files_left_out} other files damaged."
    )


def _tell_more(more: int) -> None:
    if more > 0:
        say(f"and {more} more; --json lists up to 10000 of them", err=True)


def _cost(lost: LostChunk) -> str:
    named = ", ".join(snapshot.path for snapshot in lost.snapshots[:_SHOWN_SNAPSHOTS])
    more = len(lost.snapshots) - _SHOWN_SNAPSHOTS
    return f"; it costs {named}" + (f" and {more} more" if more > 0 else "")


def _costs(report: HealReport) -> str:
    return f" (they cost {count(len(report.lost_snapshots), 'snapshot')})" if report.lost_snapshots else ""


def _as_json(order: _Order, report: HealReport) -> dict[str, object]:
    return {
        "datastore": str(order.path),
        "url": str(order.address),
        "dry_run": order.dry_run,
        "good": report.is_good,
        "snapshots": report.snapshots,
        "chunks": report.chunks,
        "chunk_bytes": report.chunk_bytes,
        "healed": [{"path": healed.path, "reason": healed.reason} for healed in report.healed],
        "healed_count": report.healed_count,
        "bytes_fetched": report.bytes_fetched,
        "quarantine_ended": report.quarantine_ended,
        "lost": [
            {
                "path": lost.path,
                "reason": lost.reason,
                "obstacle": lost.obstacle,
                "snapshots": [snapshot.path for snapshot in lost.snapshots],
            }
            for lost in report.lost
        ],
        "lost_count": report.lost_count,
        "lost_snapshots": [snapshot.path for snapshot in report.lost_snapshots],
        "damaged_files": [{"path": file.path, "reason": file.reason} for file in report.damaged_files],
        "damaged_files_left_out": report.damaged_files_left_out,
    }
