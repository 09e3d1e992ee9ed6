"""References are counted and given back part by part: killed between any two parts, the counts come out right."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.replication.settings import RetentionSettings
from tests.replication.datastore import FIRST, SECOND, Datastore, broken_snapshots, chunk_key, content_key
from tests.replication.world import World, die_at, perhaps_killed

pytestmark = pytest.mark.trio

LABELS = "abcdefg"
KEPT = RetentionSettings(delete_after=86400.0)
COUNTED = "references.counted"
GIVING_BACK = "references.giving-back"
GIVEN_BACK = "references.given-back"

Change = Callable[[Datastore], None]


def back_up(datastore: Datastore) -> None:
    datastore.back_up(FIRST, LABELS)


def back_up_less(datastore: Datastore) -> None:
    datastore.back_up(FIRST, "bdf")


def forget(datastore: Datastore) -> None:
    datastore.forget(FIRST)
    collect_garbage(datastore)


def collect_garbage(datastore: Datastore) -> None:
    for label in "acg":
        datastore.remove_chunk(label)


async def life(world: World) -> bool:
    """One start of the uploader; tells whether it was killed before it came to rest."""
    killed = True
    with perhaps_killed():
        async with world.running() as running:
            await running.settled()
            await running.mirror.grace.end_due()
            await running.settled()
        killed = False
    assert world.store.broken == []
    assert broken_snapshots(world.store.objects) == []
    return killed


async def converge(world: World) -> None:
    assert not await life(world)
    world.check()
    assert not world.interrupted(FIRST)


async def killed_at_each(
    world: World, step: str, monkeypatch: pytest.MonkeyPatch, afterwards: Callable[[World], None]
) -> int:
    """From the same state and bucket, kill at the first, the second … time that a step is reached, and let the next
    uploader come to rest; returns how often the step was reached in all."""
    before, objects = world.state_directory, dict(world.store.objects)
    datastore = world.datastore.root
    copied = datastore.with_name("datastore-before")
    shutil.copytree(datastore, copied)
    times = 0
    while True:
        times += 1
        world.state_directory = before.with_name(f"{before.name}-{step}-{times}")
        if before.exists():
            shutil.copytree(before, world.state_directory)
        world.store.objects = dict(objects)
        restore(copied, datastore)
        with monkeypatch.context() as patch:
            die_at(patch, step, times)
            if not await life(world):
                return times - 1
        afterwards(world)
        await converge(world)


def restore(source: Path, target: Path) -> None:
    shutil.rmtree(target)
    shutil.copytree(source, target)


def nothing(world: World) -> None:
    """The next uploader finds all as it was."""


async def test_killed_while_counting(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(world.datastore)
    world.datastore.back_up(SECOND, "ab")
    world.datastore.forget(SECOND)

    def check(world: World) -> None:
        assert world.interrupted(FIRST)
        assert content_key(f"{FIRST}/index.json.blob") not in world.store.objects

    # The last of the seven is counted with the phase.
    assert await killed_at_each(world, COUNTED, monkeypatch, check) == 6
    assert world.references(*LABELS) == [1] * 7


@pytest.mark.parametrize(("change", "references"), [(back_up_less, [0, 1, 0, 1, 0, 1, 0]), (forget, [0] * 7)])
async def test_what_was_being_counted_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, change: Change, references: list[int]
) -> None:
    """Other files take its name before the next start, or none at all."""
    back_up(world.datastore)

    def change_it(world: World) -> None:
        change(world.datastore)

    reached = await killed_at_each(world, COUNTED, monkeypatch, change_it)
    assert reached == 6
    change(world.datastore)
    await converge(world)
    assert world.references(*LABELS) == references


@pytest.mark.parametrize("step", [GIVING_BACK, GIVEN_BACK])
@pytest.mark.parametrize(("change", "references"), [(back_up_less, [0, 2, 0, 1, 0, 1, 0]), (forget, [0, 1] + [0] * 5)])
async def test_killed_while_giving_back(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str, change: Change, references: list[int]
) -> None:
    back_up(world.datastore)
    world.datastore.back_up(SECOND, "b")
    await converge(world)
    change(world.datastore)
    assert await killed_at_each(world, step, monkeypatch, nothing) == (7 if step == GIVEN_BACK else 1)
    assert world.references(*LABELS) == references
    assert (chunk_key("a") in world.store.objects) == (world.datastore.root / chunk_key("a").split("/", 1)[1]).exists()


async def test_it_returns_while_its_references_are_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    back_up(world.datastore)
    await converge(world)
    forget(world.datastore)
    assert await killed_at_each(world, GIVEN_BACK, monkeypatch, lambda world: back_up(world.datastore)) == 7
    back_up(world.datastore)
    await converge(world)
    assert world.references(*LABELS) == [1] * 7


@pytest.mark.parametrize("step", [GIVING_BACK, GIVEN_BACK])
async def test_killed_while_a_grace_gives_back(world: World, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    world.retention = KEPT
    back_up(world.datastore)
    await converge(world)
    world.datastore.forget(FIRST)
    await converge(world)
    assert world.references(*LABELS) == [1] * 7
    collect_garbage(world.datastore)
    world.now += 2 * KEPT.delete_after
    assert await killed_at_each(world, step, monkeypatch, nothing) == (7 if step == GIVEN_BACK else 1)
    assert world.references(*LABELS) == [0] * 7
    assert chunk_key("a") not in world.store.objects


@pytest.mark.parametrize("is_kept", [False, True])
async def test_killed_while_a_new_state_counts(world: World, monkeypatch: pytest.MonkeyPatch, is_kept: bool) -> None:
    world.retention = KEPT
    back_up(world.datastore)
    await converge(world)
    if is_kept:
        world.datastore.forget(FIRST)
        await converge(world)
    shutil.rmtree(world.state_directory)
    assert await killed_at_each(world, COUNTED, monkeypatch, nothing) == 6
    assert world.references(*LABELS) == [1] * 7
    assert chunk_key("a") in world.store.objects


async def test_an_index_that_is_lost_while_it_is_needed_keeps_chunks_rather_than_loses_them(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given back is; the rest stays counted, and no manifest ever lacks a chunk."""
    back_up(world.datastore)
    world.datastore.back_up(SECOND, "ab")
    await converge(world)
    world.datastore.forget(FIRST)

    def lose_index(world: World) -> None:
        world.store.objects.pop(content_key(f"{FIRST}/drive.img.fidx"), None)

    assert await killed_at_each(world, GIVING_BACK, monkeypatch, lose_index) == 1
