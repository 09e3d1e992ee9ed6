"""A database for whoever only looks: what LMDB's read transactions offer, read from the data file without LMDB.

Nothing is written, also not to the lock file, and no reader keeps the writer from using pages again: see data_file.py.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import NoReturn

from mirrorfs.database.data_file import DataFile, PageDamage
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError, NewerFormat


class Look:
    """An environment, looked at. The methods are those of an LMDB transaction, as far as records use them; a database
    is meant by its name, and one that is not there is empty.

    All of them raise DatabaseCorrupt where what they need cannot be read. The environment may be written meanwhile:
    each answer is then as of its own moment.
    """

    def __init__(self, directory: str, *, format_version: int) -> None:
        """Open the environment in `directory`; `close` it.

        Raises:
            NewerFormat: it was written by a newer version.
            UnfinishedDatabase, DatabaseCorrupt, DatabaseError: see DataFile.
        """
        self.directory = directory
        self._file = DataFile(os.path.join(directory, "data.mdb"))
        try:
            self._check_format(format_version)
        except DatabaseError:
            self._file.close()
            raise

    def _check_format(self, supported: int) -> None:
        stored = self.get(b"format", db=b"format")
        if stored is not None and stored.isdigit() and int(stored) > supported:
            raise NewerFormat(
                f"the database in {self.directory} has format {int(stored)}, this mirrorfs knows up to {supported}: "
                "use the mirrorfs that wrote it, or a newer one"
            )

    def get(self, key: bytes, *, db: bytes) -> bytes | None:
        """Return the value of a key, None if there is none."""
        return self._file.get(db, key, self._refuse)

    def cursor(self, *, db: bytes) -> LookCursor:
        """Return a cursor over a database, which stands nowhere yet."""
        return LookCursor(lambda first: self._file.items(db, self._refuse, first=first))

    def stat(self, db: bytes) -> dict[str, int]:
        """Return how many `entries` a database has."""
        return {"entries": self._file.entries(db, self._refuse)}

    def names(self) -> list[bytes]:
        """Return the names of the databases."""
        return self._file.names(self._refuse)

    def _refuse(self, damage: PageDamage) -> NoReturn:
        raise DatabaseCorrupt(f"the database in {self.directory} is damaged: {damage}", self.directory)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class LookCursor:
    """A cursor that goes forward. Iterating begins where it stands, or with the first entry."""

    def __init__(self, read: Callable[[bytes], Iterator[tuple[bytes, bytes]]]) -> None:
        self._read = read
        self._current: tuple[bytes, bytes] | None = None
        self._following: Iterator[tuple[bytes, bytes]] = iter(())

    def set_range(self, key: bytes) -> bool:
        """Go to the first key that is not less than `key`; tells whether there is one."""
        self._following = self._read(key)
        self._current = next(self._following, None)
        return self._current is not None

    def key(self) -> bytes:
        """Return the key at which it stands, empty if it stands nowhere."""
        return b"" if self._current is None else self._current[0]

    def value(self) -> bytes:
        """Return the value at which it stands, empty if it stands nowhere."""
        return b"" if self._current is None else self._current[1]

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        if self._current is None and not self.set_range(b""):
            return
        while self._current is not None:
            yield self._current
            self._current = next(self._following, None)
