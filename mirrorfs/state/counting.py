"""What the state remembers about references that are counted in part: a snapshot may need millions of chunks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mirrorfs.database.entries import decoded, path_key

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

COUNTING = b"counting"


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


class CountingRecords:
    """The counts that are under way, inside one transaction of the state.

    They count beside what the phase of the holder tells, which is all of its references or none.
    """

    def __init__(self, transaction: Transaction, database: Database) -> None:
        self._transaction = transaction
        self._database = database

    def get(self, holder: ReferenceHolder) -> PartialCount | None:
        """Tell how far a holder's references are counted, None if no count is under way."""
        stored = self._transaction.get(path_key(holder.name), db=self._database)
        return None if stored is None else decoded(stored, _partial_count)

    def set(self, holder: ReferenceHolder, count: PartialCount) -> None:
        """Note how far a holder's references are counted."""
        value = {"files": dict(count.files), "up_to": count.up_to.hex()}
        self._transaction.put(path_key(holder.name), json.dumps(value).encode(), db=self._database)

    def forget(self, holder: ReferenceHolder) -> None:
        """Note that no count is under way: all references are counted and the phase tells so, or none is."""
        self._transaction.delete(path_key(holder.name), db=self._database)

    def forget_all(self) -> None:
        """Forget all counts, with the chunks that they were about."""
        self._transaction.drop(self._database, delete=False)


def _partial_count(value: dict[str, Any]) -> PartialCount:
    return PartialCount(dict(value["files"]), bytes.fromhex(value["up_to"]))
