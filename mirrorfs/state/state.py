"""The state: what the bucket is known to hold, who references which chunk, and what cannot be published and why.

Written by the uploader alone. Every operation takes a transaction of `State.update` or `State.view`, so that a
caller decides what belongs together in one commit; commits are synced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from typing import TypeVar

from mirrorfs.database.environment import Database, Environment, Transaction
from mirrorfs.database.errors import DatabaseCorrupt
from mirrorfs.state import chunks, contents, counting, locks, problems, quarantine, retention, snapshots
from mirrorfs.state.chunks import ChunkRecords
from mirrorfs.state.contents import ContentRecords
from mirrorfs.state.counting import CountingRecords, ReferenceHolder
from mirrorfs.state.entries import META
from mirrorfs.state.identity import IdentityRecords
from mirrorfs.state.locks import LockRecords
from mirrorfs.state.problems import ForeignRecords, ProblemRecords
from mirrorfs.state.progress import ProgressRecords
from mirrorfs.state.quarantine import QuarantineRecords
from mirrorfs.state.retention import RetentionRecords
from mirrorfs.state.scrub import ScrubRecords
from mirrorfs.state.snapshots import SnapshotRecords, SnapshotState

FORMAT_VERSION = 1

DATABASES = (
    META,
    *chunks.DATABASES,
    *contents.DATABASES,
    *snapshots.DATABASES,
    *problems.DATABASES,
    *quarantine.DATABASES,
    *counting.DATABASES,
    *retention.DATABASES,
    *locks.DATABASES,
)

Result = TypeVar("Result")


class State:
    """The state environment. Opened by the uploader for writing, by the command line read only."""

    def __init__(self, directory: str, *, read_only: bool = False) -> None:
        """Open the state in `directory`. Raises what Environment raises."""
        self._directory = directory
        self._environment = Environment(
            directory, databases=DATABASES, format_version=FORMAT_VERSION, read_only=read_only
        )

    def update(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run `work` in one write transaction; on return it is on stable storage. Blocks for a disk sync."""
        with self._said_to_be_damaged():
            return self._environment.update(lambda transaction: work(self._transaction(transaction)))

    def view(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run `work` in a read transaction."""
        with self._said_to_be_damaged():
            return self._environment.view(lambda transaction: work(self._transaction(transaction)))

    def _transaction(self, transaction: Transaction) -> StateTransaction:
        return StateTransaction(transaction, self._environment.databases)

    @contextmanager
    def _said_to_be_damaged(self) -> Iterator[None]:
        """Have each DatabaseCorrupt say that it is about this state, whoever found it."""
        try:
            yield
        except DatabaseCorrupt as error:
            error.directory = self._directory
            raise

    def close(self) -> None:
        """Close the state."""
        self._environment.close()


class StateTransaction:
    """The records of a state by subject, inside one transaction, and the operations that span several subjects."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._transaction = transaction
        self._databases = databases

    @cached_property
    def identity(self) -> IdentityRecords:
        """Which datastore and bucket the state is about, and which claims in the bucket are its own."""
        return IdentityRecords(self._transaction, self._databases)

    @cached_property
    def progress(self) -> ProgressRecords:
        """How far the journal is dealt with, and whether the bucket has been taken in and compared."""
        return ProgressRecords(self._transaction, self._databases)

    @cached_property
    def chunks(self) -> ChunkRecords:
        """What is known of each chunk object."""
        return ChunkRecords(self._transaction, self._databases, self.locks)

    @cached_property
    def contents(self) -> ContentRecords:
        """What is known of each object below `.cnt`."""
        return ContentRecords(self._transaction, self._databases)

    @cached_property
    def snapshots(self) -> SnapshotRecords:
        """Where each snapshot stands on its way into the bucket and out of it."""
        return SnapshotRecords(self._transaction, self._databases)

    @cached_property
    def counting(self) -> CountingRecords:
        """Who references chunks: references counted and given back, in parts where they are many."""
        return CountingRecords(self._transaction, self._databases, self.chunks)

    @cached_property
    def retention(self) -> RetentionRecords:
        """What is leaving the bucket, is kept for a while, is held back, or cannot be deleted."""
        return RetentionRecords(self._transaction, self._databases)

    @cached_property
    def locks(self) -> LockRecords:
        """Until when the objects of snapshots and chunks are locked."""
        return LockRecords(self._transaction, self._databases)

    @cached_property
    def quarantine(self) -> QuarantineRecords:
        """Which chunks PBS found corrupt in the datastore."""
        return QuarantineRecords(self._transaction, self._databases, self.chunks)

    @cached_property
    def problems(self) -> ProblemRecords:
        """What cannot be mirrored now, and why."""
        return ProblemRecords(self._transaction, self._databases)

    @cached_property
    def foreign(self) -> ForeignRecords:
        """Which names in the datastore PBS would not make."""
        return ForeignRecords(self._transaction, self._databases)

    def commit_snapshot(self, path: str, snapshot: SnapshotState, digests: Iterable[bytes]) -> None:
        """Note where a snapshot stands and count its references; `digests` are those that are not counted yet."""
        self.snapshots.set(path, snapshot)
        # It may have other objects than those that were locked.
        self.locks.forget_snapshot(path)
        self.counting.end_count(ReferenceHolder(path), digests)

    def chunk_directories(self) -> set[int]:
        """Return the numbers of the directories of which any chunk is known, as object or in quarantine."""
        return self.chunks.directories() | self.quarantine.directories()

    @cached_property
    def scrub(self) -> ScrubRecords:
        """Which part of the bucket was read when, and where the reading is."""
        return ScrubRecords(self._transaction, self._databases)

    def forget_bucket(self) -> None:
        """Forget everything known of the bucket: it was changed by somebody else, or this state is an old copy."""
        for records in (
            self.chunks,
            self.contents,
            self.snapshots,
            self.counting,
            self.retention,
            self.locks,
            self.progress,
            self.scrub,
        ):
            records.forget_bucket()
