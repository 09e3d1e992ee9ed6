"""Whose mirror a bucket prefix is: two writers below one prefix would destroy each other's snapshots."""

from __future__ import annotations

import hashlib
import json
import logging
import socket
import uuid
from dataclasses import asdict, dataclass, fields, replace
from functools import partial

import trio

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.json_input import parse_json
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.limits import LONGEST_RECORD
from mirrorfs.datastore.quoting import cut
from mirrorfs.objectstore.errors import ObjectMissing, ObjectTooLarge
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.identity import Epochs, Identity
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

CLAIM_NAME = "claim.json"
_MACHINE_ID = "/etc/machine-id"
_UNKNOWN_NAME = "of unknown name"
_OPTIONAL_FIELD = "taken_from"
# In characters; a path of Linux has at most 4,096 bytes.
_LONGEST_FIELD = 4096


class ClaimRefused(Exception):
    """The prefix belongs to somebody else; the message says to whom and how to override."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The record `.mirrorfs/claim.json`.

    `epoch` is new each time an uploader starts: a state that does not know it is an old copy, or another state wrote to
    the bucket meanwhile. `taken_from` is the host of a PBS whose `.in-use` was overridden.
    """

    mirror_id: str
    hostname: str
    machine: str
    datastore: str
    epoch: str
    taken_from: str | None = None

    def is_of(self, other: Claim) -> bool:
        """Tell whether both are about the same datastore of the same machine, whatever became of its state."""
        return (self.hostname, self.machine, self.datastore) == (other.hostname, other.machine, other.datastore)


def parse_claim(data: bytes) -> Claim:
    """Read a whole `claim.json`. Raises DatastoreError, whose message ends the sentence "it …"."""
    value = parse_json(data, maximum_size=LONGEST_RECORD)
    names = {found.name for found in fields(Claim)}
    if not isinstance(value, dict) or not names - {_OPTIONAL_FIELD} <= value.keys() <= names:
        raise DatastoreError("has not the fields of a claim")
    for name, text in value.items():
        if name == _OPTIONAL_FIELD and text is None:
            continue
        if not isinstance(text, str) or len(text) > _LONGEST_FIELD:
            raise DatastoreError(f"has something else than a name for {name}")
    return Claim(**value)


async def claim_prefix(
    bucket: Bucket,
    identity: Identity,
    state: CommittedState,
    *,
    take_over: bool,
) -> Identity:
    """Make sure that the prefix is this mirror's, say so in the bucket, and note it in the state.

    What the state knows of the bucket is forgotten if the claim that stands there is not the state's own last one:
    then somebody else has written meanwhile, or the state is an old copy. Returns the identity that holds; its mirror
    id is that of an earlier state directory of the same datastore, if there was one.

    Raises:
        ClaimRefused: the prefix belongs to another mirror or to a live PBS, and `take_over` is false.
        StoreError: the store cannot tell.
    """
    reach("claim.begun")
    own, standing = await _claims(bucket, identity, take_over=take_over)
    epochs = state.view(lambda transaction: transaction.identity.epochs())
    if epochs.current is not None and not _is_own(standing, epochs):
        log.warning(
            "the bucket was changed by another state than this one, or this one is an old copy: reading it anew"
        )
        await state.apply(lambda transaction: transaction.forget_bucket())
        reach("claim.bucket-forgotten")
    # Noted before and after, so that a crash in between leaves a claim that is known to be ours.
    coming = Epochs(None if standing is None else standing.epoch, own.epoch)
    await state.apply(lambda transaction: transaction.identity.set_epochs(coming))
    reach("claim.before-put")
    await bucket.store.put(bucket.layout.own_key(CLAIM_NAME), json.dumps(asdict(own), indent=1).encode())
    reach("claim.after-put")
    claimed = replace(identity, mirror_id=own.mirror_id)
    await state.apply(lambda transaction: transaction.identity.set_claimed(claimed, own.epoch))
    reach("claim.recorded")
    return claimed


async def is_known(bucket: Bucket, identity: Identity, state: CommittedState, *, take_over: bool) -> bool:
    """Tell whether what the state knows of the bucket would hold after `claim_prefix`; changes nothing.

    Raises ClaimRefused and StoreError as that does.
    """
    _, standing = await _claims(bucket, identity, take_over=take_over)
    return _is_own(standing, state.view(lambda transaction: transaction.identity.epochs()))


async def _claims(bucket: Bucket, identity: Identity, *, take_over: bool) -> tuple[Claim, Claim | None]:
    """Return the claim that this mirror would make, and the one that stands."""
    in_use_by = await _in_use_by(bucket)
    own = _new_claim(bucket.layout, identity, in_use_by)
    standing = await _standing_claim(bucket)
    if not take_over:
        _refuse_if_foreign(f"s3://{identity.bucket}/{identity.prefix}", own, standing)
    if standing is not None and standing.is_of(own):
        own = replace(own, mirror_id=standing.mirror_id)
    return own, standing


def _is_own(standing: Claim | None, epochs: Epochs) -> bool:
    return standing is not None and standing.epoch in (epochs.current, epochs.coming)


def _new_claim(layout: BucketLayout, identity: Identity, in_use_by: str | None) -> Claim:
    machine = hashlib.sha256(f"{layout.content_prefix}:{_machine_id()}".encode()).hexdigest()
    return Claim(
        identity.mirror_id, socket.gethostname(), machine, identity.datastore, uuid.uuid4().hex, taken_from=in_use_by
    )


def _refuse_if_foreign(where: str, own: Claim, standing: Claim | None) -> None:
    if standing is not None and standing.mirror_id != own.mirror_id and not standing.is_of(own):
        raise ClaimRefused(
            f"{where} is the mirror of {cut(standing.datastore)} on {cut(standing.hostname)}. Give another name in the "
            "bucket, or, if that mirror is never to run again, mount once with --take-over."
        )
    known_owner = standing.taken_from if standing is not None else None
    if own.taken_from is not None and own.taken_from != known_owner:
        raise ClaimRefused(
            f"{where} is in use by the Proxmox Backup Server {own.taken_from} (object .in-use). Give another name "
            "in the bucket, or, if that server is never to use it again, mount once with --take-over."
        )


async def _standing_claim(bucket: Bucket) -> Claim | None:
    try:
        data = await bucket.store.get(bucket.layout.own_key(CLAIM_NAME), LONGEST_RECORD)
        return await trio.to_thread.run_sync(parse_claim, data)
    except ObjectMissing:
        return None
    except (DatastoreError, ObjectTooLarge) as error:
        raise ClaimRefused(
            f"{bucket.layout.own_key(CLAIM_NAME)} in the bucket is not a claim that this mirrorfs can read ({error}). "
            "Look at it, and delete it if no other mirror uses this name."
        ) from error


async def _in_use_by(bucket: Bucket) -> str | None:
    """Return the host named in `.in-use` (JSON {"hostname": ...}, written by PBS 4 for its own S3 datastores)."""
    try:
        data = await bucket.store.get(bucket.layout.in_use_key, LONGEST_RECORD)
        value = await trio.to_thread.run_sync(partial(parse_json, data, maximum_size=LONGEST_RECORD))
    except ObjectMissing:
        return None
    except (DatastoreError, ObjectTooLarge):
        return _UNKNOWN_NAME
    match value:
        case {"hostname": str(hostname)}:
            return cut(hostname)
    return _UNKNOWN_NAME


def _machine_id() -> str:
    # machine-id(5) asks to keep it from others: only its hash goes into the bucket.
    try:
        with open(_MACHINE_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
