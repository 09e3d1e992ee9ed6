"""What an unfinished restore notes in its directory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.json_input import parse_json
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.recovery.source import View

MARKER_NAME = ".mirrorfs-restore.json"
_FORMAT = 2
# The year 10000, which no date can be of.
_END_OF_TIME = 253402300800
# A million snapshots take about so much.
_LONGEST_MARKER = 64 * 1024 * 1024
_MOST_MARKER_VALUES = 1_000_000


@dataclass(frozen=True, slots=True)
class Marker:
    """What an unfinished restore notes in its target: where from, how that was looked at, and which snapshots it may
    have begun.
    """

    url: str
    view: View
    snapshots: frozenset[SnapshotId] = frozenset()

    def is_of_the_same(self, other: Marker) -> bool:
        """Whether one restore goes on where the other was interrupted."""
        return (self.url, self.view) == (other.url, other.view)

    def encode(self) -> bytes:
        """As it stands in the file."""
        value = {
            "format": _FORMAT,
            "url": self.url,
            "as_of": self.view.as_of,
            "deleted": self.view.deleted,
            "snapshots": sorted(snapshot.path for snapshot in self.snapshots),
        }
        return json.dumps(value).encode()

    @classmethod
    def decode(cls, data: bytes) -> Marker:
        """Raises ValueError or DatastoreError."""
        match parse_json(data, maximum_size=_LONGEST_MARKER, most_values=_MOST_MARKER_VALUES):
            case {
                "format": 2,
                "url": str(url),
                "as_of": None | float() | int() as as_of,
                "deleted": bool(deleted),
                "snapshots": list(paths),
            } if as_of is None or 0 <= as_of < _END_OF_TIME:
                return cls(url, View(as_of, deleted), _parse_snapshots(paths))
            # Written before there were views.
            case {"format": 1, "url": str(url), "snapshots": list(paths)}:
                return cls(url, View(), _parse_snapshots(paths))
        raise ValueError


def _parse_snapshots(paths: Iterable[object]) -> frozenset[SnapshotId]:
    return frozenset(SnapshotId.parse(str(path)) for path in paths)


def read_marker(directory: int) -> Marker | None:
    """The marker in an open directory; None when there is none. Raises ValueError when it cannot be understood."""
    try:
        return Marker.decode(Tree(directory).read(MARKER_NAME, maximum_size=_LONGEST_MARKER))
    except FileNotFoundError:
        return None
    except (OSError, DatastoreError) as error:
        raise ValueError(str(error)) from error
