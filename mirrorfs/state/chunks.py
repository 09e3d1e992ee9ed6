"""What the state remembers about chunk objects: what is confirmed of them, and how many references each has."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mirrorfs.database.errors import DatabaseCorrupt
from mirrorfs.state.entries import Entries, Form, unpacked

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction
    from mirrorfs.state.locks import LockRecords

_CHUNKS = b"chunks"
DATABASES = (_CHUNKS,)


@dataclass(frozen=True, slots=True)
class ChunkState:
    """What is known of a chunk object. `size` 0: a PUT was begun or the object was found, nothing is confirmed."""

    size: int
    crc32c: int
    references: int

    @property
    def confirmed(self) -> bool:
        """Whether the store has confirmed size and checksum."""
        return self.size > 0


_LAYOUT = struct.Struct("<III")
_FORM = Form(
    lambda chunk: _LAYOUT.pack(chunk.size, chunk.crc32c, chunk.references),
    lambda stored: ChunkState(*unpacked(stored, _LAYOUT, "a chunk")),
)
_NOTHING_CONFIRMED = ChunkState(0, 0, 0)


class ChunkRecords:
    """What is known of chunk objects, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database], locks: LockRecords) -> None:
        self._entries = Entries(transaction, databases[_CHUNKS], _FORM)
        self._locks = locks

    def get(self, digest: bytes) -> ChunkState | None:
        """Tell what is known of a chunk object."""
        return self._entries.get(digest)

    def intend(self, digests: Iterable[bytes]) -> None:
        """Note that chunks are about to be PUT, so that a crash leaves no object that nobody knows."""
        for digest in sorted(digests):
            if self.get(digest) is None:
                self._entries.put(digest, _NOTHING_CONFIRMED)

    def withdraw(self, digests: Iterable[bytes]) -> None:
        """Take back intentions of which no PUT has come; what is known by now, or referenced, stays."""
        for digest in sorted(digests):
            if self.get(digest) == _NOTHING_CONFIRMED:
                self._entries.delete(digest)

    def confirm(self, digest: bytes, size: int, crc32c: int) -> None:
        """Note that the store holds the chunk with this size in bytes and this checksum."""
        known = self.get(digest) or _NOTHING_CONFIRMED
        self._entries.put(digest, ChunkState(size, crc32c, known.references))

    def doubt(self, digest: bytes) -> None:
        """Note that the chunk object is there, or may be, but with what content is not known any more."""
        known = self.get(digest) or _NOTHING_CONFIRMED
        self._entries.put(digest, replace(known, size=0, crc32c=0))
        self._locks.forget_chunk(digest)

    def doubt_if_still(self, digest: bytes, known: ChunkState) -> bool:
        """Note the same if size and checksum are still what they are in `known`; tells whether they are."""
        now = self.get(digest)
        if now is None or (now.size, now.crc32c) != (known.size, known.crc32c):
            return False
        self.doubt(digest)
        return True

    def forget(self, digest: bytes) -> None:
        """Note that the chunk object is gone."""
        self._entries.delete(digest)
        self._locks.forget_chunk(digest)

    def unconfirmed(self, digests: Iterable[bytes]) -> list[bytes]:
        """Return those of `digests` whose chunk objects are not confirmed, in the same order."""
        return [digest for digest in digests if not self.is_confirmed(digest)]

    def is_confirmed(self, digest: bytes) -> bool:
        """Tell whether the store has confirmed size and checksum of the chunk object."""
        return (self.get(digest) or _NOTHING_CONFIRMED).confirmed

    def in_directory(self, number: int) -> list[tuple[bytes, ChunkState]]:
        """Return what is known of the chunks of `.chunks/<number as 4 hex digits>`, sorted by digest."""
        return list(self._entries.starting_with(number.to_bytes(2, "big")))

    def directories(self) -> set[int]:
        """Return the numbers of the directories of which any chunk object is known."""
        return {int.from_bytes(start, "big") for start in self._entries.key_starts(2)}

    def after(self, digest: bytes, maximum: int) -> list[tuple[bytes, ChunkState]]:
        """Return what is known of up to `maximum` chunks whose digests are greater than `digest`, sorted."""
        return self._entries.after(digest, maximum)

    def count(self) -> int:
        """Count the chunk objects known."""
        return self._entries.count()

    def add_references(self, digests: Iterable[bytes]) -> None:
        """Count one reference more to each chunk."""
        for digest in sorted(digests):
            known = self.get(digest) or _NOTHING_CONFIRMED
            self._entries.put(digest, replace(known, references=known.references + 1))

    def take_references(self, digests: Iterable[bytes]) -> list[bytes]:
        """Count one reference less to each chunk; returns the digests that nobody references any more.

        Raises:
            DatabaseCorrupt: a count would fall below zero.
        """
        unreferenced = []
        for digest in sorted(digests):
            known = self.get(digest)
            if known is None or known.references == 0:
                raise DatabaseCorrupt(f"the state counts no reference to chunk {digest.hex()}, yet one is given back")
            self._entries.put(digest, replace(known, references=known.references - 1))
            if known.references == 1:
                unreferenced.append(digest)
        return unreferenced

    def forget_bucket(self) -> None:
        """Forget all chunk objects, with the references to them."""
        self._entries.clear()
