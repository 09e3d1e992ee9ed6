"""The worklist: nobody works on one item twice at once, everybody gets work, and the position never runs ahead."""

from __future__ import annotations

from collections import defaultdict

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.replication.items import ChunkItem, Item, SubtreeItem
from mirrorfs.replication.worklist import Worklist
from tests.replication.datastore import FIRST, SECOND, digest_of

CHUNKS = [ChunkItem(digest_of(label)) for label in "abc"]
GROUPS = [GroupId.parse(f"vm/{number}") for number in range(3)]
ITEMS: list[Item] = [*CHUNKS, *GROUPS]


class WorklistModel(RuleBasedStateMachine):
    """Each `add` is a duty that stands until the item was taken after it and is done."""

    def __init__(self) -> None:
        super().__init__()
        self.worklist = Worklist()
        self.sequence = 0
        self.waiting: defaultdict[Item, list[int]] = defaultdict(list)
        self.active: dict[Item, list[int]] = {}

    @rule(item=st.sampled_from(ITEMS), step=st.integers(1, 3))
    def record(self, item: Item, step: int) -> None:
        self.sequence += step
        self.worklist.add(item, self.sequence)
        self.waiting[item].append(self.sequence)

    @rule(item=st.sampled_from(ITEMS))
    def other_reason(self, item: Item) -> None:
        self.worklist.add(item, self.sequence)
        self.waiting[item].append(self.sequence)

    @precondition(lambda self: self.takeable(ChunkItem))
    @rule()
    def take_chunk(self) -> None:
        self.taken(trio.run(self.worklist.take_chunk))

    @precondition(lambda self: self.takeable(GroupId))
    @rule()
    def take_group(self) -> None:
        self.taken(trio.run(self.worklist.take_tree))

    def takeable(self, kind: type[Item]) -> bool:
        return any(isinstance(item, kind) and item not in self.active for item in self.waiting)

    def taken(self, item: Item) -> None:
        assert item not in self.active
        self.active[item] = self.waiting.pop(item)

    @precondition(lambda self: self.active)
    @rule(data=st.data())
    def done(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(sorted(self.active, key=repr)))
        del self.active[item]
        self.worklist.done(item)

    @invariant()
    def agrees(self) -> None:
        duties = [duty for duties in (*self.waiting.values(), *self.active.values()) for duty in duties]
        assert self.worklist.oldest_sequence() == min(duties, default=None)
        assert len(self.worklist) == len(self.waiting) + len(self.active)
        for sequence in range(self.sequence + 1):
            assert self.worklist.settled(sequence) == all(duty > sequence for duty in duties)


TestWorklistModel = WorklistModel.TestCase
TestWorklistModel.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)


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
    monkeypatch.setattr("mirrorfs.replication.worklist._ROOM", 2)
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
    for item, is_glance in [(glanced, True), (recorded, False), (both, False), (again, True)]:
        assert await worklist.take_tree() == item
        assert worklist.handles_at_a_glance() == is_glance
    worklist.add(glanced, 3)
    worklist.add(again, 3, at_a_glance=True)
    for item in (glanced, recorded, both, again):
        worklist.done(item)
    for item, is_glance in [(glanced, False), (again, True)]:
        assert await worklist.take_tree() == item
        assert worklist.handles_at_a_glance() == is_glance


@pytest.mark.trio
async def test_what_is_postponed_comes_after_all_that_is_no_chunk_and_all_that_follows_from_it() -> None:
    worklist = Worklist()
    chunk = CHUNKS[0]
    worklist.add(SubtreeItem("vm/1"), 1)
    worklist.add(SubtreeItem("vm/2"), 2)
    first = await worklist.take_tree()
    worklist.add(chunk, worklist.inherited())
    assert await worklist.take_chunk() == chunk
    assert worklist.postpone(chunk)
    worklist.done(chunk)
    worklist.add(GROUPS[0], 3)
    worklist.done(first)
    second = await worklist.take_tree()
    worklist.add(SnapshotId.parse(FIRST), worklist.inherited())
    worklist.done(second)
    assert await worklist.take_tree() == GROUPS[0]
    assert worklist.oldest_sequence() == 1
    assert await worklist.take_tree() == SnapshotId.parse(FIRST)
    with trio.move_on_after(0.01) as scope:
        await worklist.take_chunk()
    assert scope.cancelled_caught
    worklist.done(SnapshotId.parse(FIRST))
    assert await worklist.take_chunk() == chunk
    assert not worklist.postpone(chunk), "it would wait for ever where there is always something new"
    worklist.done(chunk)
    worklist.done(GROUPS[0])
    assert len(worklist) == 0
    assert worklist.oldest_sequence() is None


@pytest.mark.trio
async def test_a_record_that_comes_while_a_chunk_is_postponed_has_it_wait_anew() -> None:
    worklist = Worklist()
    chunk = CHUNKS[0]
    worklist.add(GROUPS[0], 1)
    worklist.add(chunk, 1)
    await worklist.take_tree()
    await worklist.take_chunk()
    assert worklist.postpone(chunk)
    worklist.done(chunk)
    worklist.add(GROUPS[1], 2)
    worklist.add(chunk, 3)
    worklist.done(GROUPS[0])
    assert await worklist.take_chunk() == chunk
    assert worklist.inherited() == 1
    assert worklist.postpone(chunk)
    worklist.done(chunk)
    worklist.done(await worklist.take_tree())
    assert await worklist.take_chunk() == chunk
    worklist.done(chunk)
    assert len(worklist) == 0


@pytest.mark.trio
async def test_what_is_postponed_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.replication.worklist._ROOM", 2)
    worklist = Worklist()
    worklist.add(GROUPS[0], 1)
    await worklist.take_tree()
    for chunk in CHUNKS:
        worklist.add(chunk, 1)
        await worklist.take_chunk()
        assert worklist.postpone(chunk)
        worklist.done(chunk)
    with trio.fail_after(1):
        await worklist.room()


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
