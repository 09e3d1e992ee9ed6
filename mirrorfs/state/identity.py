"""What a state is about: one datastore, one bucket, and the claims in the bucket that it knows to be its own."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from mirrorfs.database.errors import DatabaseError
from mirrorfs.state.entries import BYTES, META, TEXT, Entries, fields_form, json_form

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_IDENTITY_KEY = b"identity"
_EPOCHS_KEY = b"epochs"
_IN_USE_KEY = b"in-use"
_USED_BY_KEY = b"used-by"
_STRANGERS_KEY = b"strangers"
_EPOCHS_REMEMBERED = 8
_SET = b"1"


class ForeignState(DatabaseError):
    """The state directory belongs to another datastore or another bucket."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What a state directory is about: it must not be used for anything else."""

    datastore: str
    bucket: str
    prefix: str
    mirror_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epoch of the claim that this state wrote last, and of the one that it is about to write, if it is.

    `earlier` are a few that it wrote before: a store may carry out a PUT long after whoever asked for it has died.
    """

    current: str | None = None
    coming: str | None = None
    earlier: tuple[str, ...] = ()

    @property
    def own(self) -> frozenset[str | None]:
        """Those that stand in the bucket as long as nobody else has written there."""
        return frozenset({self.current, self.coming} - {None})

    def followed_by(self, epoch: str) -> Epochs:
        """Return what is known once the claim of `epoch` stands in the bucket."""
        passed = [known for known in (self.coming, self.current) if known is not None and known != epoch]
        return Epochs(epoch, earlier=(*passed, *self.earlier)[:_EPOCHS_REMEMBERED])


def _epochs(value: dict[str, Any]) -> Epochs:
    return Epochs(value["current"], value["coming"], tuple(value.get("earlier", ())))


_IDENTITY = fields_form(Identity)
_EPOCHS = json_form(_epochs, asdict)


class IdentityRecords:
    """What the state is about, inside one transaction of it."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._identity = Entries(transaction, databases[META], _IDENTITY)
        self._epochs = Entries(transaction, databases[META], _EPOCHS)
        self._marks = Entries(transaction, databases[META], BYTES)
        self._names = Entries(transaction, databases[META], TEXT)

    def get(self) -> Identity | None:
        """Tell what the state is about, None while it is new."""
        return self._identity.get(_IDENTITY_KEY)

    def set(self, identity: Identity) -> None:
        """Say what the state is about."""
        self._identity.put(_IDENTITY_KEY, identity)

    def epochs(self) -> Epochs:
        """Tell which claims in the bucket this state knows to be its own."""
        return self._epochs.get(_EPOCHS_KEY) or Epochs()

    def set_epochs(self, epochs: Epochs) -> None:
        """Note which claims in the bucket are this state's own."""
        self._epochs.put(_EPOCHS_KEY, epochs)

    def set_claimed(self, identity: Identity, epoch: str, in_use: str) -> None:
        """Note what the state is about, and that the claim of `epoch` and `in_use` as `.in-use` stand in the bucket."""
        self.set(identity)
        self.set_renewed(epoch)
        self._names.put(_IN_USE_KEY, in_use)
        self._names.delete(_USED_BY_KEY)

    def set_renewed(self, epoch: str) -> None:
        """Note that the claim of `epoch` stands in the bucket."""
        self.set_epochs(self.epochs().followed_by(epoch))

    def in_use(self) -> str | None:
        """Tell under which host name this mirror has put `.in-use` into the bucket, None if it has not."""
        return self._names.get(_IN_USE_KEY)

    def used_by(self) -> str | None:
        """Tell who was seen to use the name in the bucket since this state wrote there last, None if nobody was."""
        return self._names.get(_USED_BY_KEY)

    def set_used_by(self, host: str) -> None:
        """Note that somebody else uses the name in the bucket, or did: what is known of the bucket holds no more."""
        self._names.put(_USED_BY_KEY, host)

    def has_strangers(self) -> bool:
        """Tell whether somebody else may have put snapshots into the bucket that this state has found there."""
        return self._marks.get(_STRANGERS_KEY) is not None

    def set_strangers(self, strangers: bool) -> None:
        """Note that somebody else may have put snapshots into the bucket, or that what they are is decided."""
        if strangers:
            self._marks.put(_STRANGERS_KEY, _SET)
        else:
            self._marks.delete(_STRANGERS_KEY)


def check_identity(stored: Identity | None, expected: Identity, directory: str) -> Identity:
    """Return the identity to use for a state directory.

    Raises:
        ForeignState: the directory belongs to another datastore or another bucket.
    """
    if stored is None:
        return expected
    if stored.datastore != expected.datastore:
        raise ForeignState(
            f"the state directory {directory} belongs to the datastore {stored.datastore}, not to "
            f"{expected.datastore}: give another --state-dir"
        )
    if (stored.bucket, stored.prefix) != (expected.bucket, expected.prefix):
        raise ForeignState(
            f"the state directory {directory} mirrors to s3://{stored.bucket}/{stored.prefix}, not to "
            f"s3://{expected.bucket}/{expected.prefix}: give another --state-dir for another bucket"
        )
    return stored
