"""What the state remembers about leaving the bucket: kept deleted snapshots, held removals, locks, refusals."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from mirrorfs.database.entries import decoded, path_key
from mirrorfs.database.errors import DatabaseCorrupt

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

DELETED = b"deleted"
HELD = b"held"
REFUSED = b"refused"
LOCKED_SNAPSHOTS = b"locked-snapshots"
LOCKED_CHUNKS = b"locked-chunks"
DATABASES = (DELETED, HELD, REFUSED, LOCKED_SNAPSHOTS, LOCKED_CHUNKS)

_REMOVALS_KEY = b"removals"
_UNTIL = struct.Struct(">d")


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


@dataclass(frozen=True, slots=True)
class HeldRemoval:
    """A snapshot that is gone from the datastore and stays in the bucket until an administrator approves."""

    path: str
    since: float
    approved: bool


@dataclass(frozen=True, slots=True)
class Refusal:
    """An object that the store refuses to delete: why, and the Unix time before which it is not asked again."""

    key: str
    reason: str
    retry_at: float


class RetentionRecords:
    """The operations on these records, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database], meta: Database) -> None:
        self._transaction = transaction
        self._databases = databases
        self._meta = meta

    def forget_bucket(self) -> None:
        """Forget all that is about objects in the bucket, and what was held back there."""
        for name in DATABASES:
            self._transaction.drop(self._databases[name], delete=False)

    # --- deleted snapshots

    def deleted(self, path: str) -> DeletedSnapshot | None:
        """Tell what is known of the deleted snapshot of that name."""
        stored = self._transaction.get(path_key(path), db=self._databases[DELETED])
        return None if stored is None else decoded(stored, _deleted)

    def set_deleted(self, snapshot: DeletedSnapshot) -> None:
        """Note where a deleted snapshot stands."""
        value = {**asdict(snapshot), "phase": snapshot.phase.value}
        self._transaction.put(path_key(snapshot.path), json.dumps(value).encode(), db=self._databases[DELETED])

    def forget_deleted(self, path: str) -> None:
        """Note that nothing is left of the deleted snapshot of that name."""
        self._transaction.delete(path_key(path), db=self._databases[DELETED])

    def all_deleted(self) -> Iterator[DeletedSnapshot]:
        """Yield the deleted snapshots of which something is in the bucket."""
        for _, stored in self._transaction.cursor(db=self._databases[DELETED]):
            yield decoded(stored, _deleted)

    # --- held removals, and the removals of the last day

    def held(self, path: str) -> HeldRemoval | None:
        """Tell whether the removal of a snapshot is held, or was and is approved."""
        stored = self._transaction.get(path_key(path), db=self._databases[HELD])
        return None if stored is None else decoded(stored, lambda value: HeldRemoval(**value))

    def set_held(self, removal: HeldRemoval) -> None:
        """Note that a removal is held, or approved."""
        value = json.dumps(asdict(removal)).encode()
        self._transaction.put(path_key(removal.path), value, db=self._databases[HELD])

    def forget_held(self, path: str) -> None:
        """Note that there is nothing to be held any more: the snapshot is removed, or it has come back."""
        self._transaction.delete(path_key(path), db=self._databases[HELD])

    def all_held(self) -> Iterator[HeldRemoval]:
        """Yield the removals that are held, or approved and not done yet."""
        for _, stored in self._transaction.cursor(db=self._databases[HELD]):
            yield decoded(stored, lambda value: HeldRemoval(**value))

    def removals_since(self, time: float) -> int:
        """Count the snapshots that were removed after a Unix time, without those that were approved."""
        return sum(count for at, count in self._removals() if at > time)

    def note_removals(self, time: float, count: int, forget_before: float) -> None:
        """Note how many snapshots a wave takes, and forget the waves before a Unix time."""
        kept = [(at, number) for at, number in self._removals() if at > forget_before]
        self._transaction.put(_REMOVALS_KEY, json.dumps([*kept, (time, count)]).encode(), db=self._meta)

    def _removals(self) -> list[tuple[float, int]]:
        stored = self._transaction.get(_REMOVALS_KEY, db=self._meta)
        if stored is None:
            return []
        return decoded(stored, lambda value: [(float(at), int(count)) for at, count in value])

    # --- refused deletions

    def refused(self, key: str) -> Refusal | None:
        """Tell whether the store has refused to delete the object of a key."""
        stored = self._transaction.get(path_key(key), db=self._databases[REFUSED])
        return None if stored is None else decoded(stored, lambda value: Refusal(**value))

    def set_refused(self, key: str, reason: str, retry_at: float) -> None:
        """Note that the store has refused to delete an object, and when to ask again."""
        value = json.dumps(asdict(Refusal(key, reason, retry_at))).encode()
        self._transaction.put(path_key(key), value, db=self._databases[REFUSED])

    def clear_refused(self, keys: Iterable[str]) -> None:
        """Note that objects are gone, or wanted again."""
        for key in keys:
            self._transaction.delete(path_key(key), db=self._databases[REFUSED])

    def refusals(self, maximum: int) -> tuple[int, list[Refusal]]:
        """Count the objects that the store refuses to delete, and return up to `maximum` of them."""
        database = self._databases[REFUSED]
        stored = itertools.islice(self._transaction.cursor(db=database), maximum)
        examples = [decoded(value, lambda decoded: Refusal(**decoded)) for _, value in stored]
        return int(self._transaction.stat(database)["entries"]), examples

    # --- locks

    def snapshot_locked_until(self, path: str) -> float:
        """Return until when all objects of a snapshot are locked at least, as Unix time; 0 if that is not known."""
        return self._until(path_key(path), LOCKED_SNAPSHOTS)

    def set_snapshot_locked(self, path: str, until: float) -> None:
        """Note that all objects of a snapshot, chunks included, are locked."""
        self._transaction.put(path_key(path), _UNTIL.pack(until), db=self._databases[LOCKED_SNAPSHOTS])

    def forget_snapshot_lock(self, path: str) -> None:
        """Forget a snapshot's lock: it is gone, or it has other objects now."""
        self._transaction.delete(path_key(path), db=self._databases[LOCKED_SNAPSHOTS])

    def chunks_locked_before(self, digests: Iterable[bytes], until: float) -> list[bytes]:
        """Return those of `digests` that are not known to be locked until a Unix time, sorted."""
        return [digest for digest in sorted(digests) if self._until(digest, LOCKED_CHUNKS) < until]

    def set_chunks_locked(self, digests: Iterable[bytes], until: float) -> None:
        """Note that chunk objects are locked."""
        for digest in sorted(digests):
            self._transaction.put(digest, _UNTIL.pack(until), db=self._databases[LOCKED_CHUNKS])

    def chunk_locked_until(self, digest: bytes) -> float:
        """Return until when a chunk object is locked at least, as Unix time; 0 if that is not known."""
        return self._until(digest, LOCKED_CHUNKS)

    def forget_chunk_locks(self, digests: Iterable[bytes]) -> None:
        """Forget the locks of chunk objects that are gone or replaced."""
        for digest in digests:
            self._transaction.delete(digest, db=self._databases[LOCKED_CHUNKS])

    def _until(self, key: bytes, database: bytes) -> float:
        stored = self._transaction.get(key, db=self._databases[database])
        if stored is None:
            return 0.0
        if len(stored) != _UNTIL.size:
            raise DatabaseCorrupt("the state's entry for a lock is damaged")
        return float(_UNTIL.unpack(stored)[0])


def _deleted(value: dict[str, Any]) -> DeletedSnapshot:
    return DeletedSnapshot(
        str(value["path"]),
        dict(value["files"]),
        tuple(value["names"]),
        DeletedPhase(value["phase"]),
        float(value["deleted"]),
        float(value["until"]),
    )
