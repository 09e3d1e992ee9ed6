"""The command `mirrorfs takeback`: a bucket that a PBS has had is a mirror's again."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import nullcontext

import click

from mirrorfs.cli.bucket_reading import Stores, parallel_option, read_bucket
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mirror_of import MirrorCommand, MirrorURL
from mirrorfs.cli.options import store_options
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.datastore.names import CHUNKS_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.handover.errors import HandoverRefused
from mirrorfs.handover.taking_back import Comparison, Standing, compare, is_here, look, take_back
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say


@click.command("takeback", cls=MirrorCommand, short_help="Take a bucket back that a Proxmox Backup Server has had.")
@click.argument("address", metavar="URL", type=MirrorURL())
@click.option(
    "--datastore",
    type=DATASTORE,
    metavar="DIR",
    help="The datastore to compare with, mounted or not. Default: the one that was mirrored there, if it is here.",
)
@click.option(
    "--overwrite-in-use",
    is_flag=True,
    help="Also if a PBS still uses it, as the object .in-use says: that server is gone for good.",
)
@click.option("--dry-run", is_flag=True, help="Compare only; change nothing.")
@parallel_option("objects")
@store_options
def command(
    address: StoreAddress,
    datastore: str | None,
    overwrite_in_use: bool,
    dry_run: bool,
    parallel: int,
    store: StoreOptions,
) -> None:
    """Take the bucket at URL back after a PBS has had it, and tell what has become of it.

    URL is s3://BUCKET/NAME, or a datastore by name or path: then its mirror is meant, as its settings say.
    The snapshots there are compared with those of the datastore, and listed where they differ. Nothing is removed:
    what the datastore does not have (backups that the PBS has made, or what was forgotten here meanwhile) stays in the
    bucket, also after the next mount, until 'mirrorfs retention approve'. Bring it into the datastore before that, if
    you want it. What the PBS has deleted and the datastore has is sent again by the next mount, which reads the whole
    bucket anew.

    \b
    Examples:
      mirrorfs takeback s3://backups/store1 --endpoint-url https://s3.example.com
      mirrorfs takeback store1 --dry-run
      mirrorfs restore store1 --into store1 --snapshot 'vm/700/*'
      mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1

    Exit codes: 0 it is taken back, or (--dry-run) could be; 1 it is not; 2 wrong usage.
    """

    async def run(stores: Stores) -> None:
        standing = await look(stores.listing, address, overwrite_in_use=overwrite_in_use)
        path = _datastore(datastore, standing, address)
        root = _open_datastore(path)
        try:
            comparison = await compare(stores.reading, address, Tree(root), parallelism=parallel)
        finally:
            os.close(root)
        _tell(comparison, address, path)
        if not dry_run:
            await take_back(stores.reading, address, standing)
        _conclude(address, path, standing, dry_run=dry_run)

    try:
        read_bucket(
            address, store, parallel, run, shown=nullcontext(), going_on=lambda: " Give the same command again."
        )
    except OSError as error:
        raise Failure(f"cannot read the datastore: {error}") from error


def _datastore(given: str | None, standing: Standing, address: StoreAddress) -> str:
    if given is not None:
        return os.path.realpath(given)
    claim = standing.claim
    if is_here(claim, address) and os.path.isabs(claim.datastore):
        return claim.datastore
    raise HandoverRefused(
        f"{address} was the mirror of {claim.owner}, which is not here: give the datastore to compare with "
        "(--datastore DIR)"
    )


def _open_datastore(path: str) -> int:
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HandoverRefused(
            f"cannot open the datastore {path}: {error.strerror}. Is its disk mounted? Another one: --datastore DIR"
        ) from error
    if not Tree(root).is_directory(CHUNKS_NAME):
        os.close(root)
        raise HandoverRefused(f"{path} holds no datastore (it has no directory {CHUNKS_NAME}): is its disk mounted?")
    return root


def _tell(comparison: Comparison, address: StoreAddress, datastore: str) -> None:
    say(f"{comparison.same} snapshots are the same at {address} and in {datastore}.")
    _list(
        comparison.only_in_bucket,
        "are in the bucket alone: made by the PBS, or gone from the datastore. They stay there. Into the datastore "
        f"with: mirrorfs restore {address} --into {shlex.quote(datastore)} --snapshot ...",
    )
    _list(comparison.only_in_datastore, "are in the datastore alone: the next mount sends them.")
    _list(
        comparison.different,
        "are other backups under the same name: the next mount puts the datastore's in the place of the bucket's. "
        f"Restore these from the bucket before, if you need them: mirrorfs restore {address} DIR --snapshot ...",
    )
    _list(sorted(comparison.damaged), "cannot be compared:", comparison.damaged)


def _list(snapshots: Sequence[SnapshotId], what: str, reasons: dict[SnapshotId, str] | None = None) -> None:
    if not snapshots:
        return
    say(f"{len(snapshots)} snapshots {what}")
    for snapshot in snapshots:
        say(f"  {snapshot.path}" + ("" if reasons is None else f": {reasons[snapshot]}"))


def _conclude(address: StoreAddress, datastore: str, standing: Standing, *, dry_run: bool) -> None:
    if dry_run:
        say("Nothing was changed.")
        return
    is_ours = is_here(standing.claim, address) and datastore == standing.claim.datastore
    option = "" if is_ours else " --take-over"
    # The name may be the one that the claim has, and others may have written that.
    named = shlex.quote(datastore)
    say(
        f"{address} is taken back. Mirror again with: mirrorfs mount {named} --to {address}{option}",
        f"What is in the bucket alone is held then: 'mirrorfs status {named}' names it.",
    )
