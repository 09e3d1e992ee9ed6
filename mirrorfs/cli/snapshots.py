"""The command `mirrorfs snapshots`: what a bucket holds."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

import click
import rich.box
import rich.console
import rich.filesize
import rich.table
import rich.text
import trio

from mirrorfs.cli.errors import Failure
from mirrorfs.cli.options import StoreURL, store_options
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.retry import Patience
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.recovery.catalog import PublishedSnapshot, read_catalog

# Long enough to outlast a hiccup, short enough for somebody who waits in front of a screen.
_PATIENCE = Patience(total=10.0)
_COLUMNS = ("Snapshot", "Size", "Protected", "Verified", "Encrypted", "Notes")


@click.command("snapshots", short_help="List what a bucket holds.")
@click.argument("address", metavar="URL", type=StoreURL())
@click.option(
    "--json", "as_json", envvar="MIRRORFS_SNAPSHOTS_JSON", is_flag=True, help="Print JSON instead of a table."
)
@store_options
def command(address: StoreAddress, as_json: bool, store: StoreOptions) -> None:
    """List the snapshots published at URL (s3://BUCKET/NAME), oldest first in each group.

    The first column can be given to `mirrorfs restore --snapshot` as it is. Sizes are those of the data before
    deduplication and compression, as PBS shows them.

    \b
    Examples:
      mirrorfs snapshots s3://backups/main --endpoint-url https://s3.example.com
      mirrorfs snapshots s3://backups/main --json | jq '.snapshots[].path'

    \b
    With --json, one object: {"url": ..., "snapshots": [...]}, each snapshot with
      path        where it lies in the datastore, e.g. ns/a/vm/100/2026-11-22T10:00:00Z
      namespace   e.g. "a/b", "" for the root
      type, id    of the group, e.g. "vm" and "100"
      time        e.g. 2026-11-22T10:00:00Z
      size        in bytes, null if the manifest is damaged
      protected   true or false
      verified    "ok" or "failed" as PBS last found, else null
      encrypted   true or false, null if the manifest is damaged
      notes       text or null
      problem     null, or why the manifest is damaged

    Exit codes: 0 the list was printed, also when it is empty or tells of damaged manifests; 1 the bucket could not be
    read; 2 wrong usage.
    """
    client = S3Client(address.bucket, store)

    async def read() -> list[PublishedSnapshot]:
        return await read_catalog(ObjectStore(client, patience=_PATIENCE), BucketLayout(address.prefix))

    try:
        catalog = trio.run(read)
    except StoreError as error:
        raise Failure(str(error)) from None
    if as_json:
        value = {"url": str(address), "snapshots": [_as_json(published) for published in catalog]}
        click.echo(json.dumps(value, indent=2))
    elif not catalog:
        click.echo(f"No snapshots at {address}.")
    elif sys.stdout.isatty():
        _print_table(catalog)
    else:
        _print_lines(catalog)


def _as_json(published: PublishedSnapshot) -> dict[str, object]:
    snapshot = published.snapshot
    return {
        "path": snapshot.path,
        "namespace": snapshot.group.namespace.display,
        "type": snapshot.group.backup_type,
        "id": snapshot.group.backup_id,
        "time": snapshot.backup_time,
        "size": published.size,
        "protected": published.protected,
        "verified": published.verify_state,
        "encrypted": published.encrypted,
        "notes": published.notes,
        "problem": published.problem,
    }


def _as_row(published: PublishedSnapshot) -> tuple[str, ...]:
    return (
        published.snapshot.path,
        "?" if published.size is None else rich.filesize.decimal(published.size),
        "yes" if published.protected else "no",
        _printable(published.verify_state or "-"),
        "?" if published.encrypted is None else "yes" if published.encrypted else "no",
        _printable(published.problem or published.notes or ""),
    )


def _print_table(catalog: Sequence[PublishedSnapshot]) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in _COLUMNS:
        # The first column is there to be copied.
        table.add_column(
            column,
            justify="right" if column == "Size" else "left",
            no_wrap=column == "Snapshot",
            overflow="fold",
        )
    for published in catalog:
        style = "red" if published.problem else ""
        table.add_row(*(rich.text.Text(cell, style=style) for cell in _as_row(published)))
    rich.console.Console().print(table)


def _print_lines(catalog: Sequence[PublishedSnapshot]) -> None:
    rows = [_COLUMNS, *(_as_row(published) for published in catalog)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _printable(text: str) -> str:
    """The first line, without what could steer a terminal: notes come from whoever wrote the backup."""
    line = text.strip().split("\n", 1)[0]
    return "".join(character if character.isprintable() else "?" for character in line)
