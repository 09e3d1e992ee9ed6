"""A kill at every single change of the bucket: P1 at that moment, P2 after the next start, references right."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import trio

from tests.replication.datastore import (
    CONFIG,
    ELSEWHERE,
    FIRST,
    INDEX,
    MANIFEST,
    SECOND,
    Datastore,
    broken_snapshots,
    chunk_path,
    digest_of,
    published,
    referenced,
)
from tests.replication.world import Running, World, die_at, perhaps_killed

pytestmark = pytest.mark.trio


def first_backup(datastore: Datastore) -> list[str]:
    datastore.back_up(ELSEWHERE, ["a", "b"])
    datastore.write(f"{ELSEWHERE}/.protected", b"")
    return [*map(path_of, "ab"), "ns/a", "ns/a/ct/7/owner", f"{ELSEWHERE}/{MANIFEST}"]


def changed_files(datastore: Datastore) -> list[str]:
    datastore.back_up(FIRST, ["b", "c"], config=b"cores: 8")
    return [path_of("c"), f"{FIRST}/{INDEX}", f"{FIRST}/{CONFIG}", f"{FIRST}/{MANIFEST}"]


def changed_notes(datastore: Datastore) -> list[str]:
    datastore.write_manifest(FIRST, notes="weekly")
    return [f"{FIRST}/{MANIFEST}"]


def forgotten_snapshot(datastore: Datastore) -> list[str]:
    datastore.forget(FIRST)
    datastore.remove_chunk("a")
    return [FIRST, path_of("a")]


def forgotten_group(datastore: Datastore) -> list[str]:
    datastore.forget_group("vm/100")
    for label in ("a", "b"):
        datastore.remove_chunk(label)
    return ["vm/100", *map(path_of, "ab")]


def replaced_chunk(datastore: Datastore) -> list[str]:
    datastore.write_chunk("b", version=1)
    return [path_of("b")]


def quarantined_and_stored_again(datastore: Datastore) -> list[str]:
    datastore.quarantine_chunk("b")
    datastore.write_chunk("b", version=1)
    return [path_of("b"), f"{path_of('b')}.0.bad"]


def collected_garbage(datastore: Datastore) -> list[str]:
    """Three of them nobody needs; one, which is gone all the same, a snapshot does."""
    for label in ("lonely", "lonelier", "loneliest", "a"):
        datastore.remove_chunk(label)
    return [path_of(label) for label in ("lonely", "a", "lonelier", "loneliest")]


def moved_group(datastore: Datastore) -> list[str]:
    (datastore.root / "ns/b/vm").mkdir(parents=True)
    (datastore.root / "vm/100").rename(datastore.root / "ns/b/vm/100")
    return ["ns/b", "vm/100", "ns/b/vm/100"]


def path_of(label: str) -> str:
    return chunk_path(digest_of(label))


CHANGES = [
    first_backup,
    changed_files,
    changed_notes,
    forgotten_snapshot,
    forgotten_group,
    replaced_chunk,
    quarantined_and_stored_again,
    collected_garbage,
    moved_group,
]
# Where no request is sent in between, too.
STEPS_OF: dict[Callable[[Datastore], list[str]], list[str]] = {
    replaced_chunk: ["chunk.doubted", "chunk.staged", "chunk.replaced", "chunk.recorded", "chunk.unstaged"],
    quarantined_and_stored_again: ["chunk.quarantine-recorded", "chunk.doubted", "chunk.replaced"],
    collected_garbage: [
        "chunk-removal.before-doubt",
        "chunk-removal.before-delete",
        "chunk-removal.after-delete",
        "chunk-removal.recorded",
    ],
    forgotten_group: ["removal.released", "chunk-removal.before-delete", "chunk-removal.recorded"],
}


@pytest.mark.parametrize("change", CHANGES)
async def test_a_kill_at_every_step(world: World, change: Callable[[Datastore], list[str]]) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b", "b"])
    for label in ("lonely", "lonelier", "loneliest"):
        world.datastore.write_chunk(label)
    await world.converge()
    world.check()
    state, objects = world.state_directory, dict(world.store.objects)
    paths = change(world.datastore)
    step = 0
    while True:
        step += 1
        world.state_directory = copy_of(state, step)
        world.store.objects = dict(objects)
        world.store.steps, world.store.dies_at = 0, step
        if not await dies_of(world, paths):
            break
        world.store.dies_at = None
        await check_recovery(world)
    world.check()
    assert step > 2


@pytest.mark.parametrize("change", STEPS_OF)
async def test_a_kill_at_named_steps_between_the_requests(
    world: World, change: Callable[[Datastore], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b", "b"])
    for label in ("lonely", "lonelier", "loneliest"):
        world.datastore.write_chunk(label)
    await world.converge()
    state, objects = world.state_directory, dict(world.store.objects)
    paths = change(world.datastore)
    copies = 0
    for step in STEPS_OF[change]:
        times = 0
        died = True
        while died:
            times, copies = times + 1, copies + 1
            world.state_directory = copy_of(state, copies)
            world.store.objects = dict(objects)
            with monkeypatch.context() as patch:
                die_at(patch, step, times)
                died = await dies_of(world, paths)
            await check_recovery(world, paths)
        assert times > 1, f"{step} is not reached"


async def dies_of(world: World, paths: list[str]) -> bool:
    """Have a change mirrored; tells whether the uploader was killed."""
    with perhaps_killed():
        async with world.running(reconciles=False) as running:
            running.changed(*paths)
            await running.settled()
        return False
    return True


async def check_recovery(world: World, paths: Sequence[str] = ()) -> None:
    """P1 after a kill, and P2 after the next start; with `paths`, the journal still has their records."""
    assert broken_snapshots(world.store.objects) == []
    async with world.running() as running:
        running.changed(*paths)
        await running.settled()
        assert running.problems() == {}
    world.check()
    check_references(world)
    assert not any(key.startswith("mirror/.mirrorfs/") for key in world.store.objects)


def copy_of(state: Path, number: int) -> Path:
    target = state.with_name(f"state-{number}")
    target.mkdir(mode=0o700)
    (target / "data.mdb").write_bytes((state / "data.mdb").read_bytes())
    return target


def check_references(world: World) -> None:
    """Each published snapshot counts one for each of its chunks: seen by forgetting all, when every chunk must go."""
    counted = {label: count for label, count in zip("abcd", world.references(*"abcd"), strict=True) if count}
    needed = referenced(world.store.objects)
    assert {path_of(label) for label in counted} == {key.removeprefix("mirror/") for key in needed}
    assert sum(counted.values()) == sum(
        len(set(chunks_of(world, snapshot))) for snapshot in published(world.store.objects)
    )


def chunks_of(world: World, snapshot: str) -> list[bytes]:
    entries = world.store.objects[f"mirror/.cnt/{snapshot}/{INDEX}"][4096:]
    return [entries[start : start + 32] for start in range(0, len(entries), 32)]


async def test_a_kill_while_a_crash_is_repaired(world: World) -> None:
    """Killed again and again after ever so little work, an uploader gets there."""
    world.datastore.back_up(FIRST, ["a", "b", "c"])
    world.datastore.back_up(SECOND, ["b", "d"])
    lives = 0
    finished = False
    while not finished:
        lives += 1
        assert lives < 100
        world.store.steps, world.store.dies_at = 0, 3
        with perhaps_killed():
            await world.converge()
            finished = True
        assert broken_snapshots(world.store.objects) == []
    world.check()
    check_references(world)


@pytest.mark.parametrize("seed", range(6))
async def test_kills_in_a_life_full_of_changes(world: World, seed: int) -> None:
    chance = random.Random(seed)
    changes = [first_backup, changed_files, changed_notes, forgotten_snapshot, replaced_chunk]
    for _ in range(8):
        change = chance.choice(changes)
        world.datastore.back_up(FIRST, chance.choices("abcd", k=3))
        world.datastore.back_up(SECOND, chance.choices("abcd", k=3))
        for label in "abcd":
            if not (world.datastore.root / path_of(label)).exists():
                world.datastore.write_chunk(label)
        world.store.steps, world.store.dies_at = 0, chance.randint(1, 30)
        with perhaps_killed():
            async with world.running() as running:
                await change_while_running(running, world, change)
        assert broken_snapshots(world.store.objects) == []
        assert world.store.broken == []
    world.store.dies_at = None
    assert await world.converge() == {}
    world.check()
    check_references(world)


async def change_while_running(running: Running, world: World, change: Callable[[Datastore], list[str]]) -> None:
    await trio.lowlevel.checkpoint()
    running.changed(*change(world.datastore))
    await running.settled()
