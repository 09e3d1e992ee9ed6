"""Errors of what lies in a state directory; every message is a sentence for an administrator."""


class DatabaseError(Exception):
    """The state directory, or journal or state in it, cannot be used; the message says why and what to do next."""


class StateDirectoryBusy(DatabaseError):
    """Another mirrorfs process holds the lock of this state directory."""


class NewerFormat(DatabaseError):
    """The directory was written by a newer mirrorfs than this one."""


class DatabaseCorrupt(DatabaseError):
    """A database file is damaged: LMDB, or whoever reads an entry, cannot make sense of it.

    A disk that is full or that cannot be read is never the reason. `directory` is the environment's.
    """

    def __init__(self, message: str, directory: str | None = None) -> None:
        super().__init__(message)
        self.directory = directory


class UnfinishedDatabase(DatabaseError):
    """Whoever made the database was killed meanwhile: it holds nothing, and opening it for writing completes it."""
