"""What the state remembers about snapshots: where each stands on its way into the bucket and out of it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from mirrorfs.database.errors import DatabaseCorrupt
from mirrorfs.state.entries import TEXT, Entries, json_form, path_key

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_SNAPSHOTS = b"snapshots"
_SAME_FILES = b"same-files"
DATABASES = (_SNAPSHOTS, _SAME_FILES)


class SnapshotPhase(Enum):
    """Where a snapshot stands on its way into the bucket and out of it again."""

    ADOPTED = "adopted"
    """Found in the bucket when this state began: its references are counted, its chunks not yet compared."""
    COMMITTED = "committed"
    """Files and chunks are confirmed and its references are counted; the manifest may or may not be up."""
    PUBLISHED = "published"
    """The manifest is confirmed."""
    REMOVING = "removing"
    """The manifest is about to go or gone; the references are still counted."""
    RELEASED = "released"
    """The references are given back; objects may be left."""

    @property
    def counts_references(self) -> bool:
        """Whether the snapshot stands in the bucket, or may, and its chunks are counted as referenced."""
        return self in (SnapshotPhase.ADOPTED, SnapshotPhase.COMMITTED, SnapshotPhase.PUBLISHED)


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """A snapshot that has, or may have, objects in the bucket.

    `files` maps the listed file names to their manifest checksums in hex: it tells whether a new manifest is about the
    same content, and which indexes carry the counted references.
    """

    phase: SnapshotPhase
    files: dict[str, str]
    since: float


def _made(value: dict[str, Any]) -> tuple[str, SnapshotState]:
    files, since = value["files"], value["since"]
    if not isinstance(files, dict) or not isinstance(since, (int, float)):
        raise DatabaseCorrupt(f"the state's entry for snapshot {value.get('path')} is damaged")
    return str(value["path"]), SnapshotState(SnapshotPhase(value["phase"]), files, float(since))


def _taken(entry: tuple[str, SnapshotState]) -> dict[str, object]:
    path, snapshot = entry
    return {"path": path, "phase": snapshot.phase.value, "files": snapshot.files, "since": snapshot.since}


_FORM = json_form(_made, _taken)


class SnapshotRecords:
    """The known snapshots, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._entries = Entries(transaction, databases[_SNAPSHOTS], _FORM)
        self._same_files = Entries(transaction, databases[_SAME_FILES], TEXT)

    def get(self, path: str) -> SnapshotState | None:
        """Tell where a snapshot stands, None if nothing of it is in the bucket."""
        entry = self._entries.get(path_key(path))
        return None if entry is None else entry[1]

    def set(self, path: str, snapshot: SnapshotState) -> None:
        """Note where a snapshot stands."""
        self._entries.put(path_key(path), (path, snapshot))
        if snapshot.phase.counts_references:
            self._same_files.put(_files_key(snapshot.files), path)

    def forget(self, path: str) -> None:
        """Note that nothing of a snapshot is left in the bucket."""
        known = self.get(path)
        if known is not None and self.with_files(known.files) == path:
            self._same_files.delete(_files_key(known.files))
        self._entries.delete(path_key(path))

    def with_files(self, files: Mapping[str, str]) -> str | None:
        """Return the path of a snapshot that stood in the bucket with the same listed files; it need not any more."""
        return self._same_files.get(_files_key(files))

    def all(self) -> Iterator[tuple[str, SnapshotState]]:
        """Yield the known snapshots with their paths."""
        return self._entries.all()

    def below(self, path: str) -> Iterator[tuple[str, SnapshotState]]:
        """Yield the known snapshots whose path is `path` or lies in it; all if it is empty."""
        return self._entries.below(path, lambda entry: entry[0]) if path else self.all()

    def forget_bucket(self) -> None:
        """Forget all snapshots."""
        self._entries.clear()
        self._same_files.clear()


def _files_key(files: Mapping[str, str]) -> bytes:
    return sha256(json.dumps(files, sort_keys=True).encode()).digest()
