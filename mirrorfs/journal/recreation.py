"""A journal made from the records of another one: the same generation, sequences, times and names."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from mirrorfs import own_files
from mirrorfs.database.environment import Environment, Transaction
from mirrorfs.database.errors import DatabaseError
from mirrorfs.journal.journal import (
    DATASTORE_KEY,
    FORMAT_VERSION,
    GENERATION_KEY,
    LATEST,
    META,
    RECORDS,
    SEQUENCE_KEY,
    Record,
    name_key,
    write_session,
)
from mirrorfs.steps import reach

_RECORDS_A_COMMIT = 10_000
_LARGEST_SEQUENCE = (1 << 63) - 1


class UnusableRecords(DatabaseError):
    """The records cannot be those of a journal; the message says which and why."""


@dataclass(frozen=True, slots=True)
class JournalHead:
    """What a journal is beside its records: the newest sequence that it has given, and the datastore, if known.

    Without a `generation` (one that could not be read) it becomes a new one: no position holds for it.
    """

    generation: str
    sequence: int
    datastore: str | None = None


def recreate_journal(directory: str, head: JournalHead, records: Iterable[Record]) -> int:
    """Make the journal `directory`, which must not be there or must be empty; returns how many records it has.

    It is there complete, on stable storage and as if closed in good order, or not at all.

    Raises:
        UnusableRecords: sequences that do not rise, a name twice, or a name that is no path in a datastore.
        DatabaseError: there is a journal already, or this one cannot be written.
    """
    if os.path.lexists(directory) and (not os.path.isdir(directory) or os.listdir(directory)):
        raise DatabaseError(f"there is a journal in {directory} already: give a state directory that has none")
    _check_head(head)
    draft = f"{directory}.import"
    shutil.rmtree(draft, ignore_errors=True)
    try:
        count = _write(draft, head, records)
        reach("recreation.before-rename")
        os.rename(draft, directory)
        own_files.synchronize_directory(os.path.dirname(directory))
    except OSError as error:
        raise DatabaseError(f"cannot make the journal {directory}: {error.strerror}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    reach("recreation.renamed")
    return count


def _check_head(head: JournalHead) -> None:
    if head.generation and not (head.generation.isascii() and head.generation.isalnum()):
        raise UnusableRecords(f"{head.generation!r} is not the name of a journal's generation")
    if not 0 <= head.sequence <= _LARGEST_SEQUENCE:
        raise UnusableRecords(f"{head.sequence} cannot be the newest sequence of a journal")


def _write(directory: str, head: JournalHead, records: Iterable[Record]) -> int:
    environment = Environment(
        directory, databases=(RECORDS, LATEST, META), format_version=FORMAT_VERSION, durable=False
    )
    try:
        count = _write_records(environment, head, records)
        environment.update(lambda transaction: _write_head(transaction, environment, head))
        environment.sync()
    finally:
        environment.close()
    write_session(directory, clean=True)
    return count


def _write_records(environment: Environment, head: JournalHead, records: Iterable[Record]) -> int:
    count = 0
    remaining = _checked(head, records)
    while batch := list(islice(remaining, _RECORDS_A_COMMIT)):
        environment.update(lambda transaction, batch=batch: _put(transaction, environment, batch))  # type: ignore[misc]
        count += len(batch)
        reach("recreation.records-written")
    return count


def _checked(head: JournalHead, records: Iterable[Record]) -> Iterator[Record]:
    last = 0
    for record in records:
        if not last < record.sequence <= head.sequence:
            raise UnusableRecords(
                f"record {record.sequence} comes after record {last} of a journal that ends with {head.sequence}"
            )
        if not 0 <= record.nanoseconds < 1 << 64:
            raise UnusableRecords(f"record {record.sequence} has the time {record.nanoseconds} ns, which is none")
        if not is_path(record.path):
            raise UnusableRecords(f"record {record.sequence} has the name {record.path!r}, no path in a datastore")
        last = record.sequence
        yield record


def is_path(path: bytes) -> bool:
    """Tell whether a name is a relative path that stays in the datastore: only such ones are ever recorded."""
    return not path or (b"\0" not in path and not {b"", b".", b".."} & set(path.split(b"/")))


def _put(transaction: Transaction, environment: Environment, batch: list[Record]) -> None:
    records, latest = environment.databases[RECORDS], environment.databases[LATEST]
    for record in batch:
        key = record.sequence.to_bytes(8, "big")
        if not transaction.put(name_key(record.path), key, db=latest, overwrite=False):
            raise UnusableRecords(f"record {record.sequence} has the name {record.path!r}, which an earlier one has")
        transaction.put(key, record.nanoseconds.to_bytes(8, "big") + record.path, db=records, append=True)


def _write_head(transaction: Transaction, environment: Environment, head: JournalHead) -> None:
    meta = environment.databases[META]
    transaction.put(GENERATION_KEY, (head.generation or uuid.uuid4().hex).encode(), db=meta)
    transaction.put(SEQUENCE_KEY, head.sequence.to_bytes(8, "big"), db=meta)
    if head.datastore is not None:
        transaction.put(DATASTORE_KEY, os.fsencode(head.datastore), db=meta)
