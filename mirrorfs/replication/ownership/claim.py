"""Whose mirror a bucket prefix is: two writers below one prefix would destroy each other's snapshots.

Two objects say it. `.mirrorfs/claim.json` says it among mirrors. `.in-use` says it in the way of PBS 4, which refuses
to create a datastore on, or to attach, a prefix whose `.in-use` names another host (seen with 4.2.3), unless it is told
`--overwrite-in-use true`. PBS deletes that object with `datastore remove`; a mirror never does.
"""

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
from mirrorfs.objectstore.errors import ObjectChanged, ObjectMissing, ObjectTooLarge
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.identity import Identity
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

CLAIM_NAME = "claim.json"
UNKNOWN_HOST = "of unknown name"
_BORROWER = "the Proxmox Backup Server that it was handed over to"
_MACHINE_ID = "/etc/machine-id"
_OPTIONAL_FIELDS = ("taken_from", "in_use", "handed_over", "taken_back")
# In characters; a path of Linux has at most 4,096 bytes, and `in_use` holds one and a host name.
_LONGEST_FIELD = 8192
_MOST_RACES = 5


class ClaimRefused(Exception):
    """The prefix belongs to somebody else; the message says to whom and how to override."""


class ClaimUnreadable(Exception):
    """What stands in the place of the claim is none: perhaps the answer of something else than the store."""


@dataclass(frozen=True, slots=True)
class Claim:
    """The record `.mirrorfs/claim.json`.

    `epoch` is new each time an uploader starts, and before it removes anything: a state that does not know it is an old
    copy, or another state wrote to the bucket meanwhile. `taken_from` is the host of a PBS whose `.in-use` was
    overridden, `in_use` the host name in our own, None in the claim of a version that did not put one. `handed_over` is
    since when (RFC 3339) the prefix is to be a PBS's, `taken_back` since when it is not any more: the mirror that
    claims it next begins with a look at what has become of it.
    """

    mirror_id: str
    hostname: str
    machine: str
    datastore: str
    epoch: str
    taken_from: str | None = None
    in_use: str | None = None
    handed_over: str | None = None
    taken_back: str | None = None

    @property
    def is_handed_over(self) -> bool:
        """Whether no mirror may use the prefix, because it was given to a PBS."""
        return self.handed_over is not None and self.taken_back is None

    def is_of(self, other: Claim) -> bool:
        """Tell whether both are about the same datastore of the same machine, whatever became of its state."""
        return (self.hostname, self.machine, self.datastore) == (other.hostname, other.machine, other.datastore)

    @property
    def owner(self) -> str:
        """Whose mirror it is, for messages."""
        return f"{cut(self.datastore)} on {cut(self.hostname)}"

    def encode(self) -> bytes:
        """Write as the object's content."""
        return json.dumps(asdict(self), indent=1).encode()


def parse_claim(data: bytes) -> Claim:
    """Read a whole `claim.json`, also that of another version.

    Raises DatastoreError, whose message ends the sentence "it …".
    """
    value = parse_json(data, maximum_size=LONGEST_RECORD)
    names = [found.name for found in fields(Claim)]
    required = set(names).difference(_OPTIONAL_FIELDS)
    if not isinstance(value, dict) or not required <= value.keys():
        raise DatastoreError("has not the fields of a claim")
    known = {name: value[name] for name in names if name in value}
    for name, text in known.items():
        if name in _OPTIONAL_FIELDS and text is None:
            continue
        if not isinstance(text, str) or len(text) > _LONGEST_FIELD:
            raise DatastoreError(f"has something else than a name for {name}")
    return Claim(**known)


async def claim_prefix(bucket: Bucket, identity: Identity, state: CommittedState, *, take_over: bool) -> Claim:
    """Make sure that the prefix is this mirror's, say so in the bucket, and note it in the state.

    What the state knows of the bucket is forgotten if the claim that stands there is not the state's own last one
    (then somebody else has written meanwhile, or the state is an old copy), and if a PBS has used the prefix, or may
    have, because `.in-use` is not there any more. Returns the claim that holds; its mirror id is that of an earlier
    state directory of the same datastore, if there was one.

    Raises:
        ClaimRefused: the prefix belongs to another mirror, to a copy of this one or to a PBS, and not `take_over`.
        ClaimUnreadable: it cannot be told.
        StoreError: the store cannot tell.
    """
    for _ in range(_MOST_RACES):
        try:
            return await _claim_what_stands(bucket, identity, state, take_over=take_over)
        except ObjectChanged as race:
            log.warning("somebody else was claiming the name in the bucket at the same moment: looking again. %s", race)
    raise ClaimUnreadable(
        f"the claim of s3://{identity.bucket}/{identity.prefix} was changed {_MOST_RACES} times while this mirror was "
        "making its own: several mirrors are being started with --take-over"
    )


async def _claim_what_stands(bucket: Bucket, identity: Identity, state: CommittedState, *, take_over: bool) -> Claim:
    """As `claim_prefix`. Raises ObjectChanged when somebody else has put one of the two objects since the look."""
    reach("claim.begun")
    found = await _look(bucket, identity, state)
    if found.other is not None and not take_over:
        # Whoever it is may be gone at the next start, but not what he did.
        other = found.other
        await state.apply(lambda transaction: transaction.identity.set_used_by(other))
    if not take_over:
        found.refuse_if_foreign(f"s3://{identity.bucket}/{identity.prefix}")
    own, standing = found.own, found.standing
    await _forget_what_others_changed(state, found)
    # Noted before and after, so that a crash in between leaves a claim that is known to be ours.
    epochs = state.view(lambda transaction: transaction.identity.epochs())
    coming = replace(epochs, current=None if standing is None else standing.epoch, coming=own.epoch)
    await state.apply(lambda transaction: transaction.identity.set_epochs(coming))
    reach("claim.before-put")
    assert own.in_use is not None
    # Before the claim, which says that it was put.
    if found.in_use != own.in_use:
        in_use = json.dumps({"hostname": own.in_use}).encode()
        await bucket.store.put_over(bucket.layout.in_use_key, in_use, found.in_use_etag)
        reach("claim.in-use-put")
    await bucket.store.put_over(bucket.layout.own_key(CLAIM_NAME), own.encode(), found.claim_etag)
    reach("claim.after-put")
    claimed, held = replace(identity, mirror_id=own.mirror_id), own.in_use
    await state.apply(lambda transaction: transaction.identity.set_claimed(claimed, own.epoch, held))
    reach("claim.recorded")
    return own


async def is_known(bucket: Bucket, identity: Identity, state: CommittedState, *, take_over: bool) -> bool:
    """Tell whether what the state knows of the bucket would hold after `claim_prefix`; changes nothing.

    Raises ClaimRefused, ClaimUnreadable and StoreError as that does.
    """
    found = await _look(bucket, identity, state)
    if not take_over:
        found.refuse_if_foreign(f"s3://{identity.bucket}/{identity.prefix}")
    return found.is_latest and not found.has_strangers


@dataclass(frozen=True, slots=True)
class _Found:
    """What stands in the bucket, beside what this mirror would put there.

    `other` is the host in `.in-use` that is not this mirror's. `used_by` is who has used the prefix since this mirror
    did, as far as that is to be seen. `is_latest`: the claim that stands is the one that this state wrote last. The
    ETags are from before the two were read: what has them is what was read, or older.
    """

    own: Claim
    standing: Claim | None
    in_use: str | None
    other: str | None
    used_by: str | None
    is_latest: bool
    is_new: bool
    """The state knows nothing of the bucket."""
    claim_etag: str | None
    in_use_etag: str | None

    @property
    def has_strangers(self) -> bool:
        """Whether another mirror, a copy of this one or a PBS may have put there what is not ours to remove.

        A machine that was only renamed has the last claim there is.
        """
        is_foreign = self.standing is not None and not self.standing.is_of(self.own) and not self.is_latest
        return self.used_by is not None or is_foreign

    def refuse_if_foreign(self, where: str) -> None:
        """Raise ClaimRefused unless the prefix is free or this mirror's."""
        own, standing = self.own, self.standing
        if standing is not None and standing.is_handed_over:
            raise ClaimRefused(describe_handed_over(where, standing, where))
        if standing is not None and not standing.is_of(own):
            same = "" if standing.owner != own.owner else " (The names are the same, but /etc/machine-id is another.)"
            if standing.mirror_id == own.mirror_id:
                raise ClaimRefused(
                    f"{where} is the mirror of {standing.owner}, and this is its state directory, used for "
                    f"{own.owner}. If this machine is a copy of that one, give it another name in the bucket and "
                    "another --state-dir. If it is that one, renamed or moved, and the other is never to run again, "
                    f"mount once with --take-over.{same}"
                )
            raise ClaimRefused(
                f"{where} is the mirror of {standing.owner}, and this is {own.owner}. Give another name in the "
                f"bucket, or, if that mirror is never to run again, mount once with --take-over.{same}"
            )
        if self.other is not None:
            raise ClaimRefused(
                f"{where} is in use by {cut(self.other)}, as the object .in-use says, which a Proxmox Backup Server "
                "writes. Give another name in the bucket, or, if that server is never to use it again, mount once with "
                "--take-over."
            )


async def _look(bucket: Bucket, identity: Identity, state: CommittedState) -> _Found:
    in_use_etag = await etag_of(bucket, bucket.layout.in_use_key)
    in_use = await read_in_use(bucket)
    claim_etag = await etag_of(bucket, bucket.layout.own_key(CLAIM_NAME))
    standing = await read_claim(bucket)
    own = _new_claim(bucket.layout, identity)
    put, noted, epochs = state.view(
        lambda transaction: (
            transaction.identity.in_use(),
            transaction.identity.used_by(),
            transaction.identity.epochs(),
        )
    )
    other = in_use if in_use is not None and not _is_ours(in_use, own, standing, put) else None
    lent = None if standing is None or standing.handed_over is None else _BORROWER
    used_by = other or noted or lent or (UNKNOWN_HOST if in_use is None and _has_put(own, standing, put) else None)
    if standing is not None and standing.is_of(own):
        own = replace(own, mirror_id=standing.mirror_id)
    own = replace(own, taken_from=other if other is not None or standing is None else standing.taken_from)
    is_latest = standing is not None and standing.epoch in epochs.own
    return _Found(
        own,
        standing,
        in_use,
        other,
        used_by,
        is_latest,
        is_new=epochs.current is None,
        claim_etag=claim_etag,
        in_use_etag=in_use_etag,
    )


def _new_claim(layout: BucketLayout, identity: Identity) -> Claim:
    host = socket.gethostname()
    in_use = f"{host} (mirrorfs of {identity.datastore})"
    return Claim(identity.mirror_id, host, _machine_for(layout), identity.datastore, uuid.uuid4().hex, in_use=in_use)


def _machine_for(layout: BucketLayout) -> str:
    return hashlib.sha256(f"{layout.content_prefix}:{_machine_id()}".encode()).hexdigest()


def is_of_this_machine(claim: Claim, layout: BucketLayout) -> bool:
    """Tell whether the mirror of a claim runs on this machine, if it runs."""
    return (claim.hostname, claim.machine) == (socket.gethostname(), _machine_for(layout))


def describe_handed_over(where: str, claim: Claim, url: str = "URL") -> str:
    """Say that no mirror may use the prefix, since when, and how it is taken back."""
    return (
        f"{where} was handed over to a Proxmox Backup Server ({cut(claim.handed_over or '')}). If that is never to use "
        f"it again: 'mirrorfs takeback {url}' tells what has become of it, and takes it back; or mount once with "
        "--take-over. Else give another name in the bucket."
    )


def _is_ours(in_use: str, own: Claim, standing: Claim | None, put: str | None) -> bool:
    """Tell whether `.in-use` names this mirror, or a PBS that an administrator has overridden before."""
    if in_use in (own.in_use, put):
        return True
    is_own_claim = standing is not None and (standing.is_of(own) or standing.mirror_id == own.mirror_id)
    return is_own_claim and standing is not None and in_use in (standing.in_use, standing.taken_from)


def _has_put(own: Claim, standing: Claim | None, put: str | None) -> bool:
    """Tell whether this mirror has put `.in-use` before, as its state or its claim says."""
    return put is not None or (standing is not None and standing.in_use is not None and standing.is_of(own))


async def _forget_what_others_changed(state: CommittedState, found: _Found) -> None:
    is_older = not found.is_new and not found.is_latest
    if is_older:
        log.warning(
            "the bucket was changed by another state than this one, or this one is an old copy: reading it anew"
        )
    if found.used_by is not None:
        log.warning(
            "the name in the bucket was used by somebody else (%s) since this mirror wrote there: reading it anew, and "
            "removing nothing that may be his",
            cut(found.used_by),
        )
    if is_older or found.has_strangers:
        await state.apply(lambda transaction: _forget_bucket(transaction, has_strangers=found.has_strangers))
        reach("claim.bucket-forgotten")


def _forget_bucket(transaction: StateTransaction, *, has_strangers: bool) -> None:
    transaction.forget_bucket()
    if has_strangers:
        transaction.identity.set_strangers(True)


async def etag_of(bucket: Bucket, key: str) -> str | None:
    """Ask, before an object is read, for what tells later whether it is still the same. Raises StoreError."""
    head = await bucket.store.head(key)
    return None if head is None else head.etag


async def read_claim(bucket: Bucket) -> Claim | None:
    """Read the claim that stands in the bucket, None if there is none. Raises ClaimUnreadable and StoreError."""
    key = bucket.layout.own_key(CLAIM_NAME)
    try:
        data = await bucket.store.get(key, LONGEST_RECORD)
        return await trio.to_thread.run_sync(parse_claim, data)
    except ObjectMissing:
        return None
    except (DatastoreError, ObjectTooLarge) as error:
        raise ClaimUnreadable(
            f"what the store gives as {key} is not a claim (it {error}): it is not known whose mirror this is. "
            "Either it is not the store that answers (a proxy, a portal), or somebody has overwritten it"
        ) from error


async def read_in_use(bucket: Bucket) -> str | None:
    """Return the host named in `.in-use` (JSON {"hostname": ...}, written by PBS 4 for its own S3 datastores)."""
    try:
        data = await bucket.store.get(bucket.layout.in_use_key, LONGEST_RECORD)
        value = await trio.to_thread.run_sync(partial(parse_json, data, maximum_size=LONGEST_RECORD))
    except ObjectMissing:
        return None
    except (DatastoreError, ObjectTooLarge):
        return UNKNOWN_HOST
    match value:
        case {"hostname": str(hostname)} if len(hostname) <= _LONGEST_FIELD:
            return hostname
    return UNKNOWN_HOST


def _machine_id() -> str:
    # machine-id(5) asks to keep it from others: only its hash goes into the bucket.
    try:
        with open(_MACHINE_ID, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
