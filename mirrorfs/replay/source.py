"""What is left of a state directory: journal and state, one of them, or a single file; live, dead or a copy."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

from mirrorfs.database.data_file import DataFile
from mirrorfs.database.directory import StateDirectory
from mirrorfs.database.errors import DatabaseError, NewerFormat, UnfinishedDatabase
from mirrorfs.journal.journal import RECORDS, Position, Record
from mirrorfs.journal.view import JournalView
from mirrorfs.state.identity import Identity
from mirrorfs.state.look import LookedAtState
from mirrorfs.state.state import StateTransaction

_DATA_FILE = "data.mdb"

Result = TypeVar("Result")


class NothingThere(DatabaseError):
    """Neither a journal nor a state is where they were looked for."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where journal (its data file) and state (its directory) were found; None for what is not there."""

    journal: str | None
    state: str | None


def find_place(path: str) -> Place:
    """Tell what is at `path`: a state directory, the directory of a journal or a state alone, or a journal's data file.

    Raises:
        NothingThere: none of these, or it may not be looked at.
    """
    if os.path.isfile(path):
        return Place(path, None)
    directory = StateDirectory(path)
    journal = os.path.join(directory.journal, _DATA_FILE)
    place = Place(_if_there(journal), directory.state if _if_there(os.path.join(directory.state, _DATA_FILE)) else None)
    if place.journal is not None or place.state is not None:
        return place
    alone = _if_there(os.path.join(path, _DATA_FILE))
    if alone is not None:
        return Place(alone, None) if _is_journal(alone) else Place(None, path)
    raise NothingThere(_why_nothing(path))


def _if_there(path: str) -> str | None:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise NothingThere(
            f"cannot look into {path}: {error.strerror}. A state directory belongs to root: run it as root, or give a "
            "copy that is yours"
        ) from error
    return path


def _is_journal(path: str) -> bool:
    file = DataFile(path)
    try:
        names = file.names(lambda damage: None)
    finally:
        file.close()
    # Of a damaged one nobody knows; a journal is the one that can be read nevertheless.
    return RECORDS in names or not names


def _why_nothing(path: str) -> str:
    if not os.path.lexists(path):
        return f"there is no {path}: give the state directory of a mirror (/var/lib/mirrorfs/NAME), or a copy of one"
    return (
        f"{path} holds neither a journal nor a state of mirrorfs (journal/{_DATA_FILE}, state/{_DATA_FILE}): give the "
        "state directory of a mirror (/var/lib/mirrorfs/NAME), or a copy of one"
    )


class Source:
    """Journal and state of a mirror, opened for looking as far as they are there; to be entered."""

    def __init__(self, path: str, place: Place) -> None:
        """Take what `find_place` has found at `path`."""
        self.path = path
        self.place = place
        self.journal: JournalView | None = None
        self.state: LookedAtState | None = None
        self.journal_trouble: str | None = None
        """Why the journal cannot be read at all although it is there, as a sentence."""
        self.state_trouble: str | None = None
        """Why the state cannot be read although it is there, as a sentence."""
        self.position: Position | None = None
        """How far the journal was dealt with, None if that is not known."""
        self.identity: Identity | None = None
        """What the state is about, None if that is not known."""
        self._opened = ExitStack()

    def __enter__(self) -> Source:
        """Open what is there. Raises NewerFormat; other trouble is noted."""
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._opened.close()

    def _open(self) -> None:
        if self.place.state is not None:
            # The state first: what it says is dealt with can then only be too little.
            try:
                self.state = LookedAtState(self.place.state)
                self._opened.callback(self.state.close)
                self.position, self.identity = self.state.view(_position_and_identity)
            except NewerFormat:
                raise
            except UnfinishedDatabase:
                self.state_trouble = f"the state in {self.place.state} was begun and never used"
            except DatabaseError as error:
                self.state_trouble = str(error)
        if self.place.journal is not None:
            try:
                self.journal = JournalView(self.place.journal)
                self._opened.callback(self.journal.close)
            except NewerFormat:
                raise
            except DatabaseError as error:
                self.journal_trouble = str(error)

    def ask_state(self, question: Callable[[StateTransaction], Result]) -> Result | None:
        """Return what the state answers; None where it is not there, or from where it has turned out damaged."""
        if self.state is None or self.state_trouble is not None:
            return None
        try:
            return self.state.view(question)
        except DatabaseError as error:
            self.state_trouble = str(error)
            return None

    @property
    def datastore(self) -> str | None:
        """The datastore that the mirror is of, None if nothing says so."""
        if self.identity is not None:
            return self.identity.datastore
        return None if self.journal is None else self.journal.datastore

    @property
    def position_is_known(self) -> bool:
        """Whether it can be told which records are dealt with: state and journal's generation are readable."""
        return self.state is not None and self.state_trouble is None and bool(self.journal and self.journal.generation)

    def is_dealt_with(self, record: Record) -> bool | None:
        """Tell whether the bucket has what the record is about, None if that is not known."""
        if not self.position_is_known or self.journal is None:
            return None
        if self.position is None or self.position.generation != self.journal.generation:
            # The state is new, or belongs to a journal before this one: it has dealt with nothing of it.
            return False
        return record.sequence <= self.position.sequence


def _position_and_identity(transaction: StateTransaction) -> tuple[Position | None, Identity | None]:
    return transaction.progress.position(), transaction.identity.get()
