"""What is to be done, in which order, and how far that carries the journal's position.

One item is never handled twice at the same time; if its name changes again meanwhile, it is handled once more.
"""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import MutableMapping
from dataclasses import dataclass, field

import trio

from mirrorfs.replication.items import ChunkItem, Item

# Beyond this many items the journal is left unread: what is not read needs no memory.
_ROOM = 10_000


@dataclass(slots=True)
class _Lane:
    """Items of one kind of worker, in order of arrival."""

    waiting: OrderedDict[Item, int] = field(default_factory=OrderedDict)
    arrived: trio.Event = field(default_factory=trio.Event)


class Worklist:
    """Items, each with the oldest journal sequence that it stands for.

    An item that is not from the journal stands for the newest sequence at the time that it was listed.
    """

    def __init__(self) -> None:
        self._chunks = _Lane()
        self._tree = _Lane()
        self._active: dict[Item, int] = {}
        self._again: dict[Item, int] = {}
        self._outstanding = _Outstanding()
        self._newest = 0
        self._changed = trio.Event()

    def __len__(self) -> int:
        return len(self._chunks.waiting) + len(self._tree.waiting) + len(self._active) + len(self._again)

    def add(self, item: Item, sequence: int | None = None) -> None:
        """Have `item` handled; an item that waits already is not listed twice."""
        if sequence is None:
            sequence = self._newest
        self._newest = max(self._newest, sequence)
        if item in self._active:
            self._list(self._again, item, sequence)
            return
        lane = self._lane(item)
        self._list(lane.waiting, item, sequence)
        lane.arrived.set()

    def _list(self, listing: MutableMapping[Item, int], item: Item, sequence: int) -> None:
        listed = listing.get(item)
        if listed is not None and listed <= sequence:
            return
        if listed is not None:
            self._outstanding.remove(listed)
        listing[item] = sequence
        self._outstanding.add(sequence)

    async def room(self) -> None:
        """Wait until there is room for more items."""
        while len(self) >= _ROOM:
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
        return item

    def done(self, item: Item) -> None:
        """Say that `item`, taken before, has been handled."""
        self._outstanding.remove(self._active.pop(item))
        if item in self._again:
            sequence = self._again.pop(item)
            self._outstanding.remove(sequence)
            self.add(item, sequence)
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

    def oldest(self) -> int | None:
        # A number that is gone is taken out only when it has come to the front.
        while self._smallest_first and self._smallest_first[0] not in self._counts:
            heapq.heappop(self._smallest_first)
        return self._smallest_first[0] if self._smallest_first else None
