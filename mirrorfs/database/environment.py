"""One LMDB environment that grows by itself, checks its format version and converts LMDB's errors once."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import lmdb

from mirrorfs import interpreter, own_files
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError, NewerFormat, UnfinishedDatabase
from mirrorfs.database.examination import DAMAGED
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

Result = TypeVar("Result")
if TYPE_CHECKING:
    Cursor = lmdb.Cursor[bytes]
    Transaction = lmdb.Transaction[bytes]
    Database = lmdb._Database
else:
    # Generic in lmdb's stubs only.
    Cursor = lmdb.Cursor
    Transaction = lmdb.Transaction
    Database = object

_FORMAT_KEY = b"format"
_INITIAL_MAP_SIZE = 16 * 1024 * 1024
_MAXIMUM_READERS = 64
_FILES = ("data.mdb", "lock.mdb")
# Not SIGKILL, for example: the kernel sends that to whoever is at hand when memory is short.
_SIGNALS_OF_DAMAGE = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE)


class Environment:
    """An LMDB environment with named databases.

    `durable` environments sync at each commit. The others commit into the page cache, which a killed
    process survives and a power cut does not, until `sync` is called.

    Units of work are functions of a transaction, because they are repeated after the map has grown:
    they must have no effect but on the transaction.
    """

    def __init__(
        self,
        directory: str,
        *,
        databases: Sequence[bytes],
        format_version: int,
        read_only: bool = False,
        durable: bool = True,
        initial_map_size: int = _INITIAL_MAP_SIZE,
    ) -> None:
        """Open, and unless `read_only` create, the environment in `directory` (mode 0700, files 0600).

        Raises:
            NewerFormat: it was written by a newer version.
            UnfinishedDatabase: its maker was killed before it was complete (read only).
            DatabaseCorrupt: the files are not an LMDB environment, or a damaged one.
            DatabaseError: it is missing (read only) or cannot be opened.
        """
        self.directory = directory
        self._names = tuple(databases)
        self._format_version = format_version
        self._read_only = read_only
        self._durable = durable
        self._initial_map_size = initial_map_size
        self._map_use = _MapUse()
        self._open()

    def _open(self) -> None:
        directory = self.directory
        try:
            _check_files(directory, make=not self._read_only)
            self._environment = lmdb.open(
                directory,
                map_size=max(self._initial_map_size, _data_file_size(directory)),
                max_dbs=len(self._names) + 1,
                max_readers=_MAXIMUM_READERS,
                readonly=self._read_only,
                create=not self._read_only,
                mode=0o600,
                sync=self._durable,
                metasync=self._durable,
            )
        except (lmdb.InvalidError, lmdb.VersionMismatchError, lmdb.CorruptedError) as error:
            raise _damage(directory, error) from error
        except lmdb.Error as error:
            raise DatabaseError(f"cannot open the database in {directory}: {error}") from error
        except own_files.NotOwn as error:
            raise DatabaseError(str(error)) from error
        except OSError as error:
            raise DatabaseError(f"cannot open the database in {directory}: {error.strerror}") from error
        reach("database.opened")
        try:
            self._check_length()
            self.databases = self._open_databases(self._names, self._format_version, self._read_only)
        except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            self._environment.close()
            raise _damage(directory, error) from error
        except lmdb.NotFoundError as error:
            self._environment.close()
            raise UnfinishedDatabase(f"the database in {directory} is not complete: {error}") from error
        except (lmdb.Error, OSError) as error:
            self._environment.close()
            raise DatabaseError(f"cannot open the database in {directory}: {error}") from error
        except DatabaseError:
            self._environment.close()
            raise

    def reopen(self) -> None:
        """Close the environment and open it again: one in which a write has failed badly takes no more (MDB_PANIC).

        Waits for all who use it in other threads. If it raises, the environment stays closed: all work on it fails with
        DatabaseError until `reopen` succeeds.

        Raises:
            DatabaseError and its kinds: as when it is made.
        """
        with self._map_use.alone():
            self._environment.close()
            self._open()

    def _check_length(self) -> None:
        """Make sure that LMDB finds every page: to read a mapped page behind the end of the file kills the process.

        A sound file can be too short as well, since LMDB never writes pages that one transaction took and gave back.
        Whether it is sound is left to another process, because LMDB ends its process at some kinds of damage.
        """
        needed = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
        size = _data_file_size(self.directory)
        if size >= needed:
            return
        try:
            examine(self.directory)
        except DatabaseCorrupt as error:
            raise _damage(self.directory, "its file has been cut off") from error
        descriptor = own_files.open_file(os.path.join(self.directory, "data.mdb"), os.O_RDWR)
        try:
            # Unlike a truncation to the new length, this takes nothing away from what a writer appends meanwhile.
            os.posix_fallocate(descriptor, size, needed - size)
        finally:
            os.close(descriptor)

    def _open_databases(self, names: Sequence[bytes], format_version: int, read_only: bool) -> dict[bytes, Database]:
        # The version first: nothing is to be added to what a newer mirrorfs made.
        databases = {b"format": self._environment.open_db(b"format", create=not read_only)}
        self._check_format(databases[b"format"], format_version, read_only)
        for name in names:
            databases[name] = self._environment.open_db(name, create=not read_only)
        return databases

    def _check_format(self, database: Database, supported: int, read_only: bool) -> None:
        with self._environment.begin(db=database) as transaction:
            stored = transaction.get(_FORMAT_KEY)
        if stored is None and not read_only:
            with self._environment.begin(db=database, write=True) as transaction:
                transaction.put(_FORMAT_KEY, str(supported).encode())
            reach("database.format-recorded")
            return
        if stored is None or not stored.isdigit():
            raise _damage(self.directory, "it has no readable format version")
        if int(stored) > supported:
            raise NewerFormat(
                f"the database in {self.directory} has format {int(stored)}, this mirrorfs knows up to "
                f"{supported}: install the newer mirrorfs again, or give another --state-dir"
            )

    def view(self, work: Callable[[Transaction], Result]) -> Result:
        """Run `work` on a read transaction, which sees one consistent state, and return its result.

        Raises:
            DatabaseError: the database cannot be read.
            DatabaseCorrupt: LMDB met a damaged page.
        """
        with self._translated_errors("read"):
            while True:
                try:
                    with self._map_use.shared(), self._environment.begin(buffers=False) as transaction:
                        return work(transaction)
                except lmdb.MapResizedError:
                    self._adopt_map_size()

    def update(self, work: Callable[[Transaction], Result]) -> Result:
        """Run `work` on a write transaction, commit, and return its result; the map grows as needed.

        Raises:
            DatabaseError: the commit failed (disk full, input/output error); nothing of it was stored.
            DatabaseCorrupt: LMDB met a damaged page.
        """
        with self._translated_errors("write"):
            while True:
                try:
                    with self._map_use.shared(), self._environment.begin(write=True, buffers=False) as transaction:
                        return work(transaction)
                except lmdb.MapFullError:
                    self._grow()
                except lmdb.MapResizedError:
                    self._adopt_map_size()

    @contextmanager
    def _translated_errors(self, operation: str) -> Iterator[None]:
        try:
            yield
        except (lmdb.CorruptedError, lmdb.PageNotFoundError) as error:
            raise _damage(self.directory, error) from error
        except lmdb.Error as error:
            raise DatabaseError(f"cannot {operation} the database in {self.directory}: {error}") from error

    def _grow(self) -> None:
        with self._map_use.alone():
            size = self._environment.info()["map_size"] * 2
            reach("database.before-growth")
            self._environment.set_mapsize(size)
            reach("database.after-growth")
        log.info("%s: database map grown to %d MiB", self.directory, size >> 20)

    def _adopt_map_size(self) -> None:
        with self._map_use.alone():
            self._environment.set_mapsize(0)

    def sync(self) -> None:
        """Put every commit so far on stable storage; blocks for as long as the disk needs."""
        with self._translated_errors("sync"), self._map_use.shared():
            self._environment.sync(True)

    def entries(self, database: bytes) -> int:
        """Count the entries of a named database."""
        return self.view(lambda transaction: int(transaction.stat(self.databases[database])["entries"]))

    def clear_dead_readers(self) -> None:
        """Free reader slots of killed processes, which would keep old pages from being reused. Raises DatabaseError."""
        with self._translated_errors("clear the readers of"), self._map_use.shared():
            self._environment.reader_check()

    def close(self) -> None:
        """Close the environment; it must not be used any more."""
        self._environment.close()


class _MapUse:
    """LMDB's map must not change its size while any thread of this process uses it.

    Whoever wants to change it goes before new users, or busy threads could keep it waiting for ever; a thread that uses
    the map already may use it once more meanwhile.
    """

    def __init__(self) -> None:
        self._users = 0
        self._waiting = 0
        self._of_this_thread = threading.local()
        self._changed = threading.Condition()

    @contextmanager
    def shared(self) -> Iterator[None]:
        depth: int = getattr(self._of_this_thread, "depth", 0)
        with self._changed:
            if depth == 0:
                self._changed.wait_for(lambda: self._waiting == 0)
            self._users += 1
        self._of_this_thread.depth = depth + 1
        try:
            yield
        finally:
            self._of_this_thread.depth = depth
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._changed:
            self._waiting += 1
            try:
                self._changed.wait_for(lambda: self._users == 0)
                yield
            finally:
                self._waiting -= 1
                self._changed.notify_all()


def examine(directory: str, *, whole: bool = True) -> None:
    """Have another process read an environment, because some kinds of damage end the process that reads them.

    It reads everything, or, not `whole`, what opening and the database `meta` need. Nobody may write meanwhile.

    Raises:
        DatabaseCorrupt: it cannot be read to its end, or the process was ended by it.
        DatabaseError: that could not be found out: no process or no memory to be had, or the disk does not answer.
    """
    try:
        _check_files(directory, make=False)
        ended = subprocess.run(
            interpreter.command(
                "mirrorfs.database.examination", os.path.abspath(directory), *([] if whole else ["meta"])
            ),
            env=interpreter.environment(),
            cwd=interpreter.WORKING_DIRECTORY,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
    except own_files.NotOwn as error:
        raise DatabaseError(str(error)) from error
    except OSError as error:
        raise DatabaseError(f"cannot examine the database in {directory}: {error.strerror}") from error
    if ended.returncode == DAMAGED:
        raise _damage(directory, ended.stderr.decode(errors="replace").strip())
    if -ended.returncode in _SIGNALS_OF_DAMAGE:
        raise _damage(directory, "reading it ended the process that did")
    if ended.returncode != 0:
        raise DatabaseError(f"the database in {directory} could not be examined (exit code {ended.returncode})")


def _check_files(directory: str, *, make: bool) -> None:
    """Make sure that LMDB, which opens its files by their names, opens files of root's. Raises OSError."""
    if make:
        own_files.make_directory(directory)
    else:
        own_files.check_way(directory)
    for name in _FILES:
        own_files.check_file(os.path.join(directory, name))


def _damage(directory: str, why: object) -> DatabaseCorrupt:
    return DatabaseCorrupt(f"the database in {directory} is damaged: {why}", directory)


def _data_file_size(directory: str) -> int:
    try:
        return os.stat(os.path.join(directory, "data.mdb")).st_size
    except FileNotFoundError:
        return 0
