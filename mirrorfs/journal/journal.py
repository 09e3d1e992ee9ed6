"""The journal: which names of the datastore changed, in the order in which they were last seen to change.

A record is a name and a time, nothing else (docs/how-it-works.md, "Level, not edge"); a later record of a name takes
the place of an earlier one, so the journal never grows beyond the number of names that changed.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Protocol

from mirrorfs import own_files
from mirrorfs.database.environment import Environment, Transaction, examine
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError
from mirrorfs.steps import reach

FORMAT_VERSION = 1

RECORDS = b"records"
LATEST = b"latest"
META = b"meta"
SEQUENCE_KEY = b"sequence"
GENERATION_KEY = b"generation"
# Only in a journal that was imported: the others know it by their state.
DATASTORE_KEY = b"datastore"
_BOOT_ID = "/proc/sys/kernel/random/boot_id"
# An append may have to wait for one batch.
_TRIM_BATCH = 200
# LMDB keys end at 511 bytes; a longer name is represented by its hash.
_LONGEST_PLAIN_KEY = 500


@dataclass(frozen=True, slots=True)
class Record:
    """One name that changed: `path` is relative to the datastore, `nanoseconds` the time since the epoch."""

    sequence: int
    path: bytes
    nanoseconds: int

    @property
    def time(self) -> float:
        """When it changed, in seconds since the epoch."""
        return self.nanoseconds / 1e9


@dataclass(frozen=True, slots=True)
class Position:
    """How far a journal has been dealt with; sequences of two generations cannot be compared."""

    generation: str
    sequence: int


class JournalWriter:
    """The journal as the filesystem process holds it.

    One thread at a time may append or reopen; `sync` and `trim` may be called from others at the same time.
    """

    def __init__(self, directory: str) -> None:
        """Open the journal, or begin a new generation if the old one cannot be trusted.

        It cannot after a boot that it did not see the end of (commits are not synced one by one), and when
        LMDB finds it damaged: what it held is then found by reconciling, which each start does.

        Raises:
            NewerFormat, DatabaseError: see Environment.
        """
        self.directory = directory
        self.distrusted: str | None = None
        try:
            own_files.make_directory(directory)
        except own_files.NotOwn as error:
            raise DatabaseError(str(error)) from error
        reason = distrust_reason(directory)
        if reason is not None:
            self._set_aside(reason)
        try:
            if os.path.exists(os.path.join(directory, "data.mdb")):
                # Damage could end this process, and the mount with it; so another one meets it first.
                examine(directory)
            self._open()
        except DatabaseCorrupt as error:
            self._set_aside(str(error))
            self._open()

    def _open(self) -> None:
        self._environment = Environment(
            self.directory,
            databases=(RECORDS, LATEST, META),
            format_version=FORMAT_VERSION,
            durable=False,
        )
        write_session(self.directory, clean=False)
        reach("journal.before-begin")
        try:
            self.generation, self._sequence = self._environment.update(self._begin)
        except DatabaseError:
            self._environment.close()
            raise

    def _set_aside(self, reason: str) -> None:
        self.distrusted = reason
        for name in ("data.mdb", "lock.mdb"):
            path = os.path.join(self.directory, name)
            if os.path.exists(path):
                reach("journal.before-set-aside")
                os.replace(path, f"{path}.distrusted")
                reach("journal.file-set-aside")

    def _begin(self, transaction: Transaction) -> tuple[str, int]:
        meta = self._environment.databases[META]
        generation = transaction.get(GENERATION_KEY, db=meta)
        if generation is None:
            generation = uuid.uuid4().hex.encode()
            transaction.put(GENERATION_KEY, generation, db=meta)
        stored = transaction.get(SEQUENCE_KEY, db=meta) or b""
        # Written in any case: what cannot be written is found now, while it can still be set aside.
        transaction.put(SEQUENCE_KEY, stored, db=meta)
        sequence = int.from_bytes(stored, "big")
        last = transaction.cursor(db=self._environment.databases[RECORDS])
        if last.last() and int.from_bytes(last.key(), "big") > sequence:
            # No record could be appended any more.
            raise DatabaseCorrupt(f"the journal in {self.directory} is damaged: it ends beyond its last record")
        try:
            return generation.decode("ascii"), sequence
        except UnicodeDecodeError as error:
            raise DatabaseCorrupt(f"the journal in {self.directory} is damaged: {error}") from error

    def append(self, path: bytes) -> int:
        """Record that `path` changed, committed (not synced) on return; returns the record's sequence.

        Raises:
            DatabaseError: it could not be stored.
        """
        return self.append_all((path,))

    def append_all(self, paths: Sequence[bytes]) -> int:
        """Record several names in one commit; returns the last sequence."""
        if not paths:
            return self._sequence
        first = self._sequence + 1
        self._environment.update(lambda transaction: self._put(transaction, first, paths))
        self._sequence += len(paths)
        return self._sequence

    def _put(self, transaction: Transaction, first: int, paths: Sequence[bytes]) -> None:
        records, latest, meta = (self._environment.databases[name] for name in (RECORDS, LATEST, META))
        now = time.time_ns().to_bytes(8, "big")
        key = b""
        for sequence, path in enumerate(paths, first):
            key = sequence.to_bytes(8, "big")
            replaced = transaction.replace(name_key(path), key, db=latest)
            if replaced is not None:
                transaction.delete(replaced, db=records)
            transaction.put(key, now + path, db=records, append=True)
        transaction.put(SEQUENCE_KEY, key, db=meta)

    @property
    def sequence(self) -> int:
        """Sequence of the newest record ever appended."""
        return self._sequence

    def sync(self) -> None:
        """Put all records so far on stable storage. May be called from a thread; blocks."""
        self._environment.sync()

    def trim(self, position: Position) -> None:
        """Drop the records that the uploader has durably dealt with, however many they are."""
        while self.trim_some(position):
            continue

    def trim_some(self, position: Position) -> bool:
        """Drop some of the records that the uploader has durably dealt with; tells whether there are more.

        May be called from a thread; an append at the same time waits for a few milliseconds at most.

        Raises:
            DatabaseError: the journal cannot be written just now; what is not dropped can be dropped later.
        """
        if position.generation != self.generation:
            return False
        return self._environment.update(lambda transaction: self._trim_batch(transaction, position.sequence))

    def _trim_batch(self, transaction: Transaction, limit: int) -> bool:
        records, latest = self._environment.databases[RECORDS], self._environment.databases[LATEST]
        cursor = transaction.cursor(db=records)
        present = cursor.first()
        for _ in range(_TRIM_BATCH):
            if not present or int.from_bytes(cursor.key(), "big") > limit:
                return False
            key, path = cursor.key(), cursor.value()[8:]
            if transaction.get(name_key(path), db=latest) == key:
                transaction.delete(name_key(path), db=latest)
            present = cursor.delete() and bool(cursor.key())
        return present

    def reopen(self) -> None:
        """Open the same journal anew, after a failure from which LMDB does not recover by itself.

        Raises:
            DatabaseError: it cannot be opened, or it is not the journal any more that its readers read.
        """
        self._environment.reopen()
        generation, sequence = self._environment.update(self._begin)
        if generation != self.generation:
            raise DatabaseError(f"the journal in {self.directory} has been replaced by another one: mount again")
        # A commit may have reached the file although it was said to have failed; a sequence is never given twice.
        self._sequence = max(self._sequence, sequence)

    def clear_dead_readers(self) -> None:
        """Free what killed readers held; to be called after the uploader has died. Raises DatabaseError."""
        self._environment.clear_dead_readers()

    def close(self) -> None:
        """Sync, and note that the journal was closed cleanly.

        Raises:
            DatabaseError: it is closed, but its records may not be on stable storage, or the note could not be made.
        """
        reach("journal.before-close")
        try:
            self._environment.sync()
        finally:
            self._environment.close()
        reach("journal.synced")
        try:
            write_session(self.directory, clean=True)
        except OSError as error:
            raise DatabaseError(f"cannot write {_session_path(self.directory)}: {error.strerror}") from error


class JournalSource(Protocol):
    """The journal for whoever works through it."""

    @property
    def generation(self) -> str:
        """Name of the journal; sequences of two generations cannot be compared."""

    def read(self, after: int, maximum: int) -> list[Record]:
        """Return up to `maximum` records with sequences beyond `after`, oldest first."""

    def last_sequence(self) -> int:
        """Return the sequence of the newest record ever appended."""


class JournalReader:
    """The journal as other processes see it: read only, at the newest commit each time."""

    def __init__(self, directory: str) -> None:
        """Open an existing journal. Raises DatabaseError when there is none."""
        self._environment = Environment(
            directory, databases=(RECORDS, LATEST, META), format_version=FORMAT_VERSION, read_only=True
        )
        self.generation = self._environment.view(
            lambda transaction: transaction.get(GENERATION_KEY, db=self._environment.databases[META]) or b""
        ).decode()

    def read(self, after: int, maximum: int) -> list[Record]:
        """Return up to `maximum` records with sequences beyond `after`, oldest first."""
        return self._environment.view(lambda transaction: self._read(transaction, after, maximum))

    def _read(self, transaction: Transaction, after: int, maximum: int) -> list[Record]:
        cursor = transaction.cursor(db=self._environment.databases[RECORDS])
        if not cursor.set_range((after + 1).to_bytes(8, "big")):
            return []
        records = []
        for key, value in cursor:
            records.append(Record(int.from_bytes(key, "big"), value[8:], int.from_bytes(value[:8], "big")))
            if len(records) == maximum:
                break
        return records

    def last_sequence(self) -> int:
        """Return the sequence of the newest record ever appended."""
        stored = self._environment.view(
            lambda transaction: transaction.get(SEQUENCE_KEY, db=self._environment.databases[META])
        )
        return int.from_bytes(stored or b"", "big")

    def pending(self, position: Position | None) -> int:
        """Count the records that are beyond `position`, within what trimming leaves."""
        after = position.sequence if position is not None and position.generation == self.generation else 0
        return self._environment.view(lambda transaction: self._pending(transaction, after))

    def _pending(self, transaction: Transaction, after: int) -> int:
        records = self._environment.databases[RECORDS]
        cursor = transaction.cursor(db=records)
        if not cursor.set_range((after + 1).to_bytes(8, "big")):
            return 0
        behind = 0
        total = int(transaction.stat(records)["entries"])
        with transaction.cursor(db=records) as counter:
            for key in counter.iternext(keys=True, values=False):
                if int.from_bytes(key, "big") > after:
                    break
                behind += 1
        return total - behind

    def oldest_time(self, position: Position | None) -> float | None:
        """Return when the oldest record beyond `position` was made, None if there is none."""
        after = position.sequence if position is not None and position.generation == self.generation else 0
        records = self.read(after, 1)
        return records[0].time if records else None

    def close(self) -> None:
        """Close the journal."""
        self._environment.close()


def name_key(path: bytes) -> bytes:
    """Return the key under which the newest record of a name is found."""
    if len(path) <= _LONGEST_PLAIN_KEY and path:
        return path
    return b"\0" + sha256(path).digest()


def _session_path(directory: str) -> str:
    return os.path.join(directory, "session.json")


def _boot_id() -> str:
    with open(_BOOT_ID, encoding="ascii") as file:
        return file.read().strip()


def distrust_reason(directory: str) -> str | None:
    """Tell why a mount would not trust the journal in `directory`, None if it would. Raises DatabaseError."""
    if not os.path.exists(os.path.join(directory, "data.mdb")):
        return None
    try:
        session = json.loads(own_files.read_file(_session_path(directory)))
        clean, boot = bool(session["clean"]), str(session["boot_id"])
    except FileNotFoundError:
        return "the journal has no session note"
    except (ValueError, KeyError, TypeError):
        return "the journal's session note is damaged"
    except OSError as error:
        raise DatabaseError(f"cannot read {_session_path(directory)}: {error.strerror}") from error
    if not clean and boot != _boot_id():
        return "the machine went down while the journal was open"
    return None


def write_session(directory: str, *, clean: bool) -> None:
    """Note, on stable storage, whether the journal in `directory` was closed in good order. Raises OSError."""
    temporary = _session_path(directory) + ".tmp"
    descriptor = own_files.new_file(temporary)
    try:
        os.write(descriptor, json.dumps({"clean": clean, "boot_id": _boot_id()}).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    reach("session.before-rename")
    os.replace(temporary, _session_path(directory))
    reach("session.after-rename")
    own_files.synchronize_directory(directory)
