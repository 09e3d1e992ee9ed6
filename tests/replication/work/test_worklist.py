"""The worklist: nobody works on one item twice at once, everybody gets work, and the position never runs ahead."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.replication.work.items import ChunkItem, Item, SubtreeItem
from mirrorfs.replication.work.worklist import WaitingRemovals, Worklist
from tests.replication.datastore import FIRST, SECOND, digest_of

CHUNKS = [ChunkItem(digest_of(label)) for label in "abc"]
GROUPS = [GroupId.parse(f"vm/{number}") for number in range(2)]
SNAPSHOTS = [SnapshotId.parse(FIRST), SnapshotId.parse(SECOND)]
REMOVABLE: list[Item] = [*SNAPSHOTS, *CHUNKS]
ITEMS: list[Item] = [*CHUNKS, *GROUPS, *SNAPSHOTS]


class _Stopped(Exception):
    pass


@dataclass(slots=True)
class Duty:
    """What the worklist owes one item: `until` is not None from the postponement of its removal on."""

    sequence: int
    until: int | None = None
    is_removed: bool = False


class WorklistModel(RuleBasedStateMachine):
    """Each `add` is a duty that stands until the item was taken after it and is done, and, if its name was gone by
    then, until its removal is done or it was added again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.worklist = Worklist(lambda: self.now)
        self.appended = 0
        self.read = 0
        self.waiting: defaultdict[Item, list[int]] = defaultdict(list)
        self.active: dict[Item, Duty] = {}
        self.postponed: dict[Item, Duty] = {}

    @rule(step=st.integers(1, 3))
    def append(self, step: int) -> None:
        """The journal gets records that are not read yet."""
        self.appended += step

    @rule(items=st.lists(st.sampled_from(ITEMS), max_size=3))
    def read_journal(self, items: list[Item]) -> None:
        for item in items:
            self.appended += 1
            self.add(item, self.appended)
        self.read = self.appended
        self.worklist.has_read(self.read)

    @rule(item=st.sampled_from(ITEMS))
    def other_reason(self, item: Item) -> None:
        self.add(item, self.read)

    def add(self, item: Item, sequence: int) -> None:
        self.worklist.add(item, sequence)
        self.waiting[item].append(sequence)
        if item in self.postponed:
            self.waiting[item].append(self.postponed.pop(item).sequence)

    @precondition(lambda self: self.takeable(ChunkItem))
    @rule()
    def take_chunk(self) -> None:
        self.taken(trio.run(self.worklist.take_chunk))

    @precondition(lambda self: self.takeable(ChunkItem))
    @rule(fails=st.booleans(), data=st.data())
    def take_out_of_turn(self, fails: bool, data: st.DataObject) -> None:
        """Whoever needs a chunk handles it, or has to stop in the middle of it."""
        takeable = [item for item in CHUNKS if item in self.waiting and item not in self.active]
        item = data.draw(st.sampled_from(takeable))
        with suppress(_Stopped), self.worklist.taken(item) as is_taken:
            assert is_taken
            if fails:
                raise _Stopped
        if not fails:
            del self.waiting[item]

    @precondition(lambda self: self.takeable(GroupId, SnapshotId))
    @rule()
    def take_tree(self) -> None:
        self.taken(trio.run(self.worklist.take_tree))

    def takeable(self, *kinds: type[Item]) -> bool:
        return any(isinstance(item, kinds) and item not in self.active for item in self.waiting)

    def taken(self, item: Item) -> None:
        assert item not in self.active
        self.active[item] = Duty(min(self.waiting.pop(item)))

    @precondition(lambda self: any(self.may_be_removed(item, ChunkItem) for item in self.postponed))
    @rule(maximum=st.integers(1, 2), waited=st.booleans())
    def take_chunk_removals(self, maximum: int, waited: bool) -> None:
        chunks_wait = any(isinstance(item, ChunkItem) and item not in self.active for item in self.waiting)
        if waited or not chunks_wait:
            self.now += 10 * waited
            ready = [item for item in self.postponed if self.may_be_removed(item, ChunkItem)]
            removed = trio.run(self.worklist.take_chunk_removals, maximum)
            assert len(removed) == min(maximum, len(ready))
            self.removed(removed)

    @precondition(lambda self: any(self.may_be_removed(item, SnapshotId) for item in self.postponed))
    @rule()
    def take_snapshot_removals(self) -> None:
        ready = [item for item in self.postponed if self.may_be_removed(item, SnapshotId)]
        removed = trio.run(self.worklist.take_snapshot_removals)
        assert set(removed) == set(ready)
        self.removed(removed)

    def removed(self, items: Sequence[Item]) -> None:
        assert len(items) == len(set(items))
        for item in items:
            assert self.postponed[item].is_removed, "it may not be removed yet"
            assert item not in self.active
            self.active[item] = self.postponed.pop(item)

    def may_be_removed(self, item: Item, kind: type[Item]) -> bool:
        return isinstance(item, kind) and self.postponed[item].is_removed

    @precondition(lambda self: self.active)
    @rule(data=st.data(), is_gone=st.booleans(), later=st.integers(0, 2))
    def done(self, data: st.DataObject, is_gone: bool, later: int) -> None:
        item = data.draw(st.sampled_from(sorted(self.active, key=repr)))
        duty = self.active.pop(item)
        if is_gone and not duty.is_removed and isinstance(item, ChunkItem | SnapshotId):
            self.appended += later
            self.worklist.postpone(item, self.appended)
            if item in self.waiting:
                self.waiting[item].append(duty.sequence)
            else:
                self.postpone(item, duty)
        self.worklist.done(item)

    def postpone(self, item: Item, duty: Duty) -> None:
        duty.until = self.appended
        self.postponed[item] = duty

    @invariant()
    def agrees(self) -> None:
        oldest_of_tree = self.oldest_of_tree()
        for duty in self.postponed.values():
            assert duty.until is not None
            # Once its wait is over it may go, whatever is listed for an older sequence afterwards.
            if duty.until <= self.read and oldest_of_tree > duty.until:
                duty.is_removed = True
        duties = [
            *(sequence for sequences in self.waiting.values() for sequence in sequences),
            *(duty.sequence for duty in (*self.active.values(), *self.postponed.values())),
        ]
        assert self.worklist.oldest_sequence() == min(duties, default=None)
        assert len(self.worklist) == len(self.waiting) + len(self.active) + len(self.postponed)
        removals = [*self.postponed, *(item for item, duty in self.active.items() if duty.is_removed)]
        assert self.worklist.waits_for_removal() == WaitingRemovals(
            sum(isinstance(item, ChunkItem) for item in removals),
            sum(isinstance(item, SnapshotId) for item in removals),
        )
        for sequence in range(self.appended + 1):
            assert self.worklist.settled(sequence) == all(duty > sequence for duty in duties)

    def oldest_of_tree(self) -> float:
        """The oldest sequence for which something is to be handled that is neither a chunk nor a removal."""
        waiting = [min(sequences) for item, sequences in self.waiting.items() if not isinstance(item, ChunkItem)]
        active = [
            duty.sequence
            for item, duty in self.active.items()
            if not isinstance(item, ChunkItem) and not duty.is_removed
        ]
        return min([*waiting, *active], default=float("inf"))


TestWorklistModel = WorklistModel.TestCase
TestWorklistModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


@pytest.mark.trio
async def test_every_idle_worker_gets_work() -> None:
    worklist = Worklist()
    busy = 0

    async def work() -> None:
        nonlocal busy
        await worklist.take_chunk()
        busy += 1
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for _ in CHUNKS:
            nursery.start_soon(work)
        await trio.testing.wait_all_tasks_blocked()
        for chunk in CHUNKS:
            worklist.add(chunk, 1)
        await trio.testing.wait_all_tasks_blocked()
        assert busy == len(CHUNKS)
        nursery.cancel_scope.cancel()


@pytest.mark.trio
async def test_an_item_is_handled_once_more_if_it_changes_while_it_is_handled() -> None:
    worklist = Worklist()
    item = GROUPS[0]
    worklist.add(item, 1)
    assert await worklist.take_tree() == item
    worklist.add(item, 2)
    worklist.add(item, 3)
    with trio.move_on_after(0.01) as scope:
        await worklist.take_tree()
    assert scope.cancelled_caught
    worklist.done(item)
    assert worklist.oldest_sequence() == 2
    assert await worklist.take_tree() == item
    worklist.done(item)
    assert len(worklist) == 0
    assert worklist.oldest_sequence() is None


@pytest.mark.trio
async def test_a_full_worklist_makes_room_when_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.replication.work.worklist._ROOM", 2)
    worklist = Worklist()
    worklist.add(GROUPS[0], 1)
    await worklist.room()
    worklist.add(GROUPS[1], 2)
    with trio.move_on_after(0.01) as scope:
        await worklist.room()
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worklist.room)
        await trio.testing.wait_all_tasks_blocked()
        worklist.done(await worklist.take_tree())


def test_what_is_taken_out_of_turn_stands_for_its_own_record() -> None:
    worklist = Worklist()
    worklist.add(CHUNKS[0], 5, at_a_glance=True)
    worklist.add(CHUNKS[1], 7)
    assert worklist.inherited() == 7
    with worklist.taken(CHUNKS[0]) as is_taken:
        assert is_taken
        assert worklist.inherited() == 5
        assert worklist.handles_at_a_glance()
        with worklist.taken(CHUNKS[0]) as is_taken_again:
            assert not is_taken_again
        # It changes meanwhile.
        worklist.add(CHUNKS[0], 8)
    assert worklist.inherited() == 8
    assert not worklist.handles_at_a_glance()
    assert worklist.is_listed(CHUNKS[0])
    assert worklist.oldest_sequence() == 7


def test_what_is_taken_out_of_turn_and_not_handled_waits_again_as_before() -> None:
    worklist = Worklist()
    worklist.add(CHUNKS[0], 5, at_a_glance=True)
    with suppress(_Stopped), worklist.taken(CHUNKS[0]):
        raise _Stopped
    with worklist.taken(CHUNKS[0]) as is_taken:
        assert is_taken
        assert worklist.inherited() == 5
        assert worklist.handles_at_a_glance()


def test_chunks_that_wait_or_are_under_way() -> None:
    worklist = Worklist()
    for item in ITEMS:
        worklist.add(item, 1)
    trio.run(worklist.take_chunk)
    assert sorted(worklist.waiting_chunks()) == sorted(chunk.digest for chunk in CHUNKS)


@pytest.mark.trio
async def test_what_an_item_leads_to_stands_for_the_same_record() -> None:
    worklist = Worklist()
    worklist.add(SubtreeItem("vm/100"), 5)
    moved = await worklist.take_tree()
    worklist.add(CHUNKS[0], 9)

    async def list_from_a_child_task() -> None:
        worklist.add(SnapshotId.parse(SECOND), worklist.inherited())

    worklist.add(SnapshotId.parse(FIRST), worklist.inherited())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(list_from_a_child_task)
    worklist.done(moved)
    for _ in range(2):
        assert not worklist.settled(5)
        item = await worklist.take_tree()
        assert worklist.inherited() == 5
        worklist.done(item)
    assert worklist.settled(5)
    assert not worklist.settled(9)


def test_without_an_item_the_newest_sequence_is_meant() -> None:
    worklist = Worklist()
    worklist.add(CHUNKS[0], 7)
    worklist.add(CHUNKS[1], 3)
    assert worklist.inherited() == 7


@pytest.mark.trio
async def test_a_glance_is_not_enough_once_a_record_has_come() -> None:
    worklist = Worklist()
    glanced, recorded, both, again = (GroupId.parse(f"vm/{number}") for number in range(4))
    worklist.add(glanced, 1, at_a_glance=True)
    worklist.add(recorded, 1)
    worklist.add(recorded, 1, at_a_glance=True)
    worklist.add(both, 1, at_a_glance=True)
    worklist.add(both, 2)
    worklist.add(again, 1, at_a_glance=True)
    for item, is_glance in [(recorded, False), (both, False), (glanced, True), (again, True)]:
        assert await worklist.take_tree() == item
        assert worklist.handles_at_a_glance() == is_glance
    worklist.add(glanced, 3)
    worklist.add(again, 3, at_a_glance=True)
    for item in (glanced, recorded, both, again):
        worklist.done(item)
    for item, is_glance in [(glanced, False), (again, True)]:
        assert await worklist.take_tree() == item
        assert worklist.handles_at_a_glance() == is_glance


async def is_blocked(take: Callable[[], Awaitable[object]]) -> bool:
    with trio.move_on_after(0.01) as scope:
        await take()
    return scope.cancelled_caught


async def see_gone(worklist: Worklist, item: ChunkItem | SnapshotId, until: int) -> None:
    """Have an item that was added taken, and found to be gone."""
    taken = await (worklist.take_chunk() if isinstance(item, ChunkItem) else worklist.take_tree())
    assert taken == item
    worklist.postpone(item, until)
    worklist.done(item)


async def take_all_chunk_removals(worklist: Worklist) -> list[ChunkItem]:
    return await worklist.take_chunk_removals(1000)


@pytest.mark.trio
async def test_a_removal_comes_after_all_that_the_journal_had_and_all_that_follows_from_it() -> None:
    worklist = Worklist()
    worklist.add(SNAPSHOTS[0], 1)
    await see_gone(worklist, SNAPSHOTS[0], until=3)
    worklist.has_read(1)
    assert await is_blocked(worklist.take_snapshot_removals), "the other half of the move has not been read"
    worklist.add(SubtreeItem("ns/a"), 3)
    worklist.has_read(3)
    moved = await worklist.take_tree()
    worklist.add(SNAPSHOTS[1], worklist.inherited())
    worklist.done(moved)
    worklist.add(GROUPS[0], 4)
    assert await is_blocked(worklist.take_snapshot_removals)
    worklist.done(await worklist.take_tree())
    assert worklist.oldest_sequence() == 1
    assert await worklist.take_snapshot_removals() == [SNAPSHOTS[0]]
    worklist.done(SNAPSHOTS[0])
    assert worklist.oldest_sequence() == 4


@pytest.mark.trio
async def test_removals_do_not_wait_for_each_other() -> None:
    worklist = Worklist()
    worklist.has_read(2)
    for item in REMOVABLE:
        worklist.add(item, 1)
    for snapshot in SNAPSHOTS[::-1]:
        await see_gone(worklist, snapshot, until=2)
    for chunk in CHUNKS:
        await see_gone(worklist, chunk, until=2)
    assert worklist.waits_for_removal() == WaitingRemovals(3, 2)
    assert await worklist.take_snapshot_removals() == SNAPSHOTS[::-1]
    assert await worklist.take_chunk_removals(2) == CHUNKS[:2]
    assert await take_all_chunk_removals(worklist) == CHUNKS[2:]
    assert worklist.waits_for_removal() == WaitingRemovals(3, 2)
    for item in REMOVABLE:
        worklist.done(item)
    assert worklist.waits_for_removal() == WaitingRemovals(0, 0)
    assert len(worklist) == 0


@pytest.mark.trio
async def test_a_record_ends_a_postponement_at_each_stage() -> None:
    worklist = Worklist()
    chunk = CHUNKS[0]
    worklist.add(chunk, 1)
    await see_gone(worklist, chunk, until=5)
    worklist.add(chunk, 6)
    assert await worklist.take_chunk() == chunk
    assert worklist.inherited() == 1, "what it has stood for has not been done"
    worklist.add(chunk, 7)
    worklist.postpone(chunk, 7)
    worklist.done(chunk)
    assert worklist.waits_for_removal() == WaitingRemovals(0, 0)
    worklist.has_read(9)
    await see_gone(worklist, chunk, until=7)
    worklist.add(chunk, 8)
    assert await is_blocked(lambda: take_all_chunk_removals(worklist))
    await see_gone(worklist, chunk, until=8)
    assert await take_all_chunk_removals(worklist) == [chunk]
    worklist.add(chunk, 9)
    assert await is_blocked(worklist.take_chunk)
    worklist.done(chunk)
    assert worklist.oldest_sequence() == 9
    assert await worklist.take_chunk() == chunk
    worklist.done(chunk)
    assert len(worklist) == 0


@pytest.mark.trio
async def test_what_removals_lead_to_stands_for_the_oldest_of_them() -> None:
    worklist = Worklist()
    worklist.has_read(5)
    for snapshot, sequence in zip(SNAPSHOTS, (5, 2), strict=True):
        worklist.add(snapshot, sequence)
        await see_gone(worklist, snapshot, until=5)
    await worklist.take_snapshot_removals()
    assert worklist.inherited() == 2
    assert not worklist.handles_at_a_glance()


@pytest.mark.trio
async def test_chunks_go_up_before_others_go_away_but_not_for_ever(autojump_clock: trio.testing.MockClock) -> None:
    worklist = Worklist(trio.current_time)
    worklist.add(CHUNKS[0], 0)
    await see_gone(worklist, CHUNKS[0], until=0)
    worklist.add(CHUNKS[1], 0)
    began = trio.current_time()
    assert await take_all_chunk_removals(worklist) == [CHUNKS[0]]
    assert trio.current_time() - began == pytest.approx(10)
    worklist.done(CHUNKS[0])
    worklist.add(CHUNKS[2], 0)
    await worklist.take_chunk()
    await see_gone(worklist, CHUNKS[2], until=0)
    began = trio.current_time()
    assert await take_all_chunk_removals(worklist) == [CHUNKS[2]]
    assert trio.current_time() == began, "none waits, though one is being sent"


@pytest.mark.trio
async def test_a_removal_goes_when_the_last_chunk_has_been_taken() -> None:
    worklist = Worklist()
    worklist.add(CHUNKS[0], 0)
    await see_gone(worklist, CHUNKS[0], until=0)
    worklist.add(CHUNKS[1], 0)
    with trio.fail_after(1):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(take_all_chunk_removals, worklist)
            await trio.testing.wait_all_tasks_blocked()
            await worklist.take_chunk()


@pytest.mark.trio
async def test_what_is_postponed_takes_no_room_and_what_may_go_takes_some(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.replication.work.worklist._ROOM", 2)
    monkeypatch.setattr("mirrorfs.replication.work.worklist._REMOVALS_ROOM", 3)
    worklist = Worklist()
    for chunk in CHUNKS:
        worklist.add(chunk, 1)
        await see_gone(worklist, chunk, until=1)
    assert not await is_blocked(worklist.room), "they wait for what needs the room"
    worklist.has_read(1)
    assert await is_blocked(worklist.room)
    await worklist.take_chunk_removals(1)
    assert not await is_blocked(worklist.room)


@pytest.mark.trio
async def test_one_old_item_does_not_have_all_later_sequences_kept() -> None:
    worklist = Worklist()
    worklist.add(GROUPS[0], 1)
    await worklist.take_tree()
    for sequence in range(2, 5000):
        worklist.add(CHUNKS[0], sequence)
        worklist.done(await worklist.take_chunk())
    assert len(worklist._outstanding._smallest_first) < 100
    assert worklist.oldest_sequence() == 1
