"""What comes next: news before what is only come upon, and of a group the newest snapshot."""

from __future__ import annotations

import pytest

from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.replication.work.items import Item
from mirrorfs.replication.work.worklist import Worklist
from tests.replication.work.test_worklist import is_blocked

pytestmark = pytest.mark.trio

GROUP = GroupId.parse("vm/100")
OLD, NEWER, NEWEST = (SnapshotId(GROUP, f"2026-11-{day}T10:00:00Z") for day in (22, 23, 24))
OTHER = SnapshotId(GroupId.parse("ct/7"), "2020-01-01T00:00:00Z")


async def take_all(worklist: Worklist, count: int, *, only_told: bool = False) -> list[Item]:
    return [await worklist.take_tree(only_told=only_told) for _ in range(count)]


async def test_the_newest_snapshot_of_a_group_goes_first_and_no_group_waits_for_another() -> None:
    worklist = Worklist()
    items: list[Item] = [OLD, OTHER, NEWEST, GROUP, NEWER]
    for sequence, item in enumerate(items, 1):
        worklist.add(item, sequence)
    assert await take_all(worklist, 5) == [NEWEST, OTHER, GROUP, NEWER, OLD]
    for item in items:
        worklist.done(item)
    assert worklist.oldest_sequence() is None


async def test_what_a_record_tells_of_goes_before_what_is_come_upon() -> None:
    worklist = Worklist()
    come_upon: list[Item] = [OLD, NEWER, GROUP]
    for item in come_upon:
        worklist.add(item, 1, at_a_glance=True)
    worklist.add(OTHER, 2)
    # It was come upon before, and now a record tells of it.
    worklist.add(OLD, 3)
    assert await take_all(worklist, 4) == [OTHER, OLD, GROUP, NEWER]
    assert worklist.oldest_sequence() == 1


async def test_a_worker_for_news_leaves_alone_what_is_come_upon() -> None:
    worklist = Worklist()
    worklist.add(OLD, 1, at_a_glance=True)
    assert await is_blocked(lambda: worklist.take_tree(only_told=True))
    worklist.add(NEWEST, 2)
    assert await worklist.take_tree(only_told=True) == NEWEST
    assert await is_blocked(lambda: worklist.take_tree(only_told=True))
    assert await worklist.take_tree() == OLD


async def test_a_glance_that_comes_after_a_record_does_not_put_an_item_back() -> None:
    worklist = Worklist()
    worklist.add(OLD, 1)
    worklist.add(OLD, 1, at_a_glance=True)
    assert await worklist.take_tree(only_told=True) == OLD


async def test_what_is_told_of_while_it_is_handled_is_news() -> None:
    worklist = Worklist()
    worklist.add(OLD, 1, at_a_glance=True)
    assert await worklist.take_tree() == OLD
    worklist.add(NEWER, 1, at_a_glance=True)
    worklist.add(OLD, 2)
    worklist.done(OLD)
    assert await take_all(worklist, 2) == [OLD, NEWER]
