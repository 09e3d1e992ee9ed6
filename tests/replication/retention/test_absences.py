"""Only what was seen to go, goes; what is merely missed goes at once only if it looks like a prune."""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.replication.settings import RetentionSettings
from mirrorfs.replication.work.items import item_of
from mirrorfs.replication.work.worklist import WATCHED
from mirrorfs.state.retention import HeldFor
from tests.replication.datastore import chunk_key, published
from tests.replication.world import Running, World, die_at, perhaps_killed

pytestmark = pytest.mark.trio

DAY = 86400.0
DAYS = [f"2026-01-{day:02}T00:00:00Z" for day in range(1, 6)]
GROUP, OTHER = "vm/100", "ns/a/ct/7"
OLDEST, *_, NEWEST = VM = [f"{GROUP}/{day}" for day in DAYS]
CT = [f"{OTHER}/{day}" for day in DAYS]
ALL = {*VM, *CT}


@pytest.fixture
async def mirrored(world: World) -> World:
    """Two groups of five snapshots, mirrored; what is not seen to go is held for a week."""
    world.unseen_after = 7 * DAY
    for path in sorted(ALL):
        world.datastore.back_up(path, [f"chunk of {path}", "shared"])
    await world.converge()
    assert standing(world) == ALL
    return world


def standing(world: World) -> set[str]:
    return published(world.store.objects)


def forget(world: World, *paths: str) -> None:
    for path in paths:
        shutil.rmtree(world.datastore.root / path)


def held(running: Running) -> dict[str, HeldFor]:
    removals = running.state.view(lambda transaction: list(transaction.retention.all_held()))
    return {removal.path: removal.reason for removal in removals if not removal.approved}


async def held_after_a_start(world: World) -> dict[str, HeldFor]:
    async with world.running() as running:
        await running.settled()
        return held(running)


def unseen(*paths: str) -> dict[str, HeldFor]:
    return dict.fromkeys(paths, HeldFor.UNSEEN)


# --- what is plausible


async def test_a_prune_that_nobody_watched_is_followed_at_once(mirrored: World) -> None:
    forget(mirrored, *VM[:3], CT[1])
    assert await held_after_a_start(mirrored) == {}
    assert standing(mirrored) == ALL - {*VM[:3], CT[1]}
    mirrored.check()


async def test_what_went_with_the_newest_of_its_group_is_held(mirrored: World) -> None:
    """As when an older copy of the datastore's disk is put back."""
    forget(mirrored, *VM[3:], CT[0])
    assert await held_after_a_start(mirrored) == unseen(*VM[3:])
    assert standing(mirrored) == ALL - {CT[0]}
    assert mirrored.store.broken == []


async def test_a_whole_group_that_is_missed_is_held_with_all_that_it_needs(mirrored: World) -> None:
    shutil.rmtree(mirrored.datastore.root / GROUP)
    for path in VM:
        mirrored.datastore.remove_chunk(f"chunk of {path}")
    assert await held_after_a_start(mirrored) == unseen(*VM)
    assert standing(mirrored) == ALL
    assert {chunk_key(f"chunk of {path}") for path in VM} <= mirrored.store.objects.keys()
    assert mirrored.store.objects[f"mirror/.cnt/{GROUP}/owner"] == b"root@pam\n"
    assert mirrored.store.broken == []


async def test_what_went_with_a_protected_one_is_held(mirrored: World) -> None:
    mirrored.datastore.write(f"{VM[1]}/.protected", b"")
    await mirrored.converge()
    forget(mirrored, VM[0], VM[1])
    assert await held_after_a_start(mirrored) == unseen(VM[0], VM[1])
    assert standing(mirrored) == ALL


async def test_a_new_backup_does_not_make_a_lost_one_plausible(mirrored: World) -> None:
    """PBS backs up onto the older copy of the disk before mirrorfs is mounted again."""
    forget(mirrored, NEWEST)
    newer = f"{GROUP}/2026-02-01T00:00:00Z"
    mirrored.datastore.back_up(newer, ["shared"])
    assert await held_after_a_start(mirrored) == unseen(NEWEST)
    assert standing(mirrored) == {*ALL, newer}
    assert await held_after_a_start(mirrored) == unseen(NEWEST)
    assert standing(mirrored) == {*ALL, newer}


async def test_what_a_state_has_only_found_in_the_bucket_is_held(mirrored: World) -> None:
    """The state is lost, or was an older copy and has forgotten what it knew: the rest it found."""
    forget(mirrored, OLDEST)
    shutil.rmtree(mirrored.state_directory)
    assert await held_after_a_start(mirrored) == unseen(OLDEST)
    assert standing(mirrored) == ALL


async def test_what_moved_while_nobody_watched_goes_from_its_old_name(mirrored: World) -> None:
    (mirrored.datastore.root / GROUP).rename(mirrored.datastore.root / "vm/200")
    assert await held_after_a_start(mirrored) == {}
    mirrored.check()


# --- what was seen


@pytest.mark.parametrize("told", ["manifest", "snapshot", "group"])
async def test_what_the_journal_saw_going_goes(mirrored: World, told: str) -> None:
    async with mirrored.running() as running:
        await running.settled()
        if told == "group":
            shutil.rmtree(mirrored.datastore.root / GROUP)
            running.changed(GROUP)
            gone = VM
        else:
            forget(mirrored, NEWEST)
            running.changed(NEWEST if told == "snapshot" else f"{NEWEST}/index.json.blob")
            gone = [NEWEST]
        await running.settled()
        assert held(running) == {}
    assert standing(mirrored) == ALL.difference(gone)
    mirrored.check()


async def test_what_was_seen_stays_seen_while_others_look(mirrored: World) -> None:
    async with mirrored.running(newest=lambda: 7) as running:
        await running.settled()
        forget(mirrored, NEWEST)
        running.changed(f"{NEWEST}/index.json.blob")
        # Whoever compares comes upon it while its removal waits for the journal.
        await running.mirror.reconciler.reconcile(7)
        running.worklist.has_read(7)
        await running.settled()
        assert held(running) == {}
    assert standing(mirrored) == ALL - {NEWEST}


async def test_a_directory_that_was_made_explains_nothing(mirrored: World) -> None:
    async with mirrored.running() as running:
        await running.settled()
        forget(mirrored, NEWEST)
        running.changed(GROUP)
        await running.settled()
        assert held(running) == unseen(NEWEST)
    assert standing(mirrored) == ALL


async def test_a_record_older_than_the_snapshot_explains_nothing(mirrored: World) -> None:
    async with mirrored.running() as running:
        await running.settled()
        forget(mirrored, NEWEST, CT[4])
        for path, seen_at in ((NEWEST, mirrored.now - DAY), (CT[4], WATCHED)):
            item = item_of(f"{path}/index.json.blob".encode())
            assert item is not None
            running.worklist.add(item, 0, seen_at=seen_at)
        await running.settled()
        assert held(running) == unseen(NEWEST)
    assert standing(mirrored) == ALL - {CT[4]}


async def test_a_journal_that_is_lost_holds_what_it_would_have_told(mirrored: World) -> None:
    async with mirrored.running() as running:
        await running.settled()
        forget(mirrored, NEWEST)
        await running.reconcile()
        assert held(running) == unseen(NEWEST)
        # It is told after all.
        running.changed(f"{NEWEST}/index.json.blob")
        await running.settled()
        assert held(running) == {}
    assert standing(mirrored) == ALL - {NEWEST}
    mirrored.check()


# --- how it ends


async def test_it_goes_when_it_has_been_missed_for_long_enough(mirrored: World) -> None:
    shutil.rmtree(mirrored.datastore.root / GROUP)
    await mirrored.converge()
    mirrored.now += 6.9 * DAY
    async with mirrored.running() as running:
        running.mirror.look_again_at_held()
        await running.settled()
        assert standing(mirrored) == ALL
        mirrored.now += 0.2 * DAY
        running.mirror.look_again_at_held()
        await running.settled()
        assert held(running) == {}
    assert standing(mirrored) == set(CT)
    mirrored.check()


async def test_nothing_goes_by_itself_while_the_clocks_disagree(mirrored: World) -> None:
    forget(mirrored, NEWEST)
    await mirrored.converge()
    mirrored.now += 8 * DAY
    mirrored.store.clock_ahead = -8 * DAY
    async with mirrored.running() as running:
        await running.mirror.clock.check()
        running.mirror.look_again_at_held()
        await running.settled()
        assert standing(mirrored) == ALL
        mirrored.store.clock_ahead = 0.0
        await running.mirror.clock.check()
        running.mirror.look_again_at_held()
        await running.settled()
    assert standing(mirrored) == ALL - {NEWEST}


async def test_what_goes_by_itself_may_still_be_too_much_for_a_day(mirrored: World) -> None:
    mirrored.retention = RetentionSettings(max_delete_fraction=0.3)
    shutil.rmtree(mirrored.datastore.root / GROUP)
    await mirrored.converge()
    mirrored.now += 8 * DAY
    assert await held_after_a_start(mirrored) == dict.fromkeys(VM, HeldFor.WAVE)
    assert standing(mirrored) == ALL


async def test_it_is_held_for_ever_only_until_it_is_back(mirrored: World) -> None:
    away = mirrored.datastore.root.parent / "away"
    (mirrored.datastore.root / NEWEST).rename(away)
    assert await held_after_a_start(mirrored) == unseen(NEWEST)
    away.rename(mirrored.datastore.root / NEWEST)
    assert await held_after_a_start(mirrored) == {}
    mirrored.check()


async def test_zero_holds_nothing(mirrored: World) -> None:
    forget(mirrored, *VM)
    mirrored.unseen_after = 0.0
    assert await held_after_a_start(mirrored) == {}
    assert standing(mirrored) == set(CT)


async def test_an_administrator_approves_of_all_or_by_path(mirrored: World) -> None:
    forget(mirrored, *VM[3:], *CT[2:])
    async with mirrored.running() as running:
        await running.settled()
        approved = await running.mirror.approve_removals([VM[3], "ns/a"])
        assert {snapshot.path for snapshot in approved} == {VM[3], *CT[2:]}
        await running.settled()
        assert standing(mirrored) == ALL - {VM[3], *CT[2:]}
        assert held(running) == unseen(VM[4])
        # A name that only begins alike is another.
        assert await running.mirror.approve_removals(["vm/10", f"{GROUP}/2026"]) == []
        assert len(await running.mirror.approve_removals()) == 1
        await running.settled()
    mirrored.check()


async def test_what_is_allowed_to_go_goes_also_after_a_crash_and_nothing_else_does(mirrored: World) -> None:
    forget(mirrored, *VM)
    async with mirrored.running() as running:
        await running.settled()
        assert held(running) == unseen(*VM)
    async with mirrored.running(reconciles=False) as running:
        # All of these are gone; one was held before, the others were not.
        forget(mirrored, *CT[2:])
        await running.mirror.absences.let_go([SnapshotId.parse(path) for path in (*VM[2:], *CT[2:])])
        assert held(running) == unseen(*VM[:2])
    forget(mirrored, CT[1])
    assert await held_after_a_start(mirrored) == unseen(*VM[:2], CT[1])
    assert standing(mirrored) == {*VM[:2], *CT[:2]}


async def test_what_is_allowed_to_go_may_still_be_too_much_for_a_day(mirrored: World) -> None:
    mirrored.retention = RetentionSettings(max_delete_fraction=0.3)
    forget(mirrored, *VM)
    async with mirrored.running(reconciles=False) as running:
        await running.mirror.absences.let_go([SnapshotId.parse(path) for path in VM])
    assert await held_after_a_start(mirrored) == dict.fromkeys(VM, HeldFor.WAVE)
    assert standing(mirrored) == ALL


async def test_what_is_allowed_to_go_and_comes_back_is_held_the_next_time(mirrored: World) -> None:
    away = mirrored.datastore.root.parent / "away"
    (mirrored.datastore.root / NEWEST).rename(away)
    async with mirrored.running(reconciles=False) as running:
        await running.mirror.absences.let_go([SnapshotId.parse(NEWEST)])
    away.rename(mirrored.datastore.root / NEWEST)
    await mirrored.converge()
    forget(mirrored, NEWEST)
    assert await held_after_a_start(mirrored) == unseen(NEWEST)


async def test_with_a_grace_it_is_kept_from_then_on(mirrored: World) -> None:
    mirrored.retention = replace(mirrored.retention, delete_after=30 * DAY)
    forget(mirrored, NEWEST)
    async with mirrored.running() as running:
        await running.settled()
        await running.mirror.approve_removals()
        await running.settled()
        deleted = running.state.view(lambda transaction: list(transaction.retention.all_deleted()))
        assert [snapshot.path for snapshot in deleted] == [NEWEST]
    assert mirrored.store.broken == []


# --- what somebody else has made


async def test_what_somebody_else_may_have_made_never_goes_by_itself(mirrored: World) -> None:
    forget(mirrored, *VM[3:])
    shutil.rmtree(mirrored.state_directory)
    mirrored.unseen_after = 0.0
    await _take_in_with_strangers(mirrored)
    mirrored.now += 365 * DAY
    assert await held_after_a_start(mirrored) == dict.fromkeys(VM[3:], HeldFor.STRANGER)
    async with mirrored.running() as running:
        running.mirror.look_again_at_held()
        await running.settled()
        assert standing(mirrored) == ALL
        await running.mirror.approve_removals()
        await running.settled()
    assert standing(mirrored) == ALL.difference(VM[3:])
    mirrored.check()


async def _take_in_with_strangers(world: World) -> None:
    async with world.running(reconciles=False) as running:
        await running.mirror.state.apply(lambda transaction: transaction.identity.set_strangers(True))


# --- killed


@pytest.mark.parametrize("step", ["absences.held", "wave.recorded", "removal.begun", "removal.manifest-deleted"])
@pytest.mark.parametrize("change", [lambda world: forget(world, NEWEST), lambda world: forget(world, OLDEST)])
async def test_killed_on_the_way(
    mirrored: World, monkeypatch: pytest.MonkeyPatch, step: str, change: Callable[[World], None]
) -> None:
    change(mirrored)
    is_pruned = not (mirrored.datastore.root / OLDEST).exists()
    with monkeypatch.context() as patch, perhaps_killed():
        die_at(patch, step, 1)
        await mirrored.converge()
    found = await held_after_a_start(mirrored)
    assert found == ({} if is_pruned else unseen(NEWEST))
    assert standing(mirrored) == ALL - ({OLDEST} if is_pruned else set())
    assert mirrored.store.broken == []


async def test_what_was_admitted_goes_on_after_a_crash_whatever_it_looks_like_then(
    mirrored: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It was seen; the journal that told it is lost with the crash."""
    with monkeypatch.context() as patch, perhaps_killed():
        async with mirrored.running() as running:
            await running.settled()
            forget(mirrored, NEWEST)
            die_at(patch, "wave.recorded", 1)
            running.changed(f"{NEWEST}/index.json.blob")
            await running.settled()
    assert standing(mirrored) == ALL
    assert await held_after_a_start(mirrored) == {}
    assert standing(mirrored) == ALL - {NEWEST}
    mirrored.check()


async def test_killed_when_what_strangers_may_have_made_is_held(
    mirrored: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(mirrored, *VM[3:])
    shutil.rmtree(mirrored.state_directory)
    mirrored.unseen_after = 0.0
    await _take_in_with_strangers(mirrored)
    assert await _is_killed_at("absences.strangers-held", monkeypatch, mirrored.converge)
    assert await held_after_a_start(mirrored) == dict.fromkeys(VM[3:], HeldFor.STRANGER)
    assert standing(mirrored) == ALL
    assert mirrored.store.broken == []


async def test_killed_when_it_was_allowed_to_go(mirrored: World, monkeypatch: pytest.MonkeyPatch) -> None:
    forget(mirrored, *VM)
    assert await held_after_a_start(mirrored) == unseen(*VM)

    async def let_go() -> None:
        async with mirrored.running(reconciles=False) as running:
            await running.mirror.absences.let_go([SnapshotId.parse(path) for path in VM[2:]])

    assert await _is_killed_at("absences.let-go", monkeypatch, let_go)
    assert await held_after_a_start(mirrored) == unseen(*VM[:2])
    assert standing(mirrored) == ALL.difference(VM[2:])
    assert mirrored.store.broken == []


async def _is_killed_at(step: str, monkeypatch: pytest.MonkeyPatch, work: Callable[[], Awaitable[object]]) -> bool:
    is_killed = True
    with monkeypatch.context() as patch, perhaps_killed():
        die_at(patch, step, 1)
        await work()
        is_killed = False
    return is_killed
