"""Taking a bucket back that a PBS has had: what has become of it is told, nothing in it is removed.

The claim then says that it was taken back, so that the mirror which claims it next forgets what it knew of the bucket,
reads it anew, and holds what the datastore does not have until an administrator approves (see `ownership.claim`).
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass, field, replace

import trio

from mirrorfs.concurrency import for_each
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.manifest import Manifest, parse_manifest
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.datastore.quoting import cut
from mirrorfs.datastore.tree import Tree
from mirrorfs.handover.errors import HandoverRefused
from mirrorfs.handover.handing_over import is_our_in_use
from mirrorfs.objectstore.errors import ObjectChanged, ObjectMissing, ObjectTooLarge
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.catalog import list_contents, read_manifest_object
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.source import PresentSource
from mirrorfs.replication.ownership.claim import CLAIM_NAME, Claim, etag_of, is_of_this_machine, read_claim, read_in_use
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.steps import reach


@dataclass(slots=True)
class Comparison:
    """The snapshots in the bucket beside those of the datastore.

    `only_in_bucket` came there from a PBS, or went from the datastore; `only_in_datastore` are sent again; of
    `different` both have one of that name, but not the same backup: the mirror would put the datastore's in place of
    the bucket's. `damaged` cannot be told, with the reason.
    """

    same: int = 0
    only_in_bucket: list[SnapshotId] = field(default_factory=list)
    only_in_datastore: list[SnapshotId] = field(default_factory=list)
    different: list[SnapshotId] = field(default_factory=list)
    damaged: dict[SnapshotId, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whose the bucket is: the claim, with its ETag, and the PBS that `.in-use` names, if it names one."""

    claim: Claim
    etag: str | None
    used_by: str | None


async def look(store: ObjectStore, address: StoreAddress, *, overwrite_in_use: bool) -> Standing:
    """Tell whose the bucket is, and that it may be taken back.

    Raises:
        HandoverRefused: no PBS has had it, or one still uses it and `overwrite_in_use` was not said.
        ClaimUnreadable, StoreError: it cannot be told.
    """
    bucket = Bucket(BucketLayout(address.prefix), store)
    etag = await etag_of(bucket, bucket.layout.own_key(CLAIM_NAME))
    claim, in_use = await read_claim(bucket), await read_in_use(bucket)
    if claim is None:
        raise HandoverRefused(
            f"No mirror has claimed {address}, so there is none to take it back. 'mirrorfs mount' makes one of a "
            f"datastore; 'mirrorfs restore {address} DIR' brings back what is there"
        )
    used_by = in_use if in_use is not None and not is_our_in_use(in_use, claim) else None
    is_known = used_by is not None and used_by == claim.taken_from
    if used_by is not None and not is_known and not overwrite_in_use:
        raise HandoverRefused(
            f"{address} is in use by {cut(used_by)}, as the object .in-use says. Take it away there first, without "
            f"deleting: 'proxmox-backup-manager datastore remove {address.prefix}', and never with --destroy-data; or, "
            "if that server is gone for good, give --overwrite-in-use"
        )
    if claim.handed_over is None and in_use is not None and used_by is None:
        raise HandoverRefused(
            f"{address} was not handed over: it is the mirror of {claim.owner}, and no Proxmox Backup Server has used "
            "it. There is nothing to take back"
        )
    return Standing(claim, etag, used_by)


def is_here(claim: Claim, address: StoreAddress) -> bool:
    """Tell whether the datastore that a claim names lies on this machine."""
    return is_of_this_machine(claim, BucketLayout(address.prefix))


async def compare(store: ObjectStore, address: StoreAddress, tree: Tree, *, parallelism: int = 8) -> Comparison:
    """Compare the snapshots in the bucket with those of a datastore, by their manifests.

    Costs a listing, and one request for each snapshot that both have. Raises StoreError; OSError if the datastore
    cannot be read.
    """
    layout = BucketLayout(address.prefix)
    source = PresentSource(store)
    published = set((await list_contents(source, layout)).published)
    present = set(await trio.to_thread.run_sync(_finished, tree))
    comparison = Comparison(only_in_bucket=sorted(published - present), only_in_datastore=sorted(present - published))

    async def look_at(snapshot: SnapshotId) -> None:
        try:
            there, _ = await read_manifest_object(source, layout, snapshot)
            here = await trio.to_thread.run_sync(_manifest, tree, snapshot)
        except (DatastoreError, ObjectMissing, ObjectTooLarge, FileNotFoundError) as error:
            comparison.damaged[snapshot] = str(error)
            return
        if there.checksums == here.checksums:
            comparison.same += 1
        else:
            comparison.different.append(snapshot)

    await for_each(sorted(published & present), look_at, parallelism)
    comparison.different.sort()
    return comparison


def _finished(tree: Tree) -> list[SnapshotId]:
    return [
        snapshot
        for namespace in tree.namespaces()
        for group in tree.groups(namespace)
        for snapshot in tree.snapshots(group)
        if tree.exists(snapshot.manifest_path)
    ]


def _manifest(tree: Tree, snapshot: SnapshotId) -> Manifest:
    return parse_manifest(tree.read(snapshot.manifest_path))


async def take_back(store: ObjectStore, address: StoreAddress, standing: Standing) -> None:
    """Have the claim say that the bucket is a mirror's again, which reads it anew. May be repeated.

    Raises HandoverRefused if somebody else has claimed it since the look, and StoreError.
    """
    now = format_moment(int(time.time()))
    claim = replace(
        standing.claim,
        epoch=uuid.uuid4().hex,
        handed_over=standing.claim.handed_over or now,
        taken_back=now,
        taken_from=standing.used_by or standing.claim.taken_from,
    )
    reach("takeback.before-mark")
    try:
        await store.put_over(BucketLayout(address.prefix).own_key(CLAIM_NAME), claim.encode(), standing.etag)
    except ObjectChanged as race:
        raise HandoverRefused(
            f"The claim of {address} was changed by somebody else meanwhile. See who works there, and give the command "
            "again"
        ) from race
    reach("takeback.marked")
