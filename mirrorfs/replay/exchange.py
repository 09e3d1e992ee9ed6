"""A journal as a text file: JSON, one object a line; docs/replay.md has the format.

The first line says what it is, the last how many records stand between: a file that was cut off is known by its lack.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Iterator
from typing import IO, Any, TypeGuard

from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.database.errors import DatabaseError, NewerFormat
from mirrorfs.journal.journal import Record
from mirrorfs.journal.recreation import JournalHead, recreate_journal
from mirrorfs.replay.source import Source

FORMAT = "mirrorfs-journal"
VERSION = 1
# The longest path has 4096 bytes, each of which may take six characters.
_LONGEST_LINE = 64 * 1024


class MalformedExport(DatabaseError):
    """A file is not an export that this mirrorfs can read; the message says where and why."""


def head_value(head: JournalHead) -> dict[str, Any]:
    """Return what stands in the first line."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "generation": head.generation or None,
        "sequence": head.sequence,
        "datastore": head.datastore,
    }


def record_value(record: Record) -> dict[str, Any]:
    """Return what stands in the line of a record."""
    value: dict[str, Any] = {"sequence": record.sequence, "time_ns": record.nanoseconds}
    try:
        value["path"] = record.path.decode()
    except UnicodeDecodeError:
        value["path_base64"] = base64.b64encode(record.path).decode()
    return value


def last_value(count: int, *, complete: bool) -> dict[str, Any]:
    """Return what stands in the last line: how many records there are, and whether the journal had no more."""
    return {"records": count, "complete": complete}


def export_values(source: Source) -> Iterator[dict[str, Any]]:
    """Yield what stands in each line of the export of a source that has a journal. Raises DatabaseError."""
    journal = source.journal
    assert journal is not None
    # Before the records: what is appended meanwhile is not among them.
    yield head_value(JournalHead(journal.generation, journal.last_sequence(), source.datastore))
    count = 0
    for record in journal.records():
        yield record_value(record)
        count += 1
    yield last_value(count, complete=not journal.damage_count)


class Export:
    """An export that is read line by line. `complete` is known when `records` has come to its end."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        """Read the head. `name` is what errors call the file.

        Raises:
            MalformedExport: it is no export. NewerFormat: it was written by a newer mirrorfs.
        """
        self._file = file
        self._name = name
        self._number = 0
        self.complete: bool | None = None
        self.head = self._read_head()

    def _read_head(self) -> JournalHead:
        value = self._next()
        if value is None or value.get("format") != FORMAT:
            raise MalformedExport(f"{self._name} is not a journal that 'mirrorfs replay export' wrote")
        version = value.get("version")
        if not isinstance(version, int) or version < 1:
            raise self._malformed("it has no version")
        if version > VERSION:
            raise NewerFormat(
                f"{self._name} has version {version} of the format, this mirrorfs knows up to {VERSION}: use the "
                "mirrorfs that wrote it, or a newer one"
            )
        generation, sequence, datastore = value.get("generation"), value.get("sequence"), value.get("datastore")
        if not isinstance(generation, str | None) or not _is_number(sequence) or not isinstance(datastore, str | None):
            raise self._malformed("generation, sequence or datastore are not what they must be")
        return JournalHead(generation or "", sequence, datastore)

    def records(self) -> Iterator[Record]:
        """Yield the records.

        Raises:
            MalformedExport: a line is no record, the last line is missing, or does not fit.
        """
        count = 0
        while self.complete is None:
            value = self._next()
            if value is None:
                raise MalformedExport(
                    f"{self._name} ends after line {self._number} without its last line: it was cut off"
                )
            if "records" in value:
                self._end(value, count)
            else:
                count += 1
                yield self._record(value)
        if self._next() is not None:
            raise self._malformed("something follows the last line")

    def _end(self, value: dict[str, Any], count: int) -> None:
        if value["records"] != count or not isinstance(value.get("complete"), bool):
            raise self._malformed(f"it says that there are {value['records']!r} records, but there are {count}")
        self.complete = value["complete"]

    def _record(self, value: dict[str, Any]) -> Record:
        sequence, time, path, encoded = (value.get(key) for key in ("sequence", "time_ns", "path", "path_base64"))
        if not _is_number(sequence) or not _is_number(time) or (path is None) is (encoded is None):
            raise self._malformed("it is no record")
        return Record(sequence, self._path(path, encoded), time)

    def _path(self, path: object, encoded: object) -> bytes:
        try:
            if isinstance(path, str):
                return path.encode()
            if isinstance(encoded, str):
                return base64.b64decode(encoded, validate=True)
        except (UnicodeEncodeError, binascii.Error, ValueError) as error:
            raise self._malformed(f"its path cannot be read ({error})") from error
        raise self._malformed("its path is no text")

    def _next(self) -> dict[str, Any] | None:
        """Return what the next line says, None at the end."""
        try:
            line = self._file.readline(_LONGEST_LINE)
        except OSError as error:
            raise DatabaseError(f"cannot read {self._name}: {error.strerror}") from error
        if not line:
            return None
        self._number += 1
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._malformed(f"it is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise self._malformed("it is no JSON object")
        return value

    def _malformed(self, why: str) -> MalformedExport:
        return MalformedExport(f"line {self._number} of {self._name} cannot be used: {why}")


def import_journal(directory: StateDirectory, export: Export) -> int:
    """Make the journal of a state directory of an export, and that directory if it is not there.

    Returns how many records it has. It is there whole or not at all.

    Raises:
        DatabaseError and its kinds: a mount uses the directory, it has a journal, the file is no export, or the disk
            fails.
    """
    directory.create()
    lock = DirectoryLock(directory, "mount")
    lock.acquire()
    try:
        return recreate_journal(directory.journal, export.head, export.records())
    finally:
        lock.release()


def _is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)
