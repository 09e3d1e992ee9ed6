"""From what the pass-through sees to journal records: a name is recorded when it has reached its final form.

That is: it has its final name, and no writer has it open any more (PBS renames first and closes later, and mapped pages
arrive at the latest with the close). The rename of a manifest is answered only when everything before it is on stable
storage, since the kernel does not forward syncfs(2), the only durability call that PBS makes by default.
"""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Sequence

import trio

from mirrorfs.datastore.names import (
    ChunkName,
    ForeignName,
    GroupFileName,
    InternalName,
    Name,
    QuarantinedChunkName,
    SnapshotFileName,
    StructureName,
    classify,
)
from mirrorfs.filesystem.system_calls import syncfs
from mirrorfs.journal.errors import JournalError
from mirrorfs.journal.journal import JournalWriter

log = logging.getLogger(__name__)

_FILES = (ChunkName, QuarantinedChunkName, SnapshotFileName, GroupFileName, ForeignName)
# Recorded when a record could not be written: the whole datastore is to be looked at.
_EVERYTHING = b""


class Durability:
    """Puts the backing file system and the journal on stable storage; all who wait at a moment share one round."""

    def __init__(self, root_descriptor: int, journal: JournalWriter) -> None:
        self._root_descriptor = root_descriptor
        self._journal = journal
        self._running = trio.Lock()
        self._rounds_begun = 0
        self._rounds_ended = 0
        self._failures = 0
        self._failure: OSError | None = None

    async def reach(self) -> None:
        """Return when everything that was done before the call is on stable storage.

        Raises:
            OSError: the disk has failed to store it.
        """
        # A round that runs already may have passed what we did; the next one has not.
        needed = self._rounds_begun + 1
        failures = self._failures
        async with self._running:
            # The kernel tells of lost data once a descriptor; it may have been the data of all who wait.
            if self._failure is not None and self._failures > failures:
                raise OSError(self._failure.errno, self._failure.strerror) from self._failure
            if self._rounds_ended >= needed:
                return
            self._rounds_begun += 1
            number = self._rounds_begun
            try:
                await trio.to_thread.run_sync(self._sync)
            except OSError as error:
                self._failures += 1
                self._failure = error
                raise
            self._rounds_ended = number

    def _sync(self) -> None:
        syncfs(self._root_descriptor)
        try:
            self._journal.sync()
        except JournalError as error:
            # The data is safe, and each start reconciles: the snapshot will be published all the same.
            log.error("%s", error)


class Interception:
    """The observer of the pass-through that keeps the journal.

    Failing to write the journal must not fail a backup: it is said loudly, and made good by a record that has the whole
    datastore looked at, as soon as the journal takes records again.
    """

    def __init__(self, journal: JournalWriter, durability: Durability, recorded: Callable[[], None]) -> None:
        """`recorded` is called after each record: it tells the uploader that there is news."""
        self._journal = journal
        self._durability = durability
        self._recorded = recorded
        self.broken = False

    async def writer_opened(self, inode: int) -> None:
        """Nothing is final while it is written."""

    async def writer_closed(self, inode: int, paths: Sequence[bytes], remaining: int) -> None:
        """Record the names of a file when its last writer has gone."""
        if remaining == 0:
            self._record([path for path in paths if isinstance(classify(path), _FILES)])

    async def created(self, path: bytes, mode: int) -> None:
        """Record a new directory, link or special file."""
        name = classify(path)
        if isinstance(name, _FILES) or (stat.S_ISDIR(mode) and _is_of_the_tree(name)):
            self._record([path])

    async def truncated(self, path: bytes) -> None:
        """Record a file whose content changed without a writer."""
        if isinstance(classify(path), _FILES):
            self._record([path])

    async def removed(self, path: bytes, is_directory: bool) -> None:
        """Record a name that is gone."""
        if _is_of_the_tree(classify(path)):
            self._record([path])

    async def renamed(self, old: bytes, new: bytes, *, is_directory: bool, writers: int, exchanged: bool) -> None:
        """Record both names; a file that is still written is recorded under its new name when it is closed."""
        old_name, new_name = classify(old), classify(new)
        is_manifest = isinstance(new_name, SnapshotFileName) and new_name.is_manifest
        paths = [old] if _may_move(old, old_name, is_directory) else []
        if _may_move(new, new_name, is_directory) and (is_directory or exchanged or is_manifest or writers == 0):
            paths.append(new)
        self._record(paths)
        if is_manifest:
            await self._durability.reach()

    def _record(self, paths: Sequence[bytes]) -> None:
        if not paths:
            return
        try:
            self._journal.append_all([_EVERYTHING, *paths] if self.broken else paths)
        except JournalError as error:
            if not self.broken:
                log.critical("the journal cannot be written, a full reconcile is needed when it can: %s", error)
            self.broken = True
            return
        if self.broken:
            log.warning("the journal can be written again; the whole datastore is reconciled")
        self.broken = False
        self._recorded()


def _may_move(path: bytes, name: Name, is_directory: bool) -> bool:
    # A directory `ns` holds namespaces, which move with it; chunk directories never move.
    return _is_of_the_tree(name) or (
        is_directory and isinstance(name, StructureName) and not path.startswith(b".chunks")
    )


def _is_of_the_tree(name: Name) -> bool:
    return not isinstance(name, InternalName | StructureName)
