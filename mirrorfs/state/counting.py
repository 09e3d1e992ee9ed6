"""What the state remembers about references that are counted in part: a snapshot may need millions of chunks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorfs.state.entries import Entries, json_form, path_key

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction
    from mirrorfs.state.chunks import ChunkRecords

_COUNTING = b"counting"
DATABASES = (_COUNTING,)


@dataclass(frozen=True, slots=True)
class ReferenceHolder:
    """Who holds references to chunks: the snapshot `path` in the bucket, or, `is_kept`, the copy that is kept of it."""

    path: str
    is_kept: bool = False

    @property
    def name(self) -> str:
        """A name that no other holder has; no snapshot's path has a blank in front."""
        return f" {self.path}" if self.is_kept else self.path


@dataclass(frozen=True, slots=True)
class PartialCount:
    """Of the chunks that the indexes among `files` name, those with digests up to `up_to`, and that one, are counted.

    `files` maps the listed file names to their manifest checksums in hex.
    """

    files: Mapping[str, str]
    up_to: bytes


_FORM = json_form(
    lambda value: PartialCount(dict(value["files"]), bytes.fromhex(value["up_to"])),
    lambda count: {"files": dict(count.files), "up_to": count.up_to.hex()},
)


class CountingRecords:
    """The references to chunks and the counts of them that are under way, inside one transaction of the state.

    What is under way counts beside what the phase of the holder tells, which is all of its references or none.
    """

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database], chunks: ChunkRecords) -> None:
        self._entries = Entries(transaction, databases[_COUNTING], _FORM)
        self._chunks = chunks

    def get(self, holder: ReferenceHolder) -> PartialCount | None:
        """Tell how far a holder's references are counted, None if no count is under way."""
        return self._entries.get(path_key(holder.name))

    def set(self, holder: ReferenceHolder, count: PartialCount) -> None:
        """Note how far a holder's references are counted."""
        self._entries.put(path_key(holder.name), count)

    def count(self, holder: ReferenceHolder, count: PartialCount, digests: Iterable[bytes]) -> None:
        """Count a part of a holder's references, after which they are counted as `count` says."""
        self._chunks.add_references(digests)
        self.set(holder, count)

    def end_count(self, holder: ReferenceHolder, digests: Iterable[bytes]) -> None:
        """Count the last part of a holder's references."""
        self._chunks.add_references(digests)
        self._forget(holder)

    def give_back(self, holder: ReferenceHolder, left: PartialCount | None, digests: Iterable[bytes]) -> list[bytes]:
        """Count one reference less to each of a part of a holder's chunks; then `left` is still counted.

        Returns the digests that nobody references any more.

        Raises:
            DatabaseCorrupt: a count would fall below zero.
        """
        if left is None:
            self._forget(holder)
        else:
            self.set(holder, left)
        return self._chunks.take_references(digests)

    def _forget(self, holder: ReferenceHolder) -> None:
        """No count is under way: all references are counted and the phase tells so, or none is."""
        self._entries.delete(path_key(holder.name))

    def forget_bucket(self) -> None:
        """Forget all counts, with the chunks that they were about."""
        self._entries.clear()
