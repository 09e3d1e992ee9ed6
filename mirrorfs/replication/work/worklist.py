"""What is to be done, in which order, and how far that carries the journal's position.

One item is never handled twice at the same time; if its name changes again meanwhile, it is handled once more.
What an item leads to stands for the same journal sequence as the item itself, so that whoever waits for a record waits
for everything that follows from it.

A name that is gone leaves the bucket later than what its move has brought under another name gets there: its removal is
postponed until the journal has been read up to the moment when the name was seen to be gone, and all that has been
listed by then, chunks and other removals apart, has been handled. Only then it waits in a lane of its own.

What a record tells of goes before what is only come upon, of which a first mirror may have days; and of the snapshots
of a group that wait, the newest goes first.
"""

from __future__ import annotations

import heapq
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Generic, TypeVar

import trio

from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.replication.work.items import ChunkItem, Item
from mirrorfs.replication.work.lanes import Lane, TreeLane

# Beyond this many items the journal is left unread: what is not read needs no memory.
_ROOM = 10_000
# The same for removals that nothing but the store holds up. What is postponed cannot count: it waits for the reading.
_REMOVALS_ROOM = 50_000
_SPARE_NUMBERS = 64
# For so long, in seconds, chunk removals let uploads go first.
_LONGEST_REMOVAL_WAIT = 10.0
# Snapshots that go one after another are waited for up to so many times the quiet that ends it.
_LONGEST_WAVE = 12

UNSEEN = -math.inf
"""When a name was last seen to change that was only come upon."""
WATCHED = math.inf
"""The same for a name that changed while this mount watched: later than anything that is known of it."""

Removable = TypeVar("Removable", ChunkItem, SnapshotId)


@dataclass(frozen=True, slots=True)
class _Postponed:
    """A removal that must wait until what the journal says up to `until` has been handled."""

    until: int
    sequence: int


@dataclass(frozen=True, slots=True)
class _Ready:
    """A removal that may be taken, since a moment of the worklist's clock."""

    since: float
    sequence: int


class _Removals(Generic[Removable]):
    """Names of one kind that are gone: those that must wait, and those that may be removed from the bucket now."""

    def __init__(self) -> None:
        self.postponed: OrderedDict[Removable, _Postponed] = OrderedDict()
        self.ready: OrderedDict[Removable, _Ready] = OrderedDict()
        self.under_way: set[Removable] = set()
        self.changed = trio.Event()

    def __len__(self) -> int:
        return len(self.postponed) + len(self.ready) + len(self.under_way)

    def postpone(self, item: Removable, until: int, sequence: int) -> None:
        if self.postponed:
            # Two who ask the journal may come in the other order: the first must never wait longer than the next.
            until = max(until, next(reversed(self.postponed.values())).until)
        self.postponed[item] = _Postponed(until, sequence)

    def make_ready(self, is_over: Callable[[int], bool], now: float) -> None:
        """Let those go whose wait is over."""
        while self.postponed:
            item, postponed = next(iter(self.postponed.items()))
            if not is_over(postponed.until):
                return
            del self.postponed[item]
            self.ready[item] = _Ready(now, postponed.sequence)
            self.changed.set()

    def recall(self, item: Removable) -> int | None:
        """Take out a removal that is not under way, and return its sequence; None when there is none."""
        found = self.postponed.pop(item, None) or self.ready.pop(item, None)
        return None if found is None else found.sequence

    def take(self, maximum: int) -> dict[Removable, int]:
        """Take the oldest ones, with their sequences."""
        count = min(maximum, len(self.ready))
        taken = dict(self.ready.popitem(last=False) for _ in range(count))
        self.under_way.update(taken)
        return {item: ready.sequence for item, ready in taken.items()}

    async def change(self, seconds: float) -> None:
        """Wait until something changes, but not for longer than so many seconds."""
        if self.changed.is_set():
            self.changed = trio.Event()
        with trio.move_on_after(seconds):
            await self.changed.wait()


@dataclass(frozen=True, slots=True)
class WaitingRemovals:
    """How many names are gone from the datastore and not yet from the bucket, those under way included."""

    chunks: int
    snapshots: int


@dataclass(frozen=True, slots=True)
class _Handling:
    """What is known of what a task handles. Tasks that it starts know the same."""

    sequence: int
    at_a_glance: bool
    seen_at: float = UNSEEN


_handling: ContextVar[_Handling | None] = ContextVar("handling", default=None)


class Worklist:
    """Items, each with the oldest journal sequence that it stands for."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds."""
        self._clock = clock
        self._chunks = Lane()
        self._tree = TreeLane()
        self._chunk_removals = _Removals[ChunkItem]()
        self._snapshot_removals = _Removals[SnapshotId]()
        self._active: dict[Item, int] = {}
        self._again: dict[Item, int] = {}
        self._gone: dict[Item, int] = {}
        self._at_a_glance: set[Item] = set()
        self._seen_at: dict[Item, float] = {}
        self._outstanding = _Outstanding()
        self._tree_outstanding = _Outstanding()
        self._newest = 0
        self._read = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        return self._listed() + len(self._chunk_removals) + len(self._snapshot_removals)

    def _listed(self) -> int:
        waiting = len(self._chunks.waiting) + len(self._tree.waiting) + len(self._again)
        removals = len(self._chunk_removals.under_way) + len(self._snapshot_removals.under_way)
        return waiting + len(self._active) - removals

    def add(self, item: Item, sequence: int, *, at_a_glance: bool = False, seen_at: float = UNSEEN) -> None:
        """Have `item` handled; an item that waits already is not listed twice, and one to be removed is looked at anew.

        `sequence` is that of the record which says so, or `inherited`. `at_a_glance` says that nothing points to a
        change: the item was come upon, and is compared as far as that is cheap. `seen_at` is when (Unix time) its name
        was seen to change, WATCHED where this mount saw it; that holds until the item is dealt with.
        """
        self._newest = max(self._newest, sequence)
        if seen_at > self.seen_at(item):
            self._seen_at[item] = seen_at
        sequence = min(sequence, self._recall(item, sequence))
        lane = self._lane(item)
        listing: MutableMapping[Item, int] = self._again if item in self._active else lane.waiting
        if not at_a_glance:
            self._at_a_glance.discard(item)
        elif item not in listing:
            self._at_a_glance.add(item)
        self._list(listing, item, sequence)
        if listing is not self._again:
            lane.add(item, at_a_glance=item in self._at_a_glance)

    def inherited(self) -> int:
        """Return the sequence of what this task handles; the newest, when it handles nothing."""
        handling = _handling.get()
        return self._newest if handling is None else handling.sequence

    @staticmethod
    def handles_at_a_glance() -> bool:
        """Tell whether the item that this task handles was only come upon."""
        handling = _handling.get()
        return handling is not None and handling.at_a_glance

    def seen_at(self, item: Item) -> float:
        """Tell when the name of an item that is not dealt with yet was last seen to change, see `add`."""
        return self._seen_at.get(item, UNSEEN)

    @staticmethod
    def handles_as_seen_at() -> float:
        """Tell when the name that this task handles was last seen to change."""
        handling = _handling.get()
        return UNSEEN if handling is None else handling.seen_at

    def _recall(self, item: Item, default: int) -> int:
        """End the postponement of an item, and return the sequence that it stood for."""
        sequence = None
        match item:
            case ChunkItem():
                sequence = self._chunk_removals.recall(item)
            case SnapshotId():
                sequence = self._snapshot_removals.recall(item)
        if sequence is None:
            return default
        self._outstanding.remove(sequence)
        return sequence

    def _list(self, listing: MutableMapping[Item, int], item: Item, sequence: int) -> None:
        listed = listing.get(item)
        if listed is not None and listed <= sequence:
            return
        if listed is not None:
            self._discount(item, listed)
        listing[item] = sequence
        self._count(item, sequence)

    def _count(self, item: Item, sequence: int) -> None:
        self._outstanding.add(sequence)
        if not isinstance(item, ChunkItem):
            self._tree_outstanding.add(sequence)

    def _discount(self, item: Item, sequence: int) -> None:
        self._outstanding.remove(sequence)
        if not isinstance(item, ChunkItem):
            self._tree_outstanding.remove(sequence)

    async def room(self) -> None:
        """Wait until there is room for more items."""
        while self._listed() >= _ROOM or len(self._chunk_removals.ready) >= _REMOVALS_ROOM:
            await self.changed()

    async def take_chunk(self) -> ChunkItem:
        """Wait for the next chunk and mark it as being handled."""
        item = await self._chunks.take()
        assert isinstance(item, ChunkItem)
        self._begin_chunk(item)
        return item

    @contextmanager
    def taken(self, item: ChunkItem) -> Iterator[bool]:
        """Take a chunk out of turn, if it waits, as being handled within the with statement; tells whether it is.

        It waits again if that ends with an exception.
        """
        if item not in self._chunks.waiting:
            yield False
            return
        before, at_a_glance = _handling.get(), item in self._at_a_glance
        self._begin_chunk(item)
        try:
            yield True
        except BaseException:
            self.add(item, self._active[item], at_a_glance=at_a_glance)
            raise
        finally:
            _handling.set(before)
            self.done(item)

    def _begin_chunk(self, item: ChunkItem) -> None:
        self._begin(self._chunks, item)
        if not self._chunks.waiting:
            self._chunk_removals.changed.set()

    async def take_tree(self, *, only_told: bool = False) -> Item:
        """Wait for the next item that is not a chunk and mark it as being handled.

        `only_told`: not for one that is only come upon.
        """
        return self._begin(self._tree, await self._tree.take(only_told=only_told))

    def _begin(self, lane: Lane, item: Item) -> Item:
        self._active[item] = sequence = lane.remove(item)
        _handling.set(_Handling(sequence, item in self._at_a_glance, self.seen_at(item)))
        self._at_a_glance.discard(item)
        return item

    async def take_chunk_removals(self, maximum: int) -> list[ChunkItem]:
        """Wait for chunks that may be removed from the bucket, and mark up to `maximum` as being handled.

        Chunks that wait to be sent go first, but not for ever. One task at a time may call this.
        """
        while (seconds := self._seconds_before_chunk_removals()) > 0:
            await self._chunk_removals.change(seconds)
        return self._begin_removal(self._chunk_removals, maximum)

    def _seconds_before_chunk_removals(self) -> float:
        if not self._chunk_removals.ready:
            return math.inf
        if not self._chunks.waiting:
            return 0
        oldest = next(iter(self._chunk_removals.ready.values()))
        return oldest.since + _LONGEST_REMOVAL_WAIT - self._clock()

    async def take_snapshot_removals(self, quiet: float = 0.0) -> list[SnapshotId]:
        """Wait for snapshots that may be removed from the bucket, and mark all of them as being handled.

        They are taken when no other one has come for `quiet` seconds, so that those which go together are judged
        together; but not much later than that. One task at a time may call this.
        """
        while (seconds := self._seconds_before_snapshot_removals(quiet)) > 0:
            await self._snapshot_removals.change(seconds)
        return self._begin_removal(self._snapshot_removals, len(self._snapshot_removals.ready))

    def _seconds_before_snapshot_removals(self, quiet: float) -> float:
        ready = self._snapshot_removals.ready
        if not ready:
            return math.inf
        oldest, newest = next(iter(ready.values())), next(reversed(ready.values()))
        return min(newest.since + quiet, oldest.since + quiet * _LONGEST_WAVE) - self._clock()

    def _begin_removal(self, removals: _Removals[Removable], maximum: int) -> list[Removable]:
        taken = removals.take(maximum)
        for item, sequence in taken.items():
            self._active[item] = sequence
        # What the removal of one of them leads to stands for the oldest of them.
        _handling.set(_Handling(min(taken.values()), at_a_glance=False))
        return list(taken)

    def postpone(self, item: ChunkItem | SnapshotId, until: int) -> None:
        """Say that the name of `item`, which this task handles, is gone, so that it is to be removed from the bucket.

        `until` is the newest sequence that the journal had when, or after, the name was seen to be gone. The item is
        not dealt with before its removal is; a record of its name that comes earlier has it handled anew instead.
        """
        self._gone[item] = until

    def has_read(self, sequence: int) -> None:
        """Say that everything which the journal has up to `sequence` has been listed."""
        self._read = max(self._read, sequence)
        self._make_removals_ready()

    def _make_removals_ready(self) -> None:
        oldest = self._tree_outstanding.oldest()

        def is_over(until: int) -> bool:
            return until <= self._read and (oldest is None or oldest > until)

        now = self._clock()
        self._chunk_removals.make_ready(is_over, now)
        self._snapshot_removals.make_ready(is_over, now)

    def done(self, item: Item) -> None:
        """Say that `item`, taken before, has been handled."""
        sequence = self._active.pop(item)
        until = self._gone.pop(item, None)
        if self._ends_removal(item):
            self._outstanding.remove(sequence)
        else:
            self._discount(item, sequence)
        if item in self._again:
            again = self._again.pop(item)
            self._discount(item, again)
            carried = again if until is None else min(again, sequence)
            self.add(item, carried, at_a_glance=item in self._at_a_glance)
        elif until is not None:
            self._postpone(item, until, sequence)
        else:
            self._seen_at.pop(item, None)
        self._make_removals_ready()
        self.notify()

    def _ends_removal(self, item: Item) -> bool:
        match item:
            case ChunkItem() if item in self._chunk_removals.under_way:
                self._chunk_removals.under_way.remove(item)
                return True
            case SnapshotId() if item in self._snapshot_removals.under_way:
                self._snapshot_removals.under_way.remove(item)
                return True
        return False

    def _postpone(self, item: Item, until: int, sequence: int) -> None:
        match item:
            case ChunkItem():
                self._chunk_removals.postpone(item, until, sequence)
            case SnapshotId():
                self._snapshot_removals.postpone(item, until, sequence)
        self._outstanding.add(sequence)

    def notify(self) -> None:
        """Wake whoever waits in `changed`."""
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Wait until some item has been handled, or `notify` is called."""
        await self._changed.wait()

    async def idle(self) -> None:
        """Wait until nothing is listed or being handled; removals do not count."""
        while self._listed() > 0:
            await self.changed()

    def is_listed(self, item: Item) -> bool:
        """Tell whether an item is listed or being handled."""
        return item in self._active or item in self._again or item in self._lane(item).waiting

    def oldest_sequence(self) -> int | None:
        """Return the oldest journal sequence not dealt with, None if none is outstanding."""
        return self._outstanding.oldest()

    def settled(self, sequence: int) -> bool:
        """Tell whether everything up to `sequence`, and everything listed until that was written, is dealt with."""
        oldest = self._outstanding.oldest()
        return oldest is None or oldest > sequence

    def waiting_chunks(self) -> list[bytes]:
        """Return the digests of the chunks that are listed or being handled, and not about to be removed."""
        removed = self._chunk_removals.under_way
        listed = [*self._chunks.waiting, *self._active]
        return [item.digest for item in listed if isinstance(item, ChunkItem) and item not in removed]

    def handled_below(self, path: str) -> list[Item]:
        """Return what is being handled of the tree in the directory `path`, which it may have looked at before now."""
        inside = f"{path}/" if path else ""
        return [
            item
            for item in self._active
            if isinstance(item, SnapshotId | GroupId | NamespaceId) and f"{item.path}/".startswith(inside)
        ]

    def waits_for_removal(self) -> WaitingRemovals:
        """Tell how much is gone from the datastore and not yet from the bucket."""
        return WaitingRemovals(len(self._chunk_removals), len(self._snapshot_removals))

    def _lane(self, item: Item) -> Lane:
        return self._chunks if isinstance(item, ChunkItem) else self._tree


class _Outstanding:
    """A bag of numbers that knows its smallest."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()
        self._smallest_first: list[int] = []

    def add(self, number: int) -> None:
        if number not in self._counts:
            heapq.heappush(self._smallest_first, number)
        self._counts[number] += 1

    def remove(self, number: int) -> None:
        self._counts[number] -= 1
        if not self._counts[number]:
            del self._counts[number]
        if len(self._smallest_first) > 2 * len(self._counts) + _SPARE_NUMBERS:
            self._smallest_first = sorted(self._counts)

    def oldest(self) -> int | None:
        # A number that is gone is taken out only when it has come to the front.
        while self._smallest_first and self._smallest_first[0] not in self._counts:
            heapq.heappop(self._smallest_first)
        return self._smallest_first[0] if self._smallest_first else None
