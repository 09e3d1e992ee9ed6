"""The command `mirrorfs snapshots`: what a bucket holds."""

from __future__ import annotations

import click
import rich.filesize
import trio

from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.options import store_options
from mirrorfs.cli.screen import Column, Row, show_table
from mirrorfs.cli.view_options import view_options
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import GroupId
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.retry import Patience
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say, say_json
from mirrorfs.recovery.catalog import PublishedSnapshot, list_contents, read_group_notes, read_published
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.source import View, open_source

# Long enough to outlast a hiccup, short enough for somebody who waits in front of a screen.
_PATIENCE = Patience(total=10.0)
_SNAPSHOT = Column("Snapshot", copied=True)
_SIZE = Column("Size", is_number=True)
_NOTES = Column("Notes")
_COLUMNS = (_SNAPSHOT, _SIZE, Column("Protected"), Column("Verified"), Column("Encrypted"), _NOTES)
_COLUMNS_OF_GROUPS = (Column("Group", copied=True), _NOTES)
_ENCRYPTIONS = {"none": "no", "encrypt": "yes", "sign-only": "signed", "mixed": "mixed"}
_COLUMNS_OF_DELETED = (_SNAPSHOT, _SIZE, Column("Deleted"), Column("Kept until"), _NOTES)


@click.command("snapshots", cls=MirrorCommand, short_help="List what a bucket holds.")
@click.argument("address", metavar="URL", type=MirrorURL())
@click.option(
    "--json", "as_json", envvar="MIRRORFS_SNAPSHOTS_JSON", is_flag=True, help="Print JSON instead of a table."
)
@view_options
@store_options
def command(address: StoreAddress, as_json: bool, view: View, store: StoreOptions) -> None:
    """List the snapshots published at URL, oldest first in each group.

    URL is s3://BUCKET/NAME, or a datastore by name or path: then its mirror is meant, as its settings say.
    The first column can be given to `mirrorfs restore --snapshot` as it is. Sizes are those of the data before
    deduplication and compression, as PBS shows them. Encrypted says "signed" where the client has only signed what it
    sent, and "mixed" where the files differ. The notes on groups come last. What --as-of and --deleted list is restored
    with the same options of `mirrorfs restore`.

    \b
    Examples:
      mirrorfs snapshots store1
      mirrorfs snapshots s3://backups/main --endpoint-url https://s3.example.com
      mirrorfs snapshots s3://backups/main --json | jq '.snapshots[].path'
      mirrorfs snapshots s3://backups/main --deleted
      mirrorfs snapshots s3://backups/main --as-of 3d

    \b
    With --json, one object: {"url": ..., "as_of": ..., "snapshots": [...], "groups": [...]}; as_of is a time in
    seconds since 1970-01-01 UTC, or null; each snapshot with
      path        where it lies in the datastore, e.g. ns/a/vm/100/2026-11-22T10:00:00Z
      namespace   e.g. "a/b", "" for the root
      type, id    of the group, e.g. "vm" and "100"
      time        e.g. 2026-11-22T10:00:00Z
      size        in bytes, null if the manifest is damaged
      protected   true or false
      verified    "ok" or "failed" as PBS last found, else null
      encrypted   whether any file is: true or false, null if the manifest is damaged
      encryption  "none", "encrypt", "sign-only", or "mixed" if the files differ; null if the manifest is damaged
      notes       text or null
      problem     null, or what is damaged: the manifest, or the record of the deletion
    and with --deleted (in seconds since 1970-01-01 UTC, null if the record is damaged)
      deleted     when it was deleted
      until       until when it is kept
    each group that has notes (not with --deleted) with
      path, namespace, type, id, notes

    Exit codes: 0 the list was printed, also when it is empty or tells of damaged manifests; 1 the bucket could not be
    read, or keeps no versions (--as-of); 2 wrong usage.
    """
    client = S3Client(address.bucket, store)

    async def read() -> tuple[list[PublishedSnapshot], dict[GroupId, str]]:
        layout = BucketLayout(address.prefix)
        source = open_source(view, ObjectStore(client, patience=_PATIENCE), layout)
        contents = await list_contents(source, layout)
        published = await read_published(source, layout, contents)
        return published, {} if view.deleted else await read_group_notes(source, layout, contents)

    try:
        catalog, group_notes = trio.run(read)
    except (StoreError, RestoreError) as error:
        raise Failure(str(error)) from None
    columns = _COLUMNS_OF_DELETED if view.deleted else _COLUMNS
    if as_json:
        snapshots = [_as_json(published, view) for published in catalog]
        groups = [_group_as_json(group, notes) for group, notes in group_notes.items()]
        say_json({"url": str(address), "as_of": view.as_of, "snapshots": snapshots, "groups": groups}, indent=2)
    elif not catalog:
        say(f"No {'deleted ' if view.deleted else ''}snapshots at {address}{view.suffix}.")
    else:
        rows = [
            Row([_cell(column, published) for column in columns], published.problem is not None)
            for published in catalog
        ]
        show_table(columns, rows)
        if group_notes:
            say("")
            show_table(
                _COLUMNS_OF_GROUPS, [Row([group.path, _first_line(notes)]) for group, notes in group_notes.items()]
            )


def _as_json(published: PublishedSnapshot, view: View) -> dict[str, object]:
    snapshot, deletion = published.snapshot, published.deletion
    value: dict[str, object] = {
        "path": snapshot.path,
        "namespace": snapshot.group.namespace.display,
        "type": snapshot.group.backup_type,
        "id": snapshot.group.backup_id,
        "time": snapshot.backup_time,
        "size": published.size,
        "protected": published.protected,
        "verified": published.verify_state,
        "encrypted": published.encrypted,
        "encryption": published.encryption,
        "notes": published.notes,
        "problem": published.problem,
    }
    if view.deleted:
        value["deleted"] = None if deletion is None else deletion.deleted
        value["until"] = None if deletion is None else deletion.until
    return value


def _group_as_json(group: GroupId, notes: str) -> dict[str, object]:
    return {
        "path": group.path,
        "namespace": group.namespace.display,
        "type": group.backup_type,
        "id": group.backup_id,
        "notes": notes,
    }


def _cell(column: Column, published: PublishedSnapshot) -> str:
    deletion = published.deletion
    match column.title:
        case "Snapshot":
            return published.snapshot.path
        case "Size":
            return "?" if published.size is None else rich.filesize.decimal(published.size)
        case "Protected":
            return "yes" if published.protected else "no"
        case "Verified":
            return published.verify_state or "-"
        case "Encrypted":
            return "?" if published.encryption is None else _ENCRYPTIONS[published.encryption]
        case "Deleted":
            return "?" if deletion is None else format_moment(int(deletion.deleted))
        case "Kept until":
            return "?" if deletion is None else format_moment(int(deletion.until))
    return _first_line(published.problem or published.notes or "")


def _first_line(text: str) -> str:
    return text.strip().split("\n", 1)[0]
