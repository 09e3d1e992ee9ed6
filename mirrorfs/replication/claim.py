"""Whose mirror a bucket prefix is: two writers below one prefix would destroy each other's snapshots."""

from __future__ import annotations

import json
import logging
import socket
from dataclasses import asdict, dataclass

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.journal.state import Identity
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.objectstore.store import ObjectStore

log = logging.getLogger(__name__)

CLAIM_NAME = "claim.json"
_MACHINE_ID = "/etc/machine-id"


class ClaimRefused(Exception):
    """The prefix belongs to somebody else; the message says to whom and how to override."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The record `.mirrorfs/claim.json`. `taken_from` is the host of a PBS whose `.in-use` was overridden."""

    mirror_id: str
    hostname: str
    machine_id: str
    datastore: str
    taken_from: str | None = None

    def is_of(self, other: Claim) -> bool:
        """Tell whether both are about the same datastore of the same machine, whatever became of its state."""
        return (self.hostname, self.machine_id, self.datastore) == (other.hostname, other.machine_id, other.datastore)


async def claim_prefix(store: ObjectStore, layout: BucketLayout, identity: Identity, *, take_over: bool) -> Claim:
    """Make sure that the prefix is this mirror's, and say so in the bucket.

    Returns the claim that holds; its mirror id is that of an earlier state directory of the same datastore, if there
    was one.

    Raises:
        ClaimRefused: the prefix belongs to another mirror or to a live PBS, and `take_over` is false.
        StoreError: the store cannot tell.
    """
    own = Claim(identity.mirror_id, socket.gethostname(), _machine_id(), identity.datastore)
    standing = await _standing_claim(store, layout)
    in_use_by = await _in_use_by(store, layout)
    where = f"s3://{identity.bucket}/{identity.prefix}"
    if standing is not None and standing.mirror_id != own.mirror_id and not standing.is_of(own) and not take_over:
        raise ClaimRefused(
            f"{where} is the mirror of {standing.datastore} on {standing.hostname}. Give another name in the "
            "bucket, or, if that mirror is never to run again, mount once with --take-over."
        )
    known_owner = standing.taken_from if standing is not None else None
    if in_use_by is not None and in_use_by != known_owner and not take_over:
        raise ClaimRefused(
            f"{where} is in use by the Proxmox Backup Server {in_use_by} (object .in-use). Give another name "
            "in the bucket, or, if that server is never to use it again, mount once with --take-over."
        )
    if standing is not None and standing.is_of(own) and standing.taken_from == in_use_by:
        return standing
    claim = Claim(own.mirror_id, own.hostname, own.machine_id, own.datastore, in_use_by)
    await store.put(layout.own_key(CLAIM_NAME), json.dumps(asdict(claim), indent=1).encode())
    return claim


async def _standing_claim(store: ObjectStore, layout: BucketLayout) -> Claim | None:
    try:
        return Claim(**json.loads(await store.get(layout.own_key(CLAIM_NAME))))
    except ObjectMissing:
        return None
    except (ValueError, TypeError) as error:
        raise ClaimRefused(
            f"{layout.own_key(CLAIM_NAME)} in the bucket is not a claim that this mirrorfs can read ({error}). Look "
            "at it, and delete it if no other mirror uses this name."
        ) from error


async def _in_use_by(store: ObjectStore, layout: BucketLayout) -> str | None:
    """Return the host named in `.in-use` (JSON {"hostname": ...}, written by PBS 4 for its own S3 datastores)."""
    try:
        data = await store.get(layout.in_use_key)
    except ObjectMissing:
        return None
    try:
        return str(json.loads(data)["hostname"])
    except (ValueError, KeyError, TypeError):
        return "of unknown name"


def _machine_id() -> str:
    try:
        with open(_MACHINE_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
