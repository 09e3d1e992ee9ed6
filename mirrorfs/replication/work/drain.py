"""From the journal to the worklist, from the worklist to the workers, and the position that follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.journal.journal import JournalSource, Position, Record
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import ChunkItem, Item, item_of, names_manifest
from mirrorfs.replication.work.worklist import UNSEEN, WATCHED, Worklist
from mirrorfs.steps import reach

_JOURNAL_BATCH = 1000
_POSITION_PAUSE_SECONDS = 0.2


class Handler(Protocol):
    """Whoever does what is listed: the mirror, which is put together from rooms that know this one."""

    @property
    def most_chunks_a_removal(self) -> int:
        """How many chunks `remove_chunks` removes with one request."""

    @property
    def quiet_before_removals(self) -> float:
        """For how many seconds no snapshot must have gone before those that have are judged together."""

    async def handle(self, item: Item) -> None:
        """Have the bucket agree with the datastore about one item; what has to leave the bucket is postponed."""

    async def remove_chunks(self, items: Sequence[ChunkItem]) -> None:
        """Remove chunks from the bucket that are gone and that nobody needs."""

    async def remove_snapshots(self, snapshots: Sequence[SnapshotId]) -> None:
        """Remove snapshots from the bucket that are gone, as far as they may go."""

    async def reconcile(self, sequence: int) -> None:
        """List everything that may differ, standing for the journal's `sequence`."""


class Drain:
    """Reads the journal as fast as there is room, and notes how far everything before a record is dealt with."""

    def __init__(
        self,
        journal: JournalSource,
        state: CommittedState,
        worklist: Worklist,
        handler: Handler,
        *,
        mounted_at: int = 0,
        begin_after: int | None = None,
    ) -> None:
        """`mounted_at` is the newest sequence that the journal had when what mounts the datastore opened it;
        `begin_after` the record after which to begin, None for the state's position.
        """
        self._journal = journal
        self._mounted_at = mounted_at
        self._state = state
        self._worklist = worklist
        self._handler = handler
        self._news = trio.Event()
        self._reconciled = False
        position = state.view(lambda transaction: transaction.progress.position())
        known = position is not None and position.generation == journal.generation
        self._follows_another_journal = position is not None and not known
        self._saved = position.sequence if position is not None and known else 0
        self._read = self._saved if begin_after is None else begin_after
        self._began_at = self._read

    def wake(self) -> None:
        """Say that the journal has new records."""
        self._news.set()

    async def intake(self) -> None:
        """List what the journal says, for ever."""
        while True:
            await self._worklist.room()
            # Replaced before reading: what comes while we read sets the new one.
            self._news = trio.Event()
            newest = await trio.to_thread.run_sync(self._journal.last_sequence)
            records = await trio.to_thread.run_sync(self._journal.read, self._read, _JOURNAL_BATCH)
            reach("drain.record-read")
            for record in records:
                item = item_of(record.path)
                if item is not None:
                    self._worklist.add(item, record.sequence, seen_at=self._seen_at(record, item))
                self._read = record.sequence
            reach("drain.records-listed")
            has_news = bool(records) or self._read < newest
            if not records:
                # What was between has been trimmed, on behalf of a state that is lost.
                self._read = max(self._read, newest)
            self._worklist.has_read(self._read)
            if has_news:
                self._worklist.notify()
            else:
                await self._news.wait()

    def _seen_at(self, record: Record, item: Item) -> float:
        """Tell when a record says that a snapshot, or all in a directory, may have gone.

        A record of an earlier mount may be of the snapshot's coming, and what came may have gone while nothing was
        mounted; its time tells whether that is so. What this mount has recorded did not change behind its back.
        """
        if isinstance(item, SnapshotId) and not names_manifest(record.path):
            return UNSEEN
        return WATCHED if record.sequence > self._mounted_at else record.time

    async def handle_chunks(self) -> None:
        """Handle chunks, for ever."""
        while True:
            item = await self._worklist.take_chunk()
            await self._handler.handle(item)
            self._worklist.done(item)

    async def handle_tree(self, *, only_told: bool = False) -> None:
        """Handle everything that is not a chunk, for ever; `only_told`: not what is only come upon."""
        while True:
            item = await self._worklist.take_tree(only_told=only_told)
            await self._handler.handle(item)
            self._worklist.done(item)

    async def handle_chunk_removals(self) -> None:
        """Remove chunks from the bucket that are gone from the datastore, for ever."""
        while True:
            items = await self._worklist.take_chunk_removals(self._handler.most_chunks_a_removal)
            await self._handler.remove_chunks(items)
            for item in items:
                self._worklist.done(item)

    async def handle_snapshot_removals(self) -> None:
        """Remove snapshots from the bucket that are gone from the datastore, for ever."""
        while True:
            snapshots = await self._worklist.take_snapshot_removals(self._handler.quiet_before_removals)
            await self._handler.remove_snapshots(snapshots)
            for snapshot in snapshots:
                self._worklist.done(snapshot)

    async def reconcile(self) -> None:
        """List everything that may differ; `settled` waits for this to have been done once."""
        # All of it may be older than what the journal held at the start, however far it has been read by now.
        sequence = self._began_at
        await self._handler.reconcile(sequence)
        self._reconciled = True
        self._worklist.notify()

    def leave_out_reconciling(self) -> None:
        """Have `settled` wait for nothing but what the journal holds."""
        self._reconciled = True
        self._worklist.notify()

    async def reconcile_again(self) -> None:
        """List everything that may differ now, and wait until that and all that the journal holds is dealt with."""
        sequence = await trio.to_thread.run_sync(self._journal.last_sequence)
        await self._handler.reconcile(sequence)
        await self.settled()

    @property
    def follows_another_journal(self) -> bool:
        """Whether the state was last brought up to date from another journal than this one.

        Then that one is lost, or was given up after the machine went down: a moment from which a state may have come
        back older than the bucket, if its disk does not keep what it says it has.
        """
        return self._follows_another_journal

    @property
    def reconciled(self) -> bool:
        """Whether the datastore has been looked through since the start."""
        return self._reconciled

    @property
    def read_up_to(self) -> int:
        """The last record that has been listed as work."""
        return self._read

    @property
    def position(self) -> Position:
        """How far the journal is dealt with, as the state has it."""
        return Position(self._journal.generation, self._saved)

    async def save_position(self, saved: Callable[[Position], None]) -> None:
        """Keep the state's position up with the work, for ever, and tell each new one when it is durable."""
        while True:
            dealt_with = self._dealt_with()
            if dealt_with <= self._saved:
                await self._worklist.changed()
                continue
            position = Position(self._journal.generation, dealt_with)
            await self._save(position)
            saved(position)
            # Each position costs a disk sync, and a position that lags costs next to nothing.
            await trio.sleep(_POSITION_PAUSE_SECONDS)

    async def save_position_now(self) -> None:
        """Bring the state's position up to date with the work."""
        dealt_with = self._dealt_with()
        if dealt_with > self._saved:
            await self._save(Position(self._journal.generation, dealt_with))

    def _dealt_with(self) -> int:
        oldest = self._worklist.oldest_sequence()
        return self._read if oldest is None else oldest - 1

    async def _save(self, position: Position) -> None:
        reach("position.before-save")
        await self._state.apply(lambda transaction: transaction.progress.set_position(position))
        reach("position.after-save")
        self._saved = position.sequence

    async def settled(self) -> None:
        """Wait until all that the journal holds at this moment, and all that reconciling found, is dealt with."""
        sequence = await trio.to_thread.run_sync(self._journal.last_sequence)
        self.wake()
        while not (self._reconciled and self._read >= sequence and self._worklist.settled(sequence)):
            await self._worklist.changed()
