"""What the state remembers about chunks that PBS found corrupt and renamed in the datastore."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorfs.state.entries import Entries, time_form

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction
    from mirrorfs.state.chunks import ChunkRecords

_QUARANTINED = b"quarantined"
DATABASES = (_QUARANTINED,)

_SINCE = time_form("a chunk in quarantine")


@dataclass(frozen=True, slots=True)
class QuarantinedChunk:
    """A chunk that PBS found corrupt (Unix time `since`), and whether a confirmed copy of it is in the bucket."""

    digest: bytes
    since: float
    has_good_copy: bool


class QuarantineRecords:
    """The chunks in quarantine, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database], chunks: ChunkRecords) -> None:
        self._entries = Entries(transaction, databases[_QUARANTINED], _SINCE)
        self._chunks = chunks

    def set_since(self, digest: bytes, since: float | None) -> None:
        """Note since when (Unix time) the datastore has a corrupt copy of a chunk in quarantine; None: it has none."""
        if since is None:
            self._entries.delete(digest)
        else:
            self._entries.put(digest, since)

    def since(self, digest: bytes) -> float | None:
        """Tell since when a chunk is known to be in quarantine, None if it is not."""
        return self._entries.get(digest)

    def in_directory(self, number: int) -> set[bytes]:
        """Return the digests of `.chunks/<number as 4 hex digits>` that are known to be in quarantine."""
        return {digest for digest, _ in self._entries.starting_with(number.to_bytes(2, "big"))}

    def directories(self) -> set[int]:
        """Return the numbers of the directories of which any chunk is known to be in quarantine."""
        return {int.from_bytes(start, "big") for start in self._entries.key_starts(2)}

    def examples(self, maximum: int) -> tuple[int, list[QuarantinedChunk]]:
        """Count the chunks in quarantine, and return up to `maximum` of them."""
        examples = [
            QuarantinedChunk(digest, since, digest not in self._chunks.unconfirmed([digest]))
            for digest, since in self._entries.first(maximum)
        ]
        return self._entries.count(), examples
