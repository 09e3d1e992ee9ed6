"""A moment at which datastore and bucket were equal, to be brought back later from a bucket that keeps versions."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.harness.scan import FoundDatastore, file_sha256, scan_datastore

# Stores tell the time of a version to the second.
_GRANULARITY = 1.1


@dataclass(frozen=True, slots=True)
class Moment:
    """When it was (Unix time), and SHA-256 by path of all that a mirror must have of finished snapshots and of their
    groups. `others` are snapshots of which nothing is said: damaged in the datastore, or held in the bucket."""

    at: float
    files: dict[str, str]
    snapshots: frozenset[str]
    namespaces: frozenset[str]
    others: frozenset[str]

    @classmethod
    def now(cls, found: FoundDatastore) -> Moment:
        """Note what there is; takes two seconds, so that no change lies in the same second as the moment."""
        paths = {path for snapshot in found.finished.values() for path in found.content_paths(snapshot)}
        for group in {snapshot.name.group for snapshot in found.finished.values()}:
            paths |= set(found.group_paths(group))
        files = {path: file_sha256(found.root / path) for path in paths}
        time.sleep(_GRANULARITY)
        at = time.time()
        time.sleep(_GRANULARITY)
        return cls(at, files, frozenset(found.finished), frozenset(found.namespaces), frozenset(found.damaged))

    def __str__(self) -> str:
        return datetime.fromtimestamp(self.at, UTC).isoformat().replace("+00:00", "Z")

    def differences(self, restored: Path) -> Iterator[str]:
        """What a datastore that was restored as of this moment has not as it was then, as sentences."""
        found = scan_datastore(restored)
        for path in sorted(self.snapshots - set(found.finished)):
            yield f"{path}: {found.damaged.get(path, ('it is not there',))[0]}"
        for path in sorted(set(found.finished) - self.snapshots - self.others):
            yield f"{path}: it was not there at that time"
        for name in sorted(self.namespaces - set(found.namespaces)):
            yield f"namespace {name}: it is not there"
        for path, expected in sorted(self.files.items()):
            if not (restored / path).is_file():
                yield f"{path}: it is not there"
            elif file_sha256(restored / path) != expected:
                yield f"{path}: it has other bytes"
