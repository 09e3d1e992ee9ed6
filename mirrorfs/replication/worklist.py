"""What is to be done, in which order, and how far that carries the journal's position.

One item is never handled twice at the same time; if its name changes again meanwhile, it is handled once more.
What an item leads to stands for the same journal sequence as the item itself, so that whoever waits for a record waits
for everything that follows from it.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import MutableMapping
from contextvars import ContextVar
from dataclasses import dataclass, field

import trio

from mirrorfs.replication.items import ChunkItem, Item

# Beyond this many items the journal is left unread: what is not read needs no memory.
_ROOM = 10_000
_SPARE_NUMBERS = 64


@dataclass(slots=True)
class _Lane:
    """Items of one kind of worker, in order of arrival."""

    waiting: OrderedDict[Item, int] = field(default_factory=OrderedDict)
    arrived: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True, slots=True)
class _Handling:
    """What is known of the item that a task handles. Tasks that it starts know the same."""

    sequence: int
    at_a_glance: bool
    has_waited: bool


_handling: ContextVar[_Handling | None] = ContextVar("handling", default=None)


class Worklist:
    """Items, each with the oldest journal sequence that it stands for."""

    def __init__(self) -> None:
        self._chunks = _Lane()
        self._tree = _Lane()
        self._active: dict[Item, int] = {}
        self._again: dict[Item, int] = {}
        self._at_a_glance: set[Item] = set()
        self._postponed: OrderedDict[ChunkItem, tuple[int, int]] = OrderedDict()
        self._have_waited: set[Item] = set()
        self._outstanding = _Outstanding()
        self._tree_outstanding = _Outstanding()
        self._newest = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        return self._listed() + len(self._postponed)

    def _listed(self) -> int:
        return len(self._chunks.waiting) + len(self._tree.waiting) + len(self._active) + len(self._again)

    def add(self, item: Item, sequence: int, *, at_a_glance: bool = False) -> None:
        """Have `item` handled; an item that waits already is not listed twice.

        `sequence` is that of the record which says so, or `inherited`. `at_a_glance` says that nothing points to a
        change: the item was come upon, and is compared as far as that is cheap.
        """
        self._newest = max(self._newest, sequence)
        self._have_waited.discard(item)
        lane = self._lane(item)
        listing: MutableMapping[Item, int] = self._again if item in self._active else lane.waiting
        if not at_a_glance:
            self._at_a_glance.discard(item)
        elif item not in listing:
            self._at_a_glance.add(item)
        self._list(listing, item, sequence)
        if listing is not self._again:
            lane.arrived.set()

    def inherited(self) -> int:
        """Return the sequence of the item that this task handles; the newest, when it handles none."""
        handling = _handling.get()
        return self._newest if handling is None else handling.sequence

    @staticmethod
    def handles_at_a_glance() -> bool:
        """Tell whether the item that this task handles was only come upon."""
        handling = _handling.get()
        return handling is not None and handling.at_a_glance

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
        # What is postponed waits for others to be handled, perhaps for the one that wants room.
        while self._listed() >= _ROOM:
            await self.changed()

    async def take_chunk(self) -> ChunkItem:
        """Wait for the next chunk and mark it as being handled."""
        item = await self._take(self._chunks)
        assert isinstance(item, ChunkItem)
        return item

    async def take_tree(self) -> Item:
        """Wait for the next item that is not a chunk and mark it as being handled."""
        return await self._take(self._tree)

    async def _take(self, lane: _Lane) -> Item:
        while not lane.waiting:
            # All idle workers wait for one event: each that had its own would miss what comes for the others.
            if lane.arrived.is_set():
                lane.arrived = trio.Event()
            await lane.arrived.wait()
        item, sequence = lane.waiting.popitem(last=False)
        self._active[item] = sequence
        _handling.set(_Handling(sequence, item in self._at_a_glance, item in self._have_waited))
        self._at_a_glance.discard(item)
        self._have_waited.discard(item)
        return item

    def postpone(self, item: ChunkItem) -> bool:
        """Have `item`, which this task handles, handled again after everything listed by now that is no chunk.

        Returns False, and does nothing, when it has waited for that already, or when there is nothing to wait for.
        """
        handling = _handling.get()
        if self._tree_outstanding.oldest() is None or (handling is not None and handling.has_waited):
            return False
        sequence = self.inherited()
        if item in self._postponed:
            _, earlier = self._postponed.pop(item)
            self._discount(item, earlier)
            sequence = min(sequence, earlier)
        # Sequences only grow: the first of them is always the first that need not wait any more.
        self._postponed[item] = (self._newest, sequence)
        self._count(item, sequence)
        return True

    def _list_postponed(self) -> None:
        oldest = self._tree_outstanding.oldest()
        while self._postponed:
            item, (until, sequence) = next(iter(self._postponed.items()))
            if oldest is not None and oldest <= until:
                return
            del self._postponed[item]
            self._discount(item, sequence)
            # A record that came meanwhile may tell of a move that has not been waited for.
            is_listed = item in self._active or item in self._chunks.waiting
            self.add(item, sequence)
            if not is_listed:
                self._have_waited.add(item)

    def done(self, item: Item) -> None:
        """Say that `item`, taken before, has been handled."""
        self._discount(item, self._active.pop(item))
        if item in self._again:
            sequence = self._again.pop(item)
            self._discount(item, sequence)
            self.add(item, sequence, at_a_glance=item in self._at_a_glance)
        if not isinstance(item, ChunkItem):
            self._list_postponed()
        self.notify()

    def notify(self) -> None:
        """Wake whoever waits in `changed`."""
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Wait until some item has been handled, or `notify` is called."""
        await self._changed.wait()

    def oldest_sequence(self) -> int | None:
        """Return the oldest journal sequence not dealt with, None if none is outstanding."""
        return self._outstanding.oldest()

    def settled(self, sequence: int) -> bool:
        """Tell whether everything up to `sequence`, and everything listed until that was written, is dealt with."""
        oldest = self._outstanding.oldest()
        return oldest is None or oldest > sequence

    def waiting_chunks(self) -> list[bytes]:
        """Return the digests of the chunks that are listed or being handled."""
        listed = [*self._chunks.waiting, *self._active]
        return [item.digest for item in listed if isinstance(item, ChunkItem)]

    def _lane(self, item: Item) -> _Lane:
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
