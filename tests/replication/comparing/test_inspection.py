"""The bucket is not what the state says: `reconcile --deep` finds it, mends it, and touches nothing of others."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
import trio

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.objectstore.answers import StoredObject
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.errors import StoreRejected
from mirrorfs.replication.comparing import inspection
from mirrorfs.replication.comparing.differences import Difference, Remedy
from mirrorfs.replication.comparing.inspection import no_report
from mirrorfs.state.snapshots import SnapshotPhase
from mirrorfs.state.state import State, StateTransaction
from tests.replication.datastore import (
    CONFIG,
    ELSEWHERE,
    FIRST,
    INDEX,
    MANIFEST,
    PREFIX,
    SECOND,
    Datastore,
    broken_snapshots,
    chunk_key,
    chunk_path,
    content_key,
    digest_of,
    published,
)
from tests.replication.world import FakeStore, Killed, World, perhaps_killed

pytestmark = pytest.mark.trio

NOBODYS_CHUNK = f"{PREFIX}/.chunks/0000/{'00' * 32}"
EVERYTHING = {
    "chunk": chunk_key("a"),
    "index": content_key(f"{FIRST}/{INDEX}"),
    "blob": content_key(f"{FIRST}/{CONFIG}"),
    "manifest": content_key(f"{FIRST}/{MANIFEST}"),
    "protection": content_key(f"{FIRST}/.protected"),
    "owner": content_key("vm/100/owner"),
    "marker": content_key("ns/a/.namespace"),
}


async def fill(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b", "c"])
    world.datastore.back_up(ELSEWHERE, ["c"])
    world.datastore.write_chunk("lonely")
    world.datastore.write(f"{FIRST}/.protected", b"")
    assert await world.converge() == {}
    world.check()
    # What is broken already may only get better.
    world.store.watches = False
    world.store.requests.clear()


async def mend(world: World) -> list[Difference]:
    async with world.running() as running:
        await running.settled()
        assert world.store.keys_of("put", "delete") == []
        return await running.reconcile(deep=True)


def sound(world: World) -> None:
    assert broken_snapshots(world.store.objects) == []
    assert world.difference() == {}


def dump(directory: Path) -> list[object]:
    state = State(str(directory))
    try:
        return state.view(_everything)
    finally:
        state.close()


def _everything(transaction: StateTransaction) -> list[object]:
    return [
        *transaction.chunks.after(b"", 1000),
        *transaction.contents.all(),
        *transaction.snapshots.all(),
        transaction.progress.inspecting(),
    ]


async def test_a_bucket_as_it_should_be_is_only_listed_and_looked_at(world: World) -> None:
    await fill(world)
    assert await mend(world) == []
    assert world.store.keys_of("put", "delete", "get") == []


@pytest.mark.parametrize("what", EVERYTHING)
async def test_an_object_that_is_gone_is_sent_again(world: World, what: str) -> None:
    await fill(world)
    del world.store.objects[EVERYTHING[what]]
    assert [(found.key, found.remedy) for found in await mend(world)] == [(EVERYTHING[what], Remedy.SEND)]
    assert world.store.keys_of("put") == [EVERYTHING[what]]
    sound(world)
    assert world.references("a", "b", "c", "lonely") == [1, 2, 2, 0]


@pytest.mark.parametrize("what", ["chunk", "index", "manifest"])
async def test_an_object_that_was_cut_off_is_sent_again(world: World, what: str) -> None:
    await fill(world)
    world.store.objects[EVERYTHING[what]] = world.store.objects[EVERYTHING[what]][:-1]
    assert [(found.key, found.remedy) for found in await mend(world)] == [(EVERYTHING[what], Remedy.SEND)]
    sound(world)


@pytest.mark.parametrize(
    "capabilities",
    [StoreCapabilities(True, True, True, True, True), StoreCapabilities(False, False, False, False, True)],
)
async def test_other_content_of_the_same_size_is_found_by_checksum(
    world: World, capabilities: StoreCapabilities
) -> None:
    await fill(world)
    world.store.capabilities = capabilities
    for what in ("index", "manifest"):
        world.store.objects[EVERYTHING[what]] = bytes(len(world.store.objects[EVERYTHING[what]]))
    assert {found.key for found in await mend(world)} == {EVERYTHING["index"], EVERYTHING["manifest"]}
    sound(world)


async def test_a_bucket_that_was_emptied_is_filled_again(world: World) -> None:
    await fill(world)
    before = dict(world.store.objects)
    world.store.objects.clear()
    await mend(world)
    assert world.store.objects == before
    assert world.references("a", "b", "c", "lonely") == [1, 2, 2, 0]


async def test_objects_of_nobody_go_and_foreign_ones_stay(world: World) -> None:
    await fill(world)
    foreign = [f"{PREFIX}/{name}" for name in (".chunks/readme", ".cnt/vm/100/x y", "other", ".chunks/0000/short")]
    ours = [NOBODYS_CHUNK, content_key(f"vm/7/2026-01-01T00:00:00Z/{INDEX}"), content_key(f"{FIRST}/old.img.fidx")]
    world.store.objects.update(dict.fromkeys([*foreign, *ours], b"anything"))
    before = dict(world.store.objects)
    found = await mend(world)
    assert {difference.key for difference in found if difference.remedy is Remedy.LEAVE} == set(foreign)
    assert {difference.key for difference in found if difference.remedy is Remedy.DELETE} == set(ours)
    assert set(world.store.keys_of("delete")) == set(ours)
    assert world.store.keys_of("put") == []
    assert world.store.objects == {key: data for key, data in before.items() if key not in ours}


async def test_what_the_state_does_not_know_is_adopted_if_it_is_what_the_datastore_has(world: World) -> None:
    await fill(world)
    async with world.running() as running:
        await running.settled()
        running.state.update(lambda transaction: transaction.chunks.forget(digest_of("lonely")))
        running.state.update(lambda transaction: transaction.contents.forget([f"{FIRST}/.protected", "vm/100/owner"]))
        await running.mirror.inspection.inspect(no_report)
        await running.mirror.reconciler.reconcile(0)
        await running.settled()
    assert world.store.keys_of("put", "delete") == []
    sound(world)


async def test_a_chunk_that_nobody_has_is_a_problem_of_its_snapshots_until_it_is_back(world: World) -> None:
    await fill(world)
    world.datastore.remove_chunk("b")
    async with world.running() as running:
        await running.settled()
        assert running.problems() == {}
        del world.store.objects[chunk_key("b")]
        found = await running.reconcile(deep=True)
        assert {difference.key for difference in found if difference.remedy is Remedy.NONE} == {
            chunk_key("b"),
            f"{content_key(FIRST)}/",
            f"{content_key(SECOND)}/",
        }
        problems = running.problems()
        assert set(problems) == {FIRST, SECOND}
        assert all("incomplete" in reason and "missing" in reason for reason in problems.values())
    # It is not forgotten by a restart, nor by a reconcile that does not list.
    assert set(await world.converge()) == {FIRST, SECOND}
    async with world.running() as running:
        await running.settled()
        world.datastore.write_chunk("b")
        running.changed(chunk_path(digest_of("b")))
        await running.settled()
        assert running.problems() == {}
    sound(world)
    assert world.references("a", "b", "c", "lonely") == [1, 2, 2, 0]


async def test_a_dry_run_tells_everything_and_changes_nothing(world: World) -> None:
    await fill(world)
    world.datastore.remove_chunk("b")
    await world.converge()
    for key in (chunk_key("a"), chunk_key("b"), EVERYTHING["index"]):
        del world.store.objects[key]
    world.store.objects.update({NOBODYS_CHUNK: b"x", f"{PREFIX}/other": b"y"})
    objects, state = dict(world.store.objects), dump(world.state_directory)
    found: list[Difference] = []

    async def add(difference: Difference) -> None:
        found.append(difference)

    async with world.running(reconciles=False) as running:
        world.datastore.write_chunk("new")
        world.datastore.forget(ELSEWHERE)
        world.datastore.write("vm/100/notes", b"note")
        await running.mirror.survey.survey(add)
        await running.mirror.inspection.inspect(add, corrects=False)
    assert {difference.key: difference.remedy for difference in found} == {
        chunk_key("new"): Remedy.SEND,
        f"{content_key(ELSEWHERE)}/": Remedy.DELETE,
        content_key("vm/100/notes"): Remedy.SEND,
        chunk_key("a"): Remedy.SEND,
        chunk_key("b"): Remedy.NONE,
        f"{content_key(FIRST)}/": Remedy.NONE,
        f"{content_key(SECOND)}/": Remedy.NONE,
        EVERYTHING["index"]: Remedy.SEND,
        NOBODYS_CHUNK: Remedy.DELETE,
        f"{PREFIX}/other": Remedy.LEAVE,
    }
    assert world.store.objects == objects
    assert dump(world.state_directory) == state


@pytest.mark.parametrize("seed", range(3))
async def test_neither_order_nor_pages_matter(world: World, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(inspection, "_OBJECTS_AT_ONCE", 2)
    monkeypatch.setattr(inspection, "_MOST_UNKNOWN", 1)

    async def shuffled(store: FakeStore, prefix: str) -> AsyncGenerator[StoredObject, None]:
        await trio.lowlevel.checkpoint()
        keys = [key for key in store.objects if key.startswith(prefix)]
        random.Random(seed).shuffle(keys)
        for key in keys:
            held = await store.head(key)
            assert held is not None
            yield held

    await fill(world)
    monkeypatch.setattr(FakeStore, "list", shuffled)
    gone = [chunk_key("a"), chunk_key("lonely"), EVERYTHING["index"], EVERYTHING["owner"]]
    for key in gone:
        del world.store.objects[key]
    nobodys = [f"{PREFIX}/.chunks/0000/{'00' * 31}{number:02x}" for number in range(5)]
    world.store.objects.update(dict.fromkeys(nobodys, b"x"))
    found = await mend(world)
    assert sorted(difference.key for difference in found) == sorted([*gone, *nobodys])
    assert sorted(world.store.keys_of("put")) == sorted(gone)
    sound(world)


async def test_a_state_that_is_older_than_the_bucket_is_made_true_before_anything_relies_on_it(world: World) -> None:
    """What a disk that lies about syncing makes of a power cut: the state forgets, the bucket does not."""
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(ELSEWHERE, ["gone"])
    await world.converge()
    older = world.state_directory.with_name("older")
    shutil.copytree(world.state_directory, older)
    world.datastore.forget_group("ns/a/ct/7")
    world.datastore.remove_chunk("gone")
    world.datastore.back_up(SECOND, ["b", "only in the bucket"])
    await world.converge()
    world.datastore.remove_chunk("only in the bucket")
    await world.converge()
    world.check()
    shutil.rmtree(world.state_directory)
    older.rename(world.state_directory)
    # The older state calls "gone" confirmed, and does not know who needs "only in the bucket".
    world.datastore.back_up("vm/100/2026-01-03T00:00:00Z", ["gone"])
    world.store.requests.clear()
    state = State(str(world.state_directory))
    state.update(lambda transaction: transaction.progress.set_inspecting(True))
    state.close()
    assert await world.converge() == {}
    world.check()
    a, b, gone, only_in_the_bucket = world.references("a", "b", "gone", "only in the bucket")
    assert (a, b, only_in_the_bucket) == (1, 2, 1)
    # What its lost snapshot needed can be read nowhere any more: too much is counted, never too little.
    assert gone == 2
    assert chunk_key("only in the bucket") not in world.store.keys_of("put", "delete")
    assert content_key(f"{SECOND}/{INDEX}") not in world.store.keys_of("put", "delete")


async def test_a_snapshot_of_an_older_state_that_the_datastore_has_no_more_is_removed_in_order(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    await world.converge()
    older = world.state_directory.with_name("older")
    shutil.copytree(world.state_directory, older)
    world.datastore.back_up(SECOND, ["b"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    older.rename(world.state_directory)
    world.datastore.forget(SECOND)
    world.datastore.remove_chunk("b")
    async with world.running() as running:
        await running.settled()
        await running.reconcile(deep=True)
    world.check()
    assert published(world.store.objects) == {FIRST}


async def test_a_chunk_that_is_found_missing_during_a_publication_holds_it_up(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    await world.converge()
    async with world.running() as running:
        await running.settled()
        gate = world.store.gate("put", content_key(f"{SECOND}/{INDEX}"))
        world.datastore.back_up(SECOND, ["a", "b"])
        running.add(SnapshotId.parse(SECOND))
        await gate.reached.wait()
        world.store.watches = False
        del world.store.objects[chunk_key("a")]
        with trio.fail_after(10):
            await running.mirror.inspection.inspect(no_report)
        # From here on, what is published is whole: it was missing when the snapshot that waits was looked at.
        gate.opened.set()
        await running.settled()
        assert running.problems() == {}
    sound(world)
    assert world.references("a", "b") == [2, 1]


async def test_a_kill_at_every_step_of_mending(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mirrorfs.replication.comparing.reconcile._CHUNK_DIRECTORIES", 4)
    monkeypatch.setattr("mirrorfs.replication.comparing.reconcile._DIRECTORIES_AT_ONCE", 4)
    dies_at = 1
    while True:
        world = _world(directory / str(dies_at))
        await fill(world)
        for key in (chunk_key("a"), EVERYTHING["index"], EVERYTHING["manifest"]):
            del world.store.objects[key]
        world.store.objects[NOBODYS_CHUNK] = b"x"
        world.store.steps, world.store.dies_at = 0, dies_at
        killed = True
        with perhaps_killed():
            await mend_under_threat(world)
            killed = False
        world.store.dies_at = None
        assert await world.converge() == {}
        sound(world)
        assert world.references("a", "b", "c", "lonely") == [1, 2, 2, 0]
        if not killed:
            break
        dies_at += 1
    assert dies_at > 6


async def mend_under_threat(world: World) -> None:
    async with world.running() as running:
        await running.reconcile(deep=True)


def _world(base: Path) -> World:
    datastore = Datastore(base / "datastore")
    datastore.create()
    return World(datastore, base / "state")


async def test_a_kill_between_doubting_a_chunk_and_its_snapshots_is_made_good(world: World) -> None:
    await fill(world)
    world.datastore.remove_chunk("b")
    await world.converge()
    del world.store.objects[chunk_key("b")]

    async def die(difference: Difference) -> None:
        if difference.key == chunk_key("b"):
            raise Killed

    with perhaps_killed():
        async with world.running() as running:
            await running.settled()
            await running.mirror.inspection.inspect(die)
    assert set(await world.converge()) == {FIRST, SECOND}


async def test_phases_tell_that_a_snapshot_is_in_doubt(world: World) -> None:
    await fill(world)
    world.datastore.remove_chunk("a")
    await world.converge()
    del world.store.objects[chunk_key("a")]
    async with world.running() as running:
        await running.settled()
        await running.reconcile(deep=True)
        phases = running.state.view(
            lambda transaction: {path: snapshot.phase for path, snapshot in transaction.snapshots.all()}
        )
    assert phases == {
        FIRST: SnapshotPhase.ADOPTED,
        SECOND: SnapshotPhase.PUBLISHED,
        ELSEWHERE: SnapshotPhase.PUBLISHED,
    }


@pytest.mark.parametrize("lost", ["chunk", "blob"])
async def test_a_store_that_refuses_to_tell_ends_it_with_that_error(
    world: World, lost: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world)
    del world.store.objects[EVERYTHING[lost]]

    async def refuse(key: str) -> StoredObject | None:
        raise StoreRejected(f"look at {key}", "access denied")

    async with world.running() as running:
        await running.settled()
        # By itself, not in a group: whoever asked waits for the store, or tells the administrator.
        monkeypatch.setattr(FakeStore, "head", staticmethod(refuse))
        with pytest.raises(StoreRejected, match="access denied"):
            await running.mirror.inspection.inspect(no_report)
