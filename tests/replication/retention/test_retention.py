"""What leaves the datastore leaves the bucket: when it may, in an order that keeps P1, and nothing else with it."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
import trio

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.capabilities import ObjectLockRule
from mirrorfs.replication.settings import RetentionSettings
from mirrorfs.state.state import State
from tests.replication.datastore import (
    ELSEWHERE,
    FIRST,
    INDEX,
    MANIFEST,
    PREFIX,
    SECOND,
    broken_snapshots,
    chunk_key,
    content_key,
    published,
)
from tests.replication.unwatched import Unwatched
from tests.replication.world import Killed, Running, World, die_at, perhaps_killed

pytestmark = pytest.mark.trio

DAY = 86400.0
DELETED = f"{PREFIX}/.mirrorfs/deleted/"
KEPT = RetentionSettings(delete_after=10 * DAY)
CAUTIOUS = RetentionSettings(max_delete_fraction=0.25)


def deleted_objects(world: World) -> dict[str, bytes]:
    """What stands in the bucket of deleted snapshots, as if it stood below `.cnt`."""
    return {
        content_key(key.removeprefix(DELETED)): data
        for key, data in world.store.objects.items()
        if key.startswith(DELETED)
    }


def deleted_snapshots(world: World) -> set[str]:
    """The deleted snapshots whose manifest is there; each must be complete, with its chunks."""
    found = deleted_objects(world)
    chunks = {key: data for key, data in world.store.objects.items() if "/.chunks/" in key}
    assert broken_snapshots(found | chunks) == []
    return published(found)


def watch_deleted_snapshots(world: World) -> None:
    """From now on, a deleted snapshot that is not complete at any instant is a broken one."""

    def look(operation: str, key: str) -> None:
        found = deleted_objects(world)
        chunks = {name: data for name, data in world.store.objects.items() if "/.chunks/" in name}
        world.store.broken.extend(
            f"deleted, after {operation} of {key}: {problem}" for problem in broken_snapshots(found | chunks)
        )

    world.store.on_change = look


def snapshots_of(count: int) -> list[str]:
    """Names of snapshots, one a day."""
    first = datetime(2026, 1, 1, tzinfo=UTC)
    return [f"vm/100/{first + timedelta(days=number):%Y-%m-%dT%H:%M:%SZ}" for number in range(count)]


async def forget(running: Running, world: World, *snapshots: str) -> None:
    """Forget snapshots as one wave, chunks that nothing needs any more included."""
    for snapshot in snapshots:
        world.datastore.forget(snapshot)
    running.changed(*(f"{snapshot}/{MANIFEST}" for snapshot in snapshots))
    await running.settled()


# --- grace


async def test_without_grace_nothing_is_kept(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
    assert not deleted_objects(world)
    world.check()


async def test_a_removed_snapshot_stays_restorable_with_its_chunks(world: World) -> None:
    world.retention = KEPT
    watch_deleted_snapshots(world)
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b", "c"])
    async with world.running() as running:
        await running.settled()
        manifest = world.store.objects[content_key(f"{FIRST}/{MANIFEST}")]
        world.datastore.remove_chunk("a")
        await forget(running, world, FIRST)
        running.changed(chunk_key("a").removeprefix(f"{PREFIX}/"))
        await running.settled()
        assert published(world.store.objects) == {SECOND}
        assert deleted_snapshots(world) == {FIRST}
        assert world.store.objects[f"{DELETED}{FIRST}/{MANIFEST}"] == manifest
        marker = json.loads(world.store.objects[f"{DELETED}{FIRST}/deleted.json"])
        assert marker["until"] - marker["deleted"] == 10 * DAY
        assert marker["owner"] == "root@pam\n"
        assert chunk_key("a") in world.store.objects
    assert world.references("a", "b", "c") == [1, 2, 1]
    assert world.store.broken == []


async def test_a_grace_ends_with_its_time_and_its_chunks_go(world: World) -> None:
    world.retention = KEPT
    watch_deleted_snapshots(world)
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b"])
    async with world.running() as running:
        await running.settled()
        world.datastore.remove_chunk("a")
        await forget(running, world, FIRST)
        await end_due(running)
        assert deleted_snapshots(world) == {FIRST}
        world.now += 10 * DAY + 1
        await end_due(running)
        await running.settled()
        assert not deleted_objects(world)
        assert chunk_key("a") not in world.store.objects
    assert world.references("b") == [1]
    world.check()


async def end_due(running: Running) -> None:
    """Have one look for graces that are over."""
    await running.mirror.grace.end_due()


async def test_a_snapshot_that_returns_ends_its_grace(world: World) -> None:
    world.retention = KEPT
    watch_deleted_snapshots(world)
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
        assert deleted_snapshots(world) == {FIRST}
        world.datastore.back_up(FIRST, ["b", "c"])
        running.changed(f"{FIRST}/{MANIFEST}")
        await running.settled()
        assert not deleted_objects(world)
    world.datastore.remove_chunk("a")
    assert await world.converge() == {}
    assert world.references("a", "b", "c") == [0, 1, 1]
    world.check()


@pytest.mark.parametrize("ahead", [301.0, -86400.0])
async def test_no_grace_ends_while_the_clocks_disagree(world: World, ahead: float) -> None:
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
        world.now += 11 * DAY
        world.store.clock_ahead = ahead
        await end_due(running)
        assert deleted_snapshots(world) == {FIRST}
        assert not running.mirror.clock.is_trusted
        world.store.clock_ahead = 5.0
        await end_due(running)
        assert not deleted_objects(world)


async def test_a_grace_is_counted_by_the_clock_of_the_store(world: World) -> None:
    """Our own may be behind when a snapshot goes, and set right later."""
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.now -= 400.0
        world.store.clock_ahead = 400.0
        await forget(running, world, FIRST)
        world.now += 400.0 + 10 * DAY - 10.0
        world.store.clock_ahead = 0.0
        await end_due(running)
        assert deleted_snapshots(world) == {FIRST}
        world.now += 11.0
        await end_due(running)
        assert not deleted_objects(world)


async def test_a_grace_that_is_over_by_our_clock_alone_is_looked_at_again_soon(world: World) -> None:
    """The store's clock is a moment behind: not worth a word, and no reason to wait for a minute."""
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.store.clock_ahead = -0.5
        await forget(running, world, FIRST)
        world.now += 10 * DAY - 0.3
        assert 0.2 < await running.mirror.grace.end_due() <= 0.4
        assert deleted_snapshots(world) == {FIRST}
        world.now += 0.6
        await end_due(running)
        assert not deleted_objects(world)


async def test_a_copy_that_was_given_up_goes(world: World) -> None:
    """Killed while it was being made, and started again by somebody who keeps nothing."""
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    assert await world.converge() == {}
    world.datastore.forget(FIRST)
    world.store.steps, world.store.dies_at = 0, 3
    with perhaps_killed():
        await world.converge()
    world.store.dies_at = None
    assert deleted_objects(world)
    world.retention = RetentionSettings()
    async with world.running() as running:
        await running.settled()
        await end_due(running)
        await running.settled()
    assert not deleted_objects(world)
    assert published(world.store.objects) == set()
    world.check()


async def test_a_grace_that_begins_while_an_earlier_one_is_over_lasts(world: World) -> None:
    """The earlier one of the same name was found to be over; before it is ended, the name returns and goes again."""
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
        world.now += 11 * DAY
        gate = world.store.gate("clock-difference", "mirror/.mirrorfs/")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.mirror.grace.end_due)
            await gate.reached.wait()
            world.datastore.back_up(FIRST, ["b"])
            running.changed(f"{FIRST}/{MANIFEST}")
            await running.settled()
            await forget(running, world, FIRST)
            gate.opened.set()
        assert deleted_snapshots(world) == {FIRST}
    assert world.references("a", "b") == [0, 1]


async def test_what_was_never_put_does_not_keep_a_snapshot_from_being_kept(world: World) -> None:
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await running.mirror.state.apply(lambda transaction: transaction.contents.intend([f"{FIRST}/client.log.blob"]))
        await forget(running, world, FIRST)
    assert deleted_snapshots(world) == {FIRST}
    world.check()


async def test_a_new_state_adopts_what_is_kept(world: World) -> None:
    world.retention = KEPT
    watch_deleted_snapshots(world)
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b"])
    async with world.running() as running:
        await running.settled()
        world.datastore.remove_chunk("a")
        await forget(running, world, FIRST)
    world.store.objects[f"{DELETED}{ELSEWHERE}/{INDEX}"] = b"of a copy that was interrupted"
    world.state_directory = world.state_directory.with_name("another")
    assert await world.converge() == {}
    assert deleted_snapshots(world) == {FIRST}
    assert world.references("a", "b") == [1, 2]
    world.now += 11 * DAY
    async with world.running() as running:
        await end_due(running)
        await running.settled()
    assert not deleted_objects(world)
    assert world.references("b") == [1]
    world.check()


@pytest.mark.parametrize("marker", [None, b"", b"[]", b'{"deleted": "x"}', b"\xff", b'{"deleted": 1}'])
async def test_a_grace_whose_marker_cannot_be_read_begins_anew(world: World, marker: bytes | None) -> None:
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
    if marker is None:
        del world.store.objects[f"{DELETED}{FIRST}/deleted.json"]
    else:
        world.store.objects[f"{DELETED}{FIRST}/deleted.json"] = marker
    world.state_directory = world.state_directory.with_name("another")
    async with world.running() as running:
        await running.settled()
        world.now += 9 * DAY
        await end_due(running)
        assert deleted_snapshots(world) == {FIRST}
        world.now += 2 * DAY
        await end_due(running)
        assert not deleted_objects(world)


async def test_a_snapshot_that_cannot_be_copied_by_the_store_is_read_and_put(world: World) -> None:
    world.retention = KEPT
    world.store.capabilities = replace(world.store.capabilities, copies=False)
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
    assert deleted_snapshots(world) == {FIRST}
    assert world.store.keys_of("copy") == []
    world.check()


async def test_killed_at_any_step_of_a_grace(world: World) -> None:
    """Kept, ended by time, kept again and ended by a return; killed at each change of the bucket."""
    world.retention = KEPT
    watch_deleted_snapshots(world)
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b"])
    assert await world.converge() == {}
    await _killed_all_along(world, lambda: world.datastore.forget(FIRST))
    assert deleted_snapshots(world) == {FIRST}
    assert world.references("a", "b") == [1, 2]
    await _killed_all_along(world, lambda: setattr(world, "now", world.now + 11 * DAY))
    assert not deleted_objects(world)
    assert world.references("a", "b") == [0, 1]
    world.datastore.back_up(FIRST, ["a", "b"])
    assert await world.converge() == {}
    world.datastore.forget(FIRST)
    assert await world.converge() == {}
    await _killed_all_along(world, lambda: world.datastore.back_up(FIRST, ["a", "c"]))
    assert not deleted_objects(world)
    assert world.references("a", "b", "c") == [1, 1, 1]
    world.check()


@pytest.mark.parametrize("step", range(1, 21))
async def test_a_grace_does_not_end_while_its_snapshot_still_stands_published(world: World, step: int) -> None:
    """Killed on the way, and not started again before the grace is over."""
    world.retention = KEPT
    watch_deleted_snapshots(world)
    world.datastore.back_up(FIRST, ["a"])
    assert await world.converge() == {}
    world.datastore.forget(FIRST)
    world.datastore.remove_chunk("a")
    world.store.steps, world.store.dies_at = 0, step
    with perhaps_killed():
        await world.converge()
    world.store.dies_at = None
    world.now += 11 * DAY
    async with world.running(reconciles=False) as running:
        await end_due(running)
        await running.settled()
    assert world.store.broken == []
    assert await world.converge() == {}
    world.now += 11 * DAY
    async with world.running() as running:
        await running.settled()
        await end_due(running)
        await running.settled()
    assert not deleted_objects(world)
    world.check()


async def _killed_all_along(world: World, change: Callable[[], object]) -> None:
    """Make a change, and die before and after the first, the second … change of the bucket that follows from it."""
    change()
    for step in range(1, 200):
        world.store.steps, world.store.dies_at = 0, step
        died = False
        with perhaps_killed():
            try:
                async with world.running() as running:
                    await running.settled()
                    await end_due(running)
                    await running.settled()
            except BaseExceptionGroup as group:
                died = group.subgroup(Killed) is not None
                raise
        assert world.store.broken == []
        if not died:
            world.store.dies_at = None
            return
    raise AssertionError("it never came to an end")


# --- waves


async def test_what_is_forgotten_while_it_is_published_never_is_and_spares_an_earlier_copy(world: World) -> None:
    """Its owner may be gone when it is looked for: a snapshot without one must not stand there, nor be kept or held."""
    world.retention = RetentionSettings(delete_after=10 * DAY, max_delete_fraction=0.1)
    world.unseen_after = 7 * DAY
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write("vm/100/owner", b"backup@pbs\n")
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
        await running.mirror.approve_removals()
        await running.settled()
        earlier = deleted_objects(world)
        assert deleted_snapshots(world) == {FIRST}
        world.datastore.back_up(FIRST, ["b"])
        gate = world.store.gate("put", content_key(f"{FIRST}/{INDEX}"))
        running.changed(FIRST)
        await gate.reached.wait()
        world.datastore.forget_group("vm/100")
        running.changed("vm/100", FIRST)
        gate.opened.set()
        await running.settled()
        assert held(running) == set()
        assert running.problems() == {}
    assert published(world.store.objects) == set()
    assert deleted_objects(world) == earlier
    world.check()


async def test_what_took_the_place_of_another_and_is_forgotten_meanwhile_is_kept(world: World) -> None:
    world.retention = KEPT
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write("vm/100/owner", b"backup@pbs\n")
    async with world.running() as running:
        await running.settled()
        world.datastore.back_up(FIRST, ["b"])
        gate = world.store.gate("put", content_key(f"{FIRST}/{INDEX}"))
        running.changed(FIRST)
        await gate.reached.wait()
        world.datastore.forget_group("vm/100")
        running.changed("vm/100", FIRST)
        gate.opened.set()
        await running.settled()
        assert running.problems() == {}
    assert published(world.store.objects) == set()
    assert deleted_snapshots(world) == {FIRST}
    world.check()


async def test_a_small_wave_goes_and_a_large_one_is_held(world: World) -> None:
    world.retention = CAUTIOUS
    names = snapshots_of(8)
    for name in names:
        world.datastore.back_up(name, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, names[0], names[1])
        assert published(world.store.objects) == set(names[2:])
        await forget(running, world, names[2])
        assert published(world.store.objects) == set(names[2:])
        assert held(running) == {names[2]}
        await forget(running, world, names[3])
        assert held(running) == {names[2], names[3]}
        assert content_key("vm/100/owner") in world.store.objects
    # What is held stays held over a restart, and is not taken for a lost datastore.
    async with world.running() as running:
        await running.settled()
        assert held(running) == {names[2], names[3]}
        assert published(world.store.objects) == set(names[2:])
        approved = await running.mirror.approve_removals()
        assert {snapshot.path for snapshot in approved} == {names[2], names[3]}
        await running.settled()
        assert held(running) == set()
    assert published(world.store.objects) == set(names[4:])
    world.check()


def held(running: Running) -> set[str]:
    removals = running.state.view(lambda transaction: list(transaction.retention.all_held()))
    return {removal.path for removal in removals}


async def test_a_large_wave_is_held_as_a_whole(world: World) -> None:
    world.retention = CAUTIOUS
    names = snapshots_of(8)
    for name in names:
        world.datastore.back_up(name, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, *names[:3])
        assert held(running) == set(names[:3])
        assert published(world.store.objects) == set(names)


async def test_what_moves_is_not_held(world: World) -> None:
    world.retention = CAUTIOUS
    names = snapshots_of(4)
    for name in names:
        world.datastore.back_up(name, [name])
    async with world.running() as running:
        await running.settled()
        (world.datastore.root / "vm/100").rename(world.datastore.root / "vm/200")
        running.changed("vm/100", "vm/200")
        await running.settled()
        assert held(running) == set()
    assert published(world.store.objects) == {name.replace("vm/100", "vm/200") for name in names}
    world.check()


async def test_a_directory_that_cannot_be_read_is_not_gone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()

        def fail(_: Tree, path: str) -> bool:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        monkeypatch.setattr(Tree, "exists", fail)
        await running.mirror.remove_snapshots([SnapshotId.parse(FIRST)])
        assert "Input/output error" in running.problems()[FIRST]
        monkeypatch.undo()
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    world.check()


async def test_the_next_day_counts_anew(world: World) -> None:
    world.retention = CAUTIOUS
    names = snapshots_of(8)
    for name in names:
        world.datastore.back_up(name, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, *names[:2])
        world.now += DAY + 1
        await forget(running, world, names[2])
        assert published(world.store.objects) == set(names[3:])
    world.check()


async def test_what_is_held_and_comes_back_is_not_held(world: World) -> None:
    world.retention = CAUTIOUS
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
        assert held(running) == {FIRST}
        world.datastore.back_up(FIRST, ["a"])
        running.changed(f"{FIRST}/{MANIFEST}")
        await running.settled()
        assert held(running) == set()
        assert await running.mirror.approve_removals() == []
    world.check()


async def test_an_approved_snapshot_is_kept_in_its_grace(world: World) -> None:
    world.retention = replace(CAUTIOUS, delete_after=DAY)
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
        assert published(world.store.objects) == {FIRST}
        await running.mirror.approve_removals()
        await running.settled()
    assert deleted_snapshots(world) == {FIRST}
    world.check()


async def test_an_interrupted_wave_is_not_counted_twice(world: World) -> None:
    world.retention = RetentionSettings(max_delete_fraction=0.5)
    names = snapshots_of(4)
    for name in names:
        world.datastore.back_up(name, ["a"])
    assert await world.converge() == {}

    def forget_two() -> None:
        for name in names[:2]:
            world.datastore.forget(name)

    await _killed_all_along(world, forget_two)
    assert published(world.store.objects) == set(names[2:])
    state = State(str(world.state_directory))
    try:
        assert state.view(lambda transaction: transaction.retention.removals_since(0.0)) == 2
    finally:
        state.close()
    world.check()


# --- protection, namespaces, refusals


async def test_a_protected_snapshot_stays_until_its_directory_is_gone(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write(f"{FIRST}/.protected", b"")
    async with world.running() as running:
        await running.settled()
        world.datastore.remove(f"{FIRST}/{MANIFEST}")
        world.datastore.remove(f"{FIRST}/.protected")
        running.changed(f"{FIRST}/{MANIFEST}", f"{FIRST}/.protected")
        await running.settled()
        assert published(world.store.objects) == {FIRST}
        assert "it was protected" in running.problems()[FIRST]
        world.datastore.forget(FIRST)
        running.changed(FIRST)
        await running.settled()
        assert running.problems() == {}
    assert published(world.store.objects) == set()
    world.check()


async def test_a_snapshot_that_was_unprotected_before_goes_with_its_manifest(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write(f"{FIRST}/.protected", b"")
    async with world.running() as running:
        await running.settled()
        world.datastore.remove(f"{FIRST}/.protected")
        running.changed(f"{FIRST}/.protected")
        await running.settled()
        world.datastore.remove(f"{FIRST}/{MANIFEST}")
        running.changed(f"{FIRST}/{MANIFEST}")
        await running.settled()
        assert running.problems() == {}
    assert published(world.store.objects) == set()


async def test_the_marker_of_a_namespace_stays_as_long_as_a_held_snapshot(world: World) -> None:
    world.retention = CAUTIOUS
    world.datastore.back_up(ELSEWHERE, ["a"])
    marker = content_key("ns/a/.namespace")
    async with world.running() as running:
        await running.settled()
        world.datastore.forget_group("ns/a")
        running.changed("ns/a")
        await running.settled()
        assert held(running) == {ELSEWHERE}
        assert marker in world.store.objects
        await running.mirror.approve_removals()
        await running.settled()
    assert marker not in world.store.objects
    assert world.difference() == {}


async def test_a_manifest_that_the_store_refuses_to_delete_keeps_its_chunks(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    manifest = content_key(f"{FIRST}/{MANIFEST}")
    world.store.kept.add(manifest)
    async with world.running() as running:
        await running.settled()
        world.datastore.remove_chunk("a")
        await forget(running, world, FIRST)
        running.changed(chunk_key("a").removeprefix(f"{PREFIX}/"))
        await running.settled()
        assert manifest in world.store.objects
        assert chunk_key("a") in world.store.objects
        assert "is asked again at" in running.problems()[FIRST]
        requests = len(world.store.deletions)
        running.mirror.look_again_at_problems()
        await running.settled()
        assert len(world.store.deletions) == requests
        world.store.kept.clear()
        world.now += 2 * 3600
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
        assert running.state.view(lambda transaction: transaction.retention.refusals(9)) == (0, [])
    world.check()


async def test_what_is_due_is_asked_for_though_the_clock_is_set_back_meanwhile(world: World) -> None:
    """And the bucket is not looked at for what is not due."""
    world.datastore.back_up(FIRST, ["a"])
    manifest = content_key(f"{FIRST}/{MANIFEST}")
    world.store.kept.add(manifest)
    asked = 0

    class SetsTheClockBack(Unwatched):
        async def confirm_for_removal(self) -> None:
            nonlocal asked
            asked += 1
            world.now = began
            await super().confirm_for_removal()

    began, world.ownership = world.now, SetsTheClockBack()
    async with world.running() as running:
        await running.settled()
        await forget(running, world, FIRST)
        assert "is asked again at" in running.problems()[FIRST]
        world.store.kept.clear()
        before = asked
        running.mirror.look_again_at_problems()
        await running.settled()
        assert asked == before
        assert manifest in world.store.objects
        world.now = began + 2 * 3600
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    assert manifest not in world.store.objects
    world.check()


@pytest.mark.parametrize(("step", "refused"), [("retention.refusal-recorded", True), ("retention.refusal-over", False)])
async def test_killed_around_a_refusal(world: World, monkeypatch: pytest.MonkeyPatch, step: str, refused: bool) -> None:
    world.datastore.back_up(FIRST, ["a"])
    assert await world.converge() == {}
    world.datastore.forget(FIRST)
    world.datastore.remove_chunk("a")
    world.store.kept = {content_key(f"{FIRST}/{INDEX}")}
    assert await _is_killed_at(world, monkeypatch, step) == refused
    assert published(world.store.objects) == set()
    world.store.kept = set()
    world.now += 2 * DAY
    assert await _is_killed_at(world, monkeypatch, step) != refused
    assert world.store.broken == []
    assert await world.converge() == {}
    assert world.references("a") == [0]
    world.check()


async def _is_killed_at(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> bool:
    is_killed = True
    with monkeypatch.context() as patch, perhaps_killed():
        die_at(patch, step, 1)
        await world.converge()
        is_killed = False
    return is_killed


async def test_a_moved_group_is_up_before_its_old_name_goes(world: World) -> None:
    """Also where only the bucket has a chunk any more, and the old name is looked at first."""
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        moved = FIRST.replace("vm/100", "vm/200")
        (world.datastore.root / "vm/100").rename(world.datastore.root / "vm/200")
        world.datastore.remove_chunk("a")
        puts = len(world.store.requests)
        running.changed("vm/100", chunk_key("a").removeprefix(f"{PREFIX}/"), "vm/200")
        await running.settled()
        changes = [request for request in world.store.requests[puts:] if request[0] in ("put", "copy", "delete")]
        assert changes.index(("put", content_key(f"{moved}/{MANIFEST}"))) < changes.index(
            ("delete", content_key(f"{FIRST}/{MANIFEST}"))
        )
        assert ("copy", content_key(f"{moved}/{INDEX}")) in changes
        assert not any("/.chunks/" in key for _, key in changes)
        assert running.problems() == {}
    assert published(world.store.objects) == {moved}
    assert world.references("a", "b") == [1, 1]
    world.check()


async def test_what_cannot_be_published_where_it_was_moved_to_keeps_its_old_name(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    moved = FIRST.replace("vm/100", "vm/200")
    async with world.running() as running:
        await running.settled()
        (world.datastore.root / "vm/100").rename(world.datastore.root / "vm/200")
        index = world.datastore.root / moved / INDEX
        whole = index.read_bytes()
        index.write_bytes(whole[:-1])
        running.changed("vm/100", "vm/200")
        await running.settled()
        assert published(world.store.objects) == {FIRST}
        assert f"{moved} has the same files and cannot be published" in running.problems()[FIRST]
        assert INDEX in running.problems()[moved]
        index.write_bytes(whole)
        running.changed(f"{moved}/{INDEX}")
        await running.settled()
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    assert published(world.store.objects) == {moved}
    assert world.references("a", "b") == [1, 1]
    world.check()


async def test_what_was_moved_and_is_forgotten_there_goes_under_its_old_name_too(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    moved = FIRST.replace("vm/100", "vm/200")
    async with world.running() as running:
        await running.settled()
        (world.datastore.root / "vm/100").rename(world.datastore.root / "vm/200")
        world.datastore.remove(f"{moved}/{INDEX}")
        running.changed("vm/100", "vm/200")
        await running.settled()
        assert published(world.store.objects) == {FIRST}
        world.datastore.forget_group("vm/200")
        running.changed("vm/200")
        await running.settled()
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    assert published(world.store.objects) == set()
    world.check()


async def test_what_moves_while_it_is_published_goes_from_its_old_name(world: World) -> None:
    """Nothing is known of its old name yet when the move is looked at."""
    world.datastore.back_up(FIRST, ["a"])
    gate = world.store.gate("put", chunk_key("a"))
    async with world.running() as running:
        await gate.reached.wait()
        (world.datastore.root / "vm/100").rename(world.datastore.root / "vm/200")
        await running.mirror.reconciler.reconcile_subtree("vm/100", 0)
        running.changed("vm/200")
        gate.opened.set()
        await running.settled()
    assert published(world.store.objects) == {FIRST.replace("vm/100", "vm/200")}
    world.check()


# --- locks


async def test_live_snapshots_are_locked_and_the_locks_extended(world: World) -> None:
    world.store.capabilities = replace(world.store.capabilities, object_lock=ObjectLockRule("COMPLIANCE", 30 * DAY))
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b"])
    async with world.running() as running:
        await running.settled()
        locks = running.mirror.locks
        await locks.extend_due()
        needed = {key for key in world.store.objects if "/.chunks/" in key or key.startswith(content_key("vm/100/2"))}
        assert {key: until - world.now for key, until in world.store.locks.items()} == dict.fromkeys(needed, 30 * DAY)
        assert len(world.store.keys_of("retain")) == len(needed)
        world.now += 7 * DAY
        await locks.extend_due()
        assert len(world.store.keys_of("retain")) == len(needed)
        await forget(running, world, FIRST)
        world.now += 9 * DAY
        await locks.extend_due()
        # Of those of the snapshot that lives; the other one's chunk runs out.
        assert world.store.locks[chunk_key("b")] == world.now + 30 * DAY
        assert world.store.locks[content_key(f"{SECOND}/{MANIFEST}")] == world.now + 30 * DAY
        assert world.store.locks[chunk_key("a")] == world.now + 14 * DAY


async def test_a_snapshot_to_which_a_file_is_being_added_is_locked_soon(world: World) -> None:
    world.store.capabilities = replace(world.store.capabilities, object_lock=ObjectLockRule("COMPLIANCE", 30 * DAY))
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        locks, added = running.mirror.locks, f"{FIRST}/client.log.blob"
        usual = await locks.extend_due()
        await running.mirror.state.apply(lambda transaction: transaction.contents.intend([added]))
        await running.mirror.state.apply(lambda transaction: transaction.locks.forget_snapshot(FIRST))
        assert await locks.extend_due() < usual / 10
        world.store.objects[content_key(added)] = b"log"
        assert await locks.extend_due() == usual
        assert content_key(added) in world.store.locks


@pytest.mark.parametrize(
    ("rule", "lock_for", "said"),
    [
        (None, None, None),
        (None, DAY, "has no effect: a dictionary has no Object Lock"),
        (ObjectLockRule(None, None), None, "nothing is locked without --retention-lock-for"),
    ],
)
async def test_nothing_is_locked_without_a_period_or_a_lock(
    world: World, rule: ObjectLockRule | None, lock_for: float | None, said: str | None
) -> None:
    world.retention = RetentionSettings(lock_for=lock_for)
    world.store.capabilities = replace(world.store.capabilities, object_lock=rule)
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        with trio.fail_after(5):
            await running.mirror.locks.keep_locked()
        assert (running.mirror.locks.obstacle is None) == (said is None)
        assert said is None or said in str(running.mirror.locks.obstacle)
    assert world.store.locks == {}
