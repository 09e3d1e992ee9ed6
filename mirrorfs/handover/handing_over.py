"""Making a bucket ready for a PBS: it is checked, no mirror works there any more, and nothing keeps the PBS from it.

In this order: the bucket is checked; the claim says that it is handed over, at which every mirror stops; then our own
`.in-use` goes, which would keep the PBS out; then, if asked, what mirrorfs keeps there for itself. Whoever was
interrupted gives the command again.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, replace

import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import MANIFEST_NAME, SnapshotId
from mirrorfs.datastore.quoting import cut
from mirrorfs.handover.errors import HandoverRefused
from mirrorfs.objectstore.errors import ObjectChanged
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.catalog import list_contents
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.source import PresentSource
from mirrorfs.recovery.verification import VerificationObserver, VerificationReport, verify_bucket
from mirrorfs.replication.ownership.claim import (
    CLAIM_NAME,
    Claim,
    etag_of,
    is_of_this_machine,
    read_claim,
    read_in_use,
)
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

# A mirror that publishes or removes something puts its claim anew within a minute.
_FRESH_SECONDS = 600.0
# How often a mirror may come in between that is just renewing its claim: it looks each time before it does.
_TRIES = 5
_DELETED_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be done. `stop`: also while a mirror works there. `despite_damage`: also if not all of it is good.

    `remove_own`: take away what mirrorfs keeps for itself. `dry_run`: only look.
    """

    stop: bool = False
    despite_damage: bool = False
    remove_own: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class HandedOver:
    """What was found and done.

    `claim` is the one that stands there now, None where no mirror has ever claimed it. `used_by` is the PBS that has it
    already. `unfinished` are snapshots with files and without a manifest. `kept_deleted` counts the deleted snapshots
    that were kept when it was looked at, `removed` the objects of our own that have been removed.
    """

    report: VerificationReport
    claim: Claim | None
    used_by: str | None
    unfinished: tuple[SnapshotId, ...]
    kept_deleted: int
    removed: int = 0


async def hand_over(
    store: ObjectStore,
    address: StoreAddress,
    wishes: Wishes,
    *,
    stop_mirrors: Callable[[], None],
    observer: VerificationObserver | None = None,
    listing_store: ObjectStore | None = None,
    parallelism: int = 8,
) -> HandedOver:
    """Make the bucket ready for a PBS.

    `stop_mirrors` is called in a thread once the claim says that it is handed over: when it returns, no mirror of this
    machine works there. `listing_store` is one with less patience, to tell of a wrong key or bucket at once.

    Raises:
        HandoverRefused: no PBS could attach it, one has it already, a mirror works there, or not all of it is good.
        RestoreError: there is nothing.
        ClaimUnreadable, StoreError: it cannot be told, or done.
    """
    if address.problem_for_pbs is not None:
        raise HandoverRefused(f"{address.problem_for_pbs} Mirror to such a name: each chunk has to be sent again")
    layout = BucketLayout(address.prefix)
    looking, bucket = Bucket(layout, listing_store or store), Bucket(layout, store)
    claim, used_by = await _look(looking, address, wishes)
    report = await verify_bucket(
        store, address, observer=observer, parallelism=parallelism, listing_store=listing_store
    )
    if not report.is_good and not wishes.despite_damage:
        raise HandoverRefused(_describe_damage(report, address))
    contents = await list_contents(PresentSource(store), layout)
    unfinished = sorted(snapshot for snapshot, files in contents.snapshots.items() if MANIFEST_NAME not in files)
    own = await _own_objects(bucket)
    kept = sum(key.startswith(layout.deleted_prefix) and key.endswith(f"/{MANIFEST_NAME}") for key in own)
    found = HandedOver(report, claim, used_by, tuple(unfinished), kept)
    if wishes.dry_run or used_by is not None:
        return found
    if claim is not None:
        claim = await _mark(bucket, claim, stop_mirrors)
    await _give_up_in_use(bucket, claim)
    removed = await _remove_own(bucket) if wishes.remove_own else 0
    return replace(found, claim=claim, removed=removed)


async def _look(bucket: Bucket, address: StoreAddress, wishes: Wishes) -> tuple[Claim | None, str | None]:
    """Tell whose it is: the claim, and the PBS that it was handed over to and that uses it already."""
    claim, in_use = await read_claim(bucket), await read_in_use(bucket)
    others = in_use if in_use is not None and not is_our_in_use(in_use, claim) else None
    if claim is not None and claim.is_handed_over:
        return claim, others
    if others is not None:
        raise HandoverRefused(
            f"{address} is in use by {cut(others)} already, as the object .in-use says, which a Proxmox Backup Server "
            f"writes. If that server is gone for good, 'mirrorfs takeback {address} --overwrite-in-use' comes first"
        )
    if claim is not None and not wishes.stop and not is_of_this_machine(claim, bucket.layout):
        await _refuse_fresh(bucket, claim, address)
    return claim, None


def is_our_in_use(in_use: str, claim: Claim | None) -> bool:
    """Tell whether `.in-use` was put by a mirror, and not by a PBS."""
    return claim is not None and in_use == claim.in_use


async def _refuse_fresh(bucket: Bucket, claim: Claim, address: StoreAddress) -> None:
    found = await bucket.store.head(bucket.layout.own_key(CLAIM_NAME))
    if found is None or found.modified_at is None:
        return
    age = (time.time() if found.seen_at is None else found.seen_at) - found.modified_at
    if age < _FRESH_SECONDS:
        raise HandoverRefused(
            f"{address} is the mirror of {claim.owner}, and that was at work {max(0, age) / 60:.0f} minutes ago. "
            "Unmount it there ('mirrorfs umount --drain'); or, if it is not running any more, or is to stop by itself, "
            "give --stop"
        )


def _describe_damage(report: VerificationReport, address: StoreAddress) -> str:
    first = report.damages[0]
    return (
        f"Not everything at {address} can be restored: {first.path}: {first.reason}; {len(report.damaged_snapshots)} "
        f"snapshots are damaged ('mirrorfs verify {address}' lists all). Have the mirror send it again ('mirrorfs heal "
        "--bucket'), or give --despite-damage"
    )


async def _mark(bucket: Bucket, claim: Claim, stop_mirrors: Callable[[], None]) -> Claim:
    """Have the claim say that it is handed over, and be sure that nobody has overwritten that."""
    key = bucket.layout.own_key(CLAIM_NAME)
    for _ in range(_TRIES):
        etag = await etag_of(bucket, key)
        standing = await read_claim(bucket)
        if standing is None or not (standing.is_of(claim) or standing.is_handed_over):
            raise HandoverRefused("The claim in the bucket was changed by somebody else meanwhile. See who works there")
        if not standing.is_handed_over:
            await _put_mark(bucket, standing, etag)
        await trio.to_thread.run_sync(stop_mirrors)
        # A store that cannot put on a condition lets a mirror that was just renewing its claim overwrite ours.
        standing = await read_claim(bucket)
        if standing is not None and standing.is_handed_over:
            return standing
    raise HandoverRefused(
        "A mirror puts its claim in place of ours again and again, so it is still at work. Unmount it first"
    )


async def _put_mark(bucket: Bucket, standing: Claim, etag: str | None) -> None:
    marked = replace(standing, epoch=uuid.uuid4().hex, handed_over=format_moment(int(time.time())), taken_back=None)
    reach("handover.before-mark")
    try:
        await bucket.store.put_over(bucket.layout.own_key(CLAIM_NAME), marked.encode(), etag)
    except ObjectChanged as race:
        log.info("the claim was changed while it was to be marked: looking again. %s", race)
        return
    reach("handover.marked")


async def _give_up_in_use(bucket: Bucket, claim: Claim | None) -> None:
    in_use = await read_in_use(bucket)
    if in_use is not None and is_our_in_use(in_use, claim):
        reach("handover.before-giving-up")
        await bucket.store.delete([bucket.layout.in_use_key])
        reach("handover.given-up")


async def _own_objects(bucket: Bucket) -> list[str]:
    """List what mirrorfs keeps for itself, but for the claim; manifests first, as whatever lists something goes."""
    claim_key = bucket.layout.own_key(CLAIM_NAME)
    async with aclosing(bucket.store.list(bucket.layout.own_key(""))) as objects:
        keys = [found.key async for found in objects if found.key != claim_key]
    return sorted(keys, key=lambda key: (not key.endswith(f"/{MANIFEST_NAME}"), key))


async def _remove_own(bucket: Bucket) -> int:
    keys = await _own_objects(bucket)
    for first in range(0, len(keys), _DELETED_AT_ONCE):
        await bucket.store.delete(keys[first : first + _DELETED_AT_ONCE])
        reach("handover.own-removed")
    return len(keys)
