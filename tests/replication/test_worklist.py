"""The worklist: nobody works on one item twice at once, everybody gets work, and the position never runs ahead."""

from __future__ import annotations

from collections import defaultdict

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mirrorfs.datastore.names import GroupId
from mirrorfs.replication.items import ChunkItem, Item
from mirrorfs.replication.worklist import Worklist
from tests.replication.datastore import digest_of

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
        self.worklist.add(item)
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
            worklist.add(chunk)
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
    worklist.add(GROUPS[0])
    await worklist.room()
    worklist.add(GROUPS[1])
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
        worklist.add(item)
    trio.run(worklist.take_chunk)
    assert sorted(worklist.waiting_chunks()) == sorted(chunk.digest for chunk in CHUNKS)
