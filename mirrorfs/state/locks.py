"""What the state remembers about object locks: until when the store refuses to delete."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from mirrorfs.state.entries import Entries, path_key, time_form

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_SNAPSHOTS = b"locked-snapshots"
_CHUNKS = b"locked-chunks"
DATABASES = (_SNAPSHOTS, _CHUNKS)

_UNTIL = time_form("a lock")


class LockRecords:
    """What is known of locks, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._snapshots = Entries(transaction, databases[_SNAPSHOTS], _UNTIL)
        self._chunks = Entries(transaction, databases[_CHUNKS], _UNTIL)

    def snapshot_locked_until(self, path: str) -> float:
        """Return until when all objects of a snapshot are locked at least, as Unix time; 0 if that is not known."""
        return self._snapshots.get(path_key(path)) or 0.0

    def set_snapshot_locked(self, path: str, until: float) -> None:
        """Note that all objects of a snapshot, chunks included, are locked."""
        self._snapshots.put(path_key(path), until)

    def forget_snapshot(self, path: str) -> None:
        """Forget a snapshot's lock: it is gone, or it has other objects now."""
        self._snapshots.delete(path_key(path))

    def chunk_locked_until(self, digest: bytes) -> float:
        """Return until when a chunk object is locked at least, as Unix time; 0 if that is not known."""
        return self._chunks.get(digest) or 0.0

    def set_chunks_locked(self, digests: Iterable[bytes], until: float) -> None:
        """Note that chunk objects are locked."""
        for digest in sorted(digests):
            self._chunks.put(digest, until)

    def forget_chunk(self, digest: bytes) -> None:
        """Forget the lock of a chunk object that is gone or replaced."""
        self._chunks.delete(digest)

    def forget_bucket(self) -> None:
        """Forget all locks."""
        self._snapshots.clear()
        self._chunks.clear()
