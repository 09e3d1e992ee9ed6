"""The record beside a deleted snapshot that the bucket keeps for a while: `deleted.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.json_input import MalformedJSON, parse_json
from mirrorfs.datastore.limits import LONGEST_DELETION

_LATEST = int(datetime(9999, 12, 31, tzinfo=UTC).timestamp())


@dataclass(frozen=True, slots=True)
class Deletion:
    """When a snapshot was deleted and until when it is kept, in Unix time; with the content of the files ``owner`` and
    ``notes`` of its group at that time, None where there was none.
    """

    deleted: float
    until: float
    owner: str | None = None
    notes: str | None = None

    def encode(self) -> bytes:
        """The content of the object."""
        return json.dumps(asdict(self)).encode()


def parse_deletion(data: bytes) -> Deletion:
    """Read a whole ``deleted.json``; fields that are not known are passed over.

    Raises DatastoreError for what is not JSON, lacks a field or has one of a wrong type, and for times that are no date
    of the years 1970 to 9999.
    """
    try:
        value = parse_json(data, maximum_size=LONGEST_DELETION)
    except MalformedJSON as error:
        raise DatastoreError(f"deleted.json {error}") from error
    match value:
        case {"deleted": deleted, "until": until, **others}:
            return Deletion(
                _time(deleted), _time(until), _text("owner", others.get("owner")), _text("notes", others.get("notes"))
            )
    raise DatastoreError("deleted.json lacks the times deleted and until")


def _time(value: object) -> float:
    # A bool is an int to Python, and NaN is within no bounds.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _LATEST:
        raise DatastoreError("deleted.json has something that is no time")
    return float(value)


def _text(name: str, value: object) -> str | None:
    if value is None:
        return None
    # Half of a surrogate pair can be named in JSON, and stand in no file.
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise DatastoreError(f"deleted.json has something that is no text for {name}")
    return value
