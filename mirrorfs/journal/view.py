"""The journal for whoever only looks: live, dead, a copy or damaged; nothing is written, no lock is taken.

A live one is read as it grows, without its writer noticing anything; of a damaged one all that can be read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from mirrorfs import own_files
from mirrorfs.database.data_file import DataFile, PageDamage
from mirrorfs.database.errors import DatabaseError, NewerFormat, UnfinishedDatabase
from mirrorfs.journal.journal import (
    DATASTORE_KEY,
    FORMAT_VERSION,
    GENERATION_KEY,
    LATEST,
    META,
    RECORDS,
    SEQUENCE_KEY,
    Position,
    Record,
    name_key,
)

_FORMAT = b"format"
_TIME_LENGTH = 8
_KEY_LENGTH = 8
_LAST_KEY = b"\xff" * _KEY_LENGTH
# A damaged file may have a fault on each of its pages; so many tell as much.
_NAMED_DAMAGES = 20


@dataclass(frozen=True, slots=True)
class JournalDamage:
    """A place at which a journal cannot be read: behind record `after` (0: before the first), for the reason `what`.

    `page`, `offset` and `file_length` (bytes) say where that is in the file; None where a record itself is wrong.
    """

    after: int
    what: str
    page: int | None = None
    offset: int | None = None
    file_length: int | None = None


class JournalView:
    """A journal's data file, open for looking, from several threads. The methods are those of JournalReader."""

    def __init__(self, path: str) -> None:
        """Open the data file of a journal, usually STATE_DIR/journal/data.mdb.

        Raises:
            NewerFormat: it was written by a newer mirrorfs.
            UnfinishedDatabase: it is empty.
            DatabaseCorrupt: nothing of it can be read.
            DatabaseError: it cannot be opened, or is no journal.
        """
        self.path = path
        self.damages: list[JournalDamage] = []
        """The places that could not be read so far, at most 20 of them; `damage_count` counts all."""
        self._places: set[int | str] = set()
        self._file = DataFile(path)
        try:
            self._check_kind()
            generation = self._meta(GENERATION_KEY)
            self.generation = "" if generation is None else generation.decode("ascii", "replace")
            """Name of the journal, "" if it cannot be read: then no position holds for it."""
            self.datastore = self._datastore()
            """The datastore it is about, where the journal itself says so: one that was imported does."""
        except DatabaseError:
            self._file.close()
            raise

    def _check_kind(self) -> None:
        stored = self._file.get(_FORMAT, b"format", self._note)
        if stored is not None and stored.isdigit() and int(stored) > FORMAT_VERSION:
            raise NewerFormat(
                f"the journal {self.path} has format {int(stored)}, this mirrorfs knows up to {FORMAT_VERSION}: "
                "use the mirrorfs that wrote it, or a newer one"
            )
        names = self._file.names(self._note)
        if RECORDS not in names and not self.damage_count:
            if not names or set(names) <= {_FORMAT}:
                raise UnfinishedDatabase(f"the journal {self.path} was begun and never used: it holds nothing")
            found = ", ".join(name.decode("ascii", "replace") for name in names)
            raise DatabaseError(f"{self.path} is not a journal: what it holds is called {found}")

    def _meta(self, key: bytes) -> bytes | None:
        return self._file.get(META, key, self._note)

    def _datastore(self) -> str | None:
        stored = self._meta(DATASTORE_KEY)
        return None if stored is None else os.fsdecode(stored)

    @property
    def damage_count(self) -> int:
        """How many places could not be read so far."""
        return len(self._places)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def last_sequence(self) -> int:
        """Return the sequence of the newest record ever appended; of the newest that is there if that is damaged."""
        stored = self._meta(SEQUENCE_KEY)
        if stored is None or len(stored) > _KEY_LENGTH:
            return max((record.sequence for record in self.records()), default=0)
        return int.from_bytes(stored, "big")

    def sequence_of(self, path: bytes) -> int | None:
        """Return the sequence of the record of a name, None if it has none, or if that cannot be read."""
        stored = self._file.get(LATEST, name_key(path), self._note)
        return None if stored is None else int.from_bytes(stored, "big")

    def count(self) -> int:
        """Return how many records there are to be."""
        return self._file.entries(RECORDS, self._note)

    def read(self, after: int, maximum: int) -> list[Record]:
        """Return up to `maximum` records with sequences beyond `after`, oldest first; all that can be read."""
        return list(islice(self.records(after), maximum))

    def records(self, after: int = 0) -> Iterator[Record]:
        """Yield the records with sequences beyond `after` and up to the newest of this moment, oldest first.

        What cannot be read is noted in `damages` and passed over. Raises DatabaseError where the disk fails.
        """
        first = (after + 1).to_bytes(_KEY_LENGTH, "big") if after < (1 << 64) - 1 else _LAST_KEY
        end = self._newest()
        last = after
        for key, value in self._file.items(RECORDS, self._note, first=first, belongs=_is_record):
            if key > end:
                if key <= self._newest():
                    # What was appended meanwhile; on a busy machine that would have no end.
                    return
                if not self._places:
                    # Else it is the number that has been read from an earlier commit.
                    self._add(JournalDamage(last, "there are records beyond the newest that it says it has"))
                end = _LAST_KEY
            if len(key) != _KEY_LENGTH or len(value) < _TIME_LENGTH:
                what = f"an entry of {len(key)} + {len(value)} bytes is no record"
                self._add(JournalDamage(last, what))
                continue
            last = int.from_bytes(key, "big")
            yield Record(last, value[_TIME_LENGTH:], int.from_bytes(value[:_TIME_LENGTH], "big"))

    def _newest(self) -> bytes:
        stored = self._meta(SEQUENCE_KEY)
        return _LAST_KEY if stored is None else stored.rjust(_KEY_LENGTH, b"\0")

    def pending(self, position: Position | None) -> int:
        """Count the records beyond `position`."""
        return sum(1 for _ in self.records(self._after(position)))

    def oldest_time(self, position: Position | None) -> float | None:
        """Return when the oldest record beyond `position` was made, None if there is none."""
        return next((record.time for record in self.records(self._after(position))), None)

    def _after(self, position: Position | None) -> int:
        return position.sequence if position is not None and position.generation == self.generation else 0

    def _note(self, damage: PageDamage) -> None:
        after = damage.after if damage.after is not None and len(damage.after) == _KEY_LENGTH else b""
        self._add(
            JournalDamage(
                int.from_bytes(after, "big"),
                f"page {damage.page} {damage.reason}",
                damage.page,
                damage.offset,
                damage.file_length,
            )
        )

    def _add(self, damage: JournalDamage) -> None:
        place = damage.what if damage.page is None else damage.page
        if place in self._places:
            return
        self._places.add(place)
        if len(self.damages) < _NAMED_DAMAGES:
            self.damages.append(damage)


class NoJournal:
    """A journal that is lost: it has no records, and no position holds for it."""

    generation = ""

    def read(self, after: int, maximum: int) -> list[Record]:
        """Return nothing."""
        del after, maximum
        return []

    def last_sequence(self) -> int:
        """Return 0."""
        return 0


def _is_record(key: bytes, value: bytes) -> bool:
    """Tell a record from what else stands in a journal: names have no NUL but as the mark of a hash of 32 bytes."""
    return len(key) == _KEY_LENGTH and key[0] == 0 and len(value) >= _TIME_LENGTH


def was_closed_cleanly(path: str) -> bool | None:
    """Tell whether the mount that wrote the journal with this data file ended in good order; None if none says."""
    try:
        return bool(json.loads(own_files.read_file(os.path.join(os.path.dirname(path), "session.json")))["clean"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
