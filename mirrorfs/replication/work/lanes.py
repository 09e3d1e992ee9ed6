"""What waits for the workers of one kind, and which of it comes next."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from dataclasses import dataclass

import trio

from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.replication.work.items import Item


class Lane:
    """Items of one kind of worker, each with the sequence that it stands for, in order of arrival."""

    def __init__(self) -> None:
        self.waiting: OrderedDict[Item, int] = OrderedDict()
        self._arrived = trio.Event()

    def add(self, item: Item, *, at_a_glance: bool) -> None:
        """Say that an item is, or has been, put into `waiting`, and whether it is only come upon."""
        del item, at_a_glance
        self._arrived.set()

    async def take(self, *, only_told: bool = False) -> Item:
        """Wait for the next item, which is to be taken out by `remove` at once."""
        while (item := self._next(only_told)) is None:
            # All idle workers wait for one event: each that had its own would miss what comes for the others.
            if self._arrived.is_set():
                self._arrived = trio.Event()
            await self._arrived.wait()
        return item

    def _next(self, only_told: bool) -> Item | None:
        del only_told
        return next(iter(self.waiting), None)

    def remove(self, item: Item) -> int:
        """Take an item out, and return its sequence."""
        return self.waiting.pop(item)


class TreeLane(Lane):
    """Of items that a record tells of and those that are only come upon, the first go first.

    When it is a group's turn, the newest of its snapshots is taken, of those that wait for the same reason.
    """

    def __init__(self) -> None:
        super().__init__()
        self._told = _Order()
        self._come_upon = _Order()

    def add(self, item: Item, *, at_a_glance: bool) -> None:
        """See Lane."""
        if not at_a_glance:
            self._come_upon.discard(item)
        (self._come_upon if at_a_glance else self._told).add(item)
        super().add(item, at_a_glance=at_a_glance)

    def _next(self, only_told: bool) -> Item | None:
        item = self._told.next()
        return item if item is not None or only_told else self._come_upon.next()

    def remove(self, item: Item) -> int:
        """See Lane."""
        self._told.discard(item)
        self._come_upon.discard(item)
        return super().remove(item)


class _Order:
    """Items in turn, in order of arrival; snapshots of one group have a turn together, and a new one after each."""

    def __init__(self) -> None:
        self._turns: OrderedDict[Item | _SnapshotsOf, None] = OrderedDict()
        self._snapshots: defaultdict[_SnapshotsOf, set[SnapshotId]] = defaultdict(set)

    def add(self, item: Item) -> None:
        turn = _turn_of(item)
        self._turns.setdefault(turn)
        if isinstance(item, SnapshotId) and isinstance(turn, _SnapshotsOf):
            self._snapshots[turn].add(item)

    def discard(self, item: Item) -> None:
        turn = _turn_of(item)
        if not isinstance(turn, _SnapshotsOf):
            self._turns.pop(turn, None)
        elif isinstance(item, SnapshotId) and item in self._snapshots.get(turn, ()):
            self._snapshots[turn].remove(item)
            self._turns.move_to_end(turn)
            if not self._snapshots[turn]:
                del self._snapshots[turn], self._turns[turn]

    def next(self) -> Item | None:
        turn = next(iter(self._turns), None)
        if isinstance(turn, _SnapshotsOf):
            return max(self._snapshots[turn], key=lambda snapshot: snapshot.backup_time)
        return turn


@dataclass(frozen=True, slots=True)
class _SnapshotsOf:
    group: GroupId


def _turn_of(item: Item) -> Item | _SnapshotsOf:
    return _SnapshotsOf(item.group) if isinstance(item, SnapshotId) else item
