"""From what the pass-through sees to journal records: a name is recorded when it has reached its final form.

That is: it has its final name, and no writer has it open any more (PBS renames first and closes later, and mapped pages
arrive at the latest with the close). The rename of a manifest is answered only when everything before it is on stable
storage, since the kernel does not forward syncfs(2), the only durability call that PBS makes by default.
"""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Callable, Sequence

import trio

from mirrorfs.database.errors import DatabaseError
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
    topmost_foreign,
)
from mirrorfs.filesystem.system_calls import syncfs
from mirrorfs.journal.journal import JournalWriter
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_FILES = (ChunkName, QuarantinedChunkName, SnapshotFileName, GroupFileName, ForeignName)
# Recorded when a record could not be written: the whole datastore is to be looked at.
_EVERYTHING = b""
_FIRST_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 30.0


class Durability:
    """Puts the backing file system and the journal on stable storage; all who wait at a moment share one round."""

    def __init__(self, root_descriptor: int, journal: JournalWriter, others: Sequence[int] = ()) -> None:
        """`others` are descriptors on further file systems that hold a part of the datastore; the caller's to close."""
        self._descriptors = (root_descriptor, *others)
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
            reach("durability.after-sync")
            self._rounds_ended = number

    def _sync(self) -> None:
        reach("durability.before-sync")
        for descriptor in self._descriptors:
            syncfs(descriptor)
        reach("durability.after-syncfs")
        try:
            self._journal.sync()
        except DatabaseError as error:
            # The data is safe, and each start reconciles: the snapshot will be published all the same.
            log.error("%s", error)


class Interception:
    """The observer of the pass-through that keeps the journal.

    Failing to write the journal must not fail a backup: it is said loudly, and made good by a record that has the whole
    datastore looked at, as soon as the journal takes records again (`keep_repairing`).
    """

    def __init__(
        self,
        journal: JournalWriter,
        durability: Durability,
        recorded: Callable[[], None],
        broken_since: Callable[[float | None], None] = lambda _: None,
        appeared: Callable[[bytes], None] = lambda _: None,
    ) -> None:
        """`recorded` is called after each record: it tells the uploader that there is news.

        `broken_since` hears the time (seconds since the epoch) at which the journal could not be written, before the
        call that failed to is answered, and None when it can be written again. `appeared` hears each name that was made
        by mkdir or rename, before the call is answered.
        """
        self._journal = journal
        self._durability = durability
        self._recorded = recorded
        self._broken_since = broken_since
        self._appeared = appeared
        self._failed = trio.Event()
        self._missed = False

    @property
    def broken(self) -> bool:
        """Whether records are missing, and not made good yet."""
        return self._failed.is_set()

    async def keep_repairing(self) -> None:
        """Try, whenever the journal cannot be written, until it can; then have the whole datastore looked at."""
        while True:
            await self._failed.wait()
            delay = _FIRST_RETRY_SECONDS
            reason = ""
            while self.broken:
                await trio.sleep(delay)
                delay = min(delay * 2, _LONGEST_RETRY_SECONDS)
                reason = await self._try_to_repair(reason)

    async def _try_to_repair(self, known_reason: str) -> str:
        self._missed = False
        try:
            await trio.to_thread.run_sync(self._append_everything)
        except DatabaseError as error:
            if str(error) != known_reason:
                log.error("the journal still cannot be written: %s", error)
            return str(error)
        reach("repair.recorded")
        self._failed = trio.Event()
        if self._missed:
            # The reconcile that was just recorded may begin before what was not recorded meanwhile.
            self.record([_EVERYTHING])
        if not self.broken:
            log.warning("the journal can be written again; the whole datastore is reconciled")
            self._broken_since(None)
            reach("repair.ended")
            self._recorded()
        return ""

    def _append_everything(self) -> None:
        """Nobody else appends while the journal is broken: so this may be done in a thread."""
        reach("repair.before-record")
        try:
            self._journal.append(_EVERYTHING)
        except DatabaseError:
            reach("repair.before-reopen")
            self._journal.reopen()
            reach("repair.after-reopen")
            self._journal.append(_EVERYTHING)

    async def writer_opened(self, inode: int) -> None:
        """Nothing is final while it is written."""

    async def writer_closed(self, inode: int, paths: Sequence[bytes], remaining: int) -> None:
        """Record the names of a file when its last writer has gone."""
        if remaining == 0:
            self.record([path for path in paths if isinstance(classify(path), _FILES)])

    async def created(self, path: bytes, mode: int) -> None:
        """Record a new directory, link or special file."""
        name = classify(path)
        if isinstance(name, _FILES) or (stat.S_ISDIR(mode) and _is_of_the_tree(name)):
            self.record([path])
        self._appeared(path)

    async def truncated(self, path: bytes) -> None:
        """Record a file whose content changed without a writer."""
        if isinstance(classify(path), _FILES):
            self.record([path])

    async def removed(self, path: bytes, is_directory: bool) -> None:
        """Record a name that is gone."""
        if _is_of_the_tree(classify(path)):
            self.record([path])

    async def renamed(self, old: bytes, new: bytes, *, is_directory: bool, writers: int, exchanged: bool) -> None:
        """Record both names; a file that is still written is recorded under its new name when it is closed."""
        old_name, new_name = classify(old), classify(new)
        is_manifest = isinstance(new_name, SnapshotFileName) and new_name.is_manifest
        paths = [old] if _may_move(old, old_name, is_directory) else []
        if _may_move(new, new_name, is_directory) and (is_directory or exchanged or is_manifest or writers == 0):
            paths.append(new)
        self.record(paths)
        self._appeared(new)
        if is_manifest:
            await self._durability.reach()

    def record(self, paths: Sequence[bytes]) -> None:
        """Note that these names have changed, in one commit; a journal that cannot be written raises nothing."""
        paths = _what_counts(paths)
        if not paths:
            return
        if self.broken:
            self._missed = True
            return
        reach("interception.before-record")
        try:
            self._journal.append_all(paths)
        except DatabaseError as error:
            log.critical("the journal cannot be written, a full reconcile is needed when it can: %s", error)
            self._failed.set()
            self._broken_since(time.time())
            return
        reach("interception.after-record")
        self._recorded()


def _what_counts(paths: Sequence[bytes]) -> list[bytes]:
    """Have all that lies in a foreign directory be one name: else whoever fills one would fill the journal."""
    counting = []
    for path in paths:
        counts = topmost_foreign(path) if isinstance(classify(path), ForeignName) else path
        if counts is not None:
            counting.append(counts)
    return list(dict.fromkeys(counting))


def _may_move(path: bytes, name: Name, is_directory: bool) -> bool:
    # A directory `ns` holds namespaces, which move with it; chunk directories never move.
    return _is_of_the_tree(name) or (
        is_directory and isinstance(name, StructureName) and not path.startswith(b".chunks")
    )


def _is_of_the_tree(name: Name) -> bool:
    return not isinstance(name, InternalName | StructureName)
