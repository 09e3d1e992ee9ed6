"""What the state remembers about leaving the bucket: kept deleted snapshots, held removals, refused deletions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from mirrorfs.state.entries import META, Entries, fields_form, json_form, path_key

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_DELETED = b"deleted"
_HELD = b"held"
_REFUSED = b"refused"
DATABASES = (_DELETED, _HELD, _REFUSED)

_REMOVALS_KEY = b"removals"


class DeletedPhase(Enum):
    """Where a deleted snapshot stands on its way into its grace and out of it."""

    COPYING = "copying"
    """It is being copied, is still published, and owns no references to chunks."""
    KEPT = "kept"
    """The copy is complete and owns the references that the published snapshot had."""
    ENDING = "ending"
    """Its references are given back; objects may be left."""


@dataclass(frozen=True, slots=True)
class DeletedSnapshot:
    """A snapshot that was removed and stays restorable for a while.

    `files` are the listed files with their manifest checksums in hex, `names` all file names of the copy that may be in
    the bucket. `deleted` and `until` are Unix times.
    """

    path: str
    files: Mapping[str, str]
    names: tuple[str, ...]
    phase: DeletedPhase
    deleted: float
    until: float


class HeldFor(Enum):
    """Why a removal waits for an administrator, or that it need not."""

    WAVE = "wave"
    """More are gone than may go in a day."""
    UNSEEN = "unseen"
    """Nobody saw it go, and it does not look like a prune: it goes by itself after a time."""
    STRANGER = "stranger"
    """Somebody else may have put it into the bucket: it never goes by itself."""
    MEANT = "meant"
    """An administrator has said that what was not seen to go is to go; whether it is too many at once is to be seen."""


@dataclass(frozen=True, slots=True)
class HeldRemoval:
    """A snapshot that is gone from the datastore and stays in the bucket until an administrator approves.

    `since` is the Unix time at which it was first missed. One that is `approved` is on its way out.
    """

    path: str
    since: float
    approved: bool
    reason: HeldFor = HeldFor.WAVE


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object that the store refuses to delete: why, and the Unix time before which it is not asked again."""

    key: str
    reason: str
    retry_at: float


def _held(value: dict[str, Any]) -> HeldRemoval:
    # An earlier version held nothing but waves, and gave no reason.
    reason = HeldFor(value.get("reason", HeldFor.WAVE.value))
    return HeldRemoval(str(value["path"]), float(value["since"]), bool(value["approved"]), reason)


def _deleted(value: dict[str, Any]) -> DeletedSnapshot:
    return DeletedSnapshot(
        str(value["path"]),
        dict(value["files"]),
        tuple(value["names"]),
        DeletedPhase(value["phase"]),
        float(value["deleted"]),
        float(value["until"]),
    )


_DELETED_FORM = json_form(_deleted, lambda snapshot: {**asdict(snapshot), "phase": snapshot.phase.value})
_HELD_FORM = json_form(_held, lambda removal: {**asdict(removal), "reason": removal.reason.value})
_REFUSED_FORM = fields_form(Refusal)
_REMOVALS_FORM = json_form(lambda value: [(float(at), int(count)) for at, count in value], list)


class RetentionRecords:
    """The operations on these records, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._deleted = Entries(transaction, databases[_DELETED], _DELETED_FORM)
        self._held = Entries(transaction, databases[_HELD], _HELD_FORM)
        self._refused = Entries(transaction, databases[_REFUSED], _REFUSED_FORM)
        self._removals = Entries(transaction, databases[META], _REMOVALS_FORM)

    def forget_bucket(self) -> None:
        """Forget all that is about objects in the bucket, and what was held back there."""
        for entries in (self._deleted, self._held, self._refused):
            entries.clear()

    # --- deleted snapshots

    def deleted(self, path: str) -> DeletedSnapshot | None:
        """Tell what is known of the deleted snapshot of that name."""
        return self._deleted.get(path_key(path))

    def set_deleted(self, snapshot: DeletedSnapshot) -> None:
        """Note where a deleted snapshot stands."""
        self._deleted.put(path_key(snapshot.path), snapshot)

    def forget_deleted(self, path: str) -> None:
        """Note that nothing is left of the deleted snapshot of that name."""
        self._deleted.delete(path_key(path))

    def all_deleted(self) -> Iterator[DeletedSnapshot]:
        """Yield the deleted snapshots of which something is in the bucket."""
        return self._deleted.all()

    def deleted_after(self, path: str, maximum: int) -> list[DeletedSnapshot]:
        """Return up to `maximum` deleted snapshots that come after that of a name, in the order of their keys here."""
        return [snapshot for _, snapshot in self._deleted.after(path_key(path) if path else b"", maximum)]

    def count_deleted(self) -> int:
        """Count the deleted snapshots of which something is in the bucket."""
        return self._deleted.count()

    # --- held removals, and the removals of the last day

    def held(self, path: str) -> HeldRemoval | None:
        """Tell whether the removal of a snapshot is held, or was and is approved."""
        return self._held.get(path_key(path))

    def set_held(self, removal: HeldRemoval) -> None:
        """Note that a removal is held, or approved."""
        self._held.put(path_key(removal.path), removal)

    def forget_held(self, path: str) -> None:
        """Note that there is nothing to be held any more: the snapshot is removed, or it has come back."""
        self._held.delete(path_key(path))

    def all_held(self) -> Iterator[HeldRemoval]:
        """Yield the removals that are held, or approved and not done yet; not what is meant and not looked at yet."""
        return (removal for removal in self._held.all() if removal.approved or removal.reason is not HeldFor.MEANT)

    def removals_since(self, time: float) -> int:
        """Count the snapshots that were removed after a Unix time, without those that were approved."""
        return sum(count for at, count in self._removals.get(_REMOVALS_KEY) or [] if at > time)

    def note_removals(self, time: float, count: int, forget_before: float) -> None:
        """Note how many snapshots a wave takes, and forget the waves before a Unix time."""
        known = self._removals.get(_REMOVALS_KEY) or []
        kept = [(at, number) for at, number in known if at > forget_before]
        self._removals.put(_REMOVALS_KEY, [*kept, (time, count)])

    # --- refused deletions

    def refused(self, key: str) -> Refusal | None:
        """Tell whether the store has refused to delete the object of a key."""
        return self._refused.get(path_key(key))

    def set_refused(self, key: str, reason: str, retry_at: float) -> None:
        """Note that the store has refused to delete an object, and when to ask again."""
        self._refused.put(path_key(key), Refusal(key, reason, retry_at))

    def clear_refused(self, keys: Iterable[str]) -> None:
        """Note that objects are gone, or wanted again."""
        for key in keys:
            self._refused.delete(path_key(key))

    def refusals(self, maximum: int) -> tuple[int, list[Refusal]]:
        """Count the objects that the store refuses to delete, and return up to `maximum` of them."""
        return self._refused.count(), [refusal for _, refusal in self._refused.first(maximum)]
