"""The bucket is read again: what is damaged there comes back from the datastore, or is named with what it costs."""

from __future__ import annotations

import math
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing

from mirrorfs.datastore.errors import TooMuch
from mirrorfs.datastore.layout import DELETED_MARKER_NAME
from mirrorfs.objectstore.answers import CheckBeginning, StoredObject
from mirrorfs.objectstore.errors import ObjectMissing, StoreRejected
from mirrorfs.replication.scrubbing import examination, losses
from mirrorfs.replication.scrubbing.scrub import Scrub
from mirrorfs.replication.settings import RetentionSettings
from mirrorfs.state.problems import Problem
from mirrorfs.state.scrub import DELETED, FILES, NEVER, PARTS, ScrubPosition
from tests.datastore.formats import encrypted_blob
from tests.replication.datastore import (
    CONFIG,
    ELSEWHERE,
    FIRST,
    INDEX,
    MANIFEST,
    PREFIX,
    SECOND,
    chunk_key,
    chunk_path,
    content_key,
    digest_of,
    published,
)
from tests.replication.world import FakeStore, Running, World

pytestmark = pytest.mark.trio

LOST_A = f"in the bucket: {chunk_path(digest_of('a'))}"
OBJECTS = {
    "chunk": chunk_key("a"),
    "index": content_key(f"{FIRST}/{INDEX}"),
    "blob": content_key(f"{FIRST}/{CONFIG}"),
    "manifest": content_key(f"{FIRST}/{MANIFEST}"),
    "protection": content_key(f"{FIRST}/.protected"),
    "owner": content_key("vm/100/owner"),
    "marker": content_key("ns/a/.namespace"),
    "chunk of nobody": chunk_key("lonely"),
}
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "gone": lambda _: None,
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]) if data else b"x",
    "cut": lambda data: data[:-1] if data else b"x",
    "longer": lambda data: data + b"x",
}


@pytest.fixture(autouse=True)
def no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examination, "_LAG", 0.0)


@dataclass
class Clock:
    """Each look at it is half a minute later."""

    time: float = 1000.0

    def __call__(self) -> float:
        self.time += 31.0
        return self.time


def scrub_of(running: Running, now: Callable[[], float]) -> Scrub:
    return scrub_at(running, math.inf, now)


def scrub_at(running: Running, percent_per_day: float, now: Callable[[], float] | None = None) -> Scrub:
    mirror = running.mirror
    return Scrub(mirror.losses, mirror.state, running.worklist, percent_per_day=percent_per_day, now=now or Clock())


@asynccontextmanager
async def scrubbing(running: Running, now: Callable[[], float] | None = None) -> AsyncIterator[Scrub]:
    """A scrub that reads as fast as it can."""
    scrub = scrub_of(running, now or Clock())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scrub.run)
        with trio.fail_after(60):
            yield scrub
        nursery.cancel_scope.cancel()


async def until(what: Callable[[], bool]) -> None:
    while not what():  # noqa: ASYNC110 - no event tells of what is looked for
        await trio.sleep(0.001)


def has_read_all(scrub: Scrub) -> Callable[[], bool]:
    before = scrub.answer()["parts"]

    def has() -> bool:
        parts: dict[str, Any] = scrub.answer()["parts"]
        return all(moment is not None and moment != before[part] for part, moment in parts.items())

    return has


async def fill(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b", "c"])
    world.datastore.back_up(ELSEWHERE, ["a", "c"])
    world.datastore.write_chunk("lonely")
    world.datastore.write(f"{FIRST}/.protected", b"")
    assert await world.converge() == {}


def damage(world: World, key: str, how: str) -> None:
    world.store.watches = False
    damaged = DAMAGES[how](world.store.objects.pop(key))
    if damaged is not None:
        world.store.objects[key] = damaged


@pytest.mark.parametrize("how", DAMAGES)
async def test_what_is_damaged_or_gone_is_sent_again(world: World, how: str) -> None:
    await fill(world)
    whole = dict(world.store.objects)
    for key in OBJECTS.values():
        damage(world, key, how)
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
        await running.settled()
        assert world.store.objects == whole
        assert running.problems() == {}
        assert scrub.answer()["sent_again"] >= 1
    world.check()


@dataclass
class ForgetfulStore(FakeStore):
    """Its HEAD tells what was put, whatever has become of it since: a disk that has rotted beneath a good catalog."""

    def __post_init__(self) -> None:
        self.catalog: dict[str, StoredObject] = {}

    async def put(self, key: str, body: bytes, *, crc32c: int | None = None) -> StoredObject:
        self.catalog[key] = await FakeStore.put(self, key, body, crc32c=crc32c)
        return self.catalog[key]

    async def head(self, key: str) -> StoredObject | None:
        return self.catalog.get(key) or await FakeStore.head(self, key)


async def test_a_store_that_says_to_have_it_good_is_sent_it_all_the_same(world: World) -> None:
    world.store = ForgetfulStore()
    await fill(world)
    whole = dict(world.store.objects)
    for key in OBJECTS.values():
        damage(world, key, "flipped")
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
        await running.settled()
    assert world.store.objects == whole


async def test_another_encrypted_chunk_in_its_place_is_damage(world: World) -> None:
    digest = digest_of("secret")
    world.datastore.write(chunk_path(digest), encrypted_blob(b"what it was"))
    assert await world.converge() == {}
    right = world.store.objects[chunk_key("secret")]
    world.store.objects[chunk_key("secret")] = encrypted_blob(b"another, whose CRC is right")
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
    assert world.store.objects[chunk_key("secret")] == right


KEPT = f"in the bucket: .mirrorfs/deleted/{FIRST}"


def deleted_key(name: str) -> str:
    return f"{PREFIX}/.mirrorfs/deleted/{FIRST}/{name}"


async def remove_and_keep(world: World) -> None:
    world.retention = RetentionSettings(delete_after=1000.0)
    await fill(world)
    world.datastore.forget(FIRST)
    assert await world.converge() == {}


@pytest.mark.parametrize(
    ("name", "how"),
    [(INDEX, "flipped"), (CONFIG, "longer"), (MANIFEST, "cut"), (MANIFEST, "gone"), (DELETED_MARKER_NAME, "gone")],
)
async def test_damage_of_a_deleted_snapshot_that_is_kept_is_named(world: World, name: str, how: str) -> None:
    await remove_and_keep(world)
    whole = world.store.objects[deleted_key(name)]
    damage(world, deleted_key(name), how)
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
        found = running.problems()
        assert list(found) == [KEPT]
        assert found[KEPT].startswith(f"{name}: it is ")
        assert ("it costs" in found[KEPT]) is (name != DELETED_MARKER_NAME)
        # Somebody has put it back.
        world.store.objects[deleted_key(name)] = whole
        await until(lambda: running.problems() == {})


async def test_a_kept_snapshot_costs_no_problem_when_it_is_kept_no_longer(world: World) -> None:
    await remove_and_keep(world)
    damage(world, deleted_key(INDEX), "gone")
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
        assert KEPT in running.problems()
        await running.mirror.grace.end(FIRST)
        await until(has_read_all(scrub))
        await until(lambda: running.problems() == {})


async def test_a_chunk_of_a_kept_snapshot_is_sent_again_or_named(world: World) -> None:
    await remove_and_keep(world)
    world.datastore.back_up(SECOND.replace("02T", "03T"), ["d"])
    world.datastore.forget(SECOND)
    world.datastore.forget(ELSEWHERE)
    assert await world.converge() == {}
    world.datastore.remove_chunk("b")
    whole = world.store.objects[chunk_key("a")]
    damage(world, chunk_key("a"), "flipped")
    damage(world, chunk_key("b"), "flipped")
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
        assert world.store.objects[chunk_key("a")] == whole
        lost = f"in the bucket: {chunk_path(digest_of('b'))}"
        await until(lambda: f"it costs {FIRST} (deleted)" in running.problems().get(lost, ""))
        assert list(running.problems()) == [lost]


@pytest.mark.parametrize("how", ["gone", "flipped"])
async def test_what_neither_side_has_names_what_it_costs_until_it_comes_back(world: World, how: str) -> None:
    await fill(world)
    damage(world, chunk_key("a"), how)
    world.datastore.remove_chunk("a")
    async with world.running() as running, scrubbing(running) as scrub:
        await until(lambda: "it costs" in running.problems().get(LOST_A, ""))
        assert f"it costs {ELSEWHERE}, {FIRST}. A" in running.problems()[LOST_A]
        await until(has_read_all(scrub))
    # It is known to the next uploader, and is over when a backup has brought the chunk back.
    world.datastore.back_up(SECOND.replace("02T", "03T"), ["a"])
    async with world.running() as running:
        assert LOST_A in running.problems()
        await running.settled()
        async with scrubbing(running):
            await until(lambda: running.problems() == {})
    world.check()


async def test_what_is_put_back_into_the_bucket_is_no_loss_any_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_RECHECK_SECONDS", 0.01)
    await fill(world)
    right = world.store.objects[chunk_key("a")]
    damage(world, chunk_key("a"), "gone")
    world.datastore.remove_chunk("a")
    async with world.running() as running, scrubbing(running):
        await until(lambda: LOST_A in running.problems())
        world.store.objects[chunk_key("a")] = right
        await until(lambda: running.problems() == {})


async def test_losses_without_number_fill_no_memory(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_MOST", 2)
    await fill(world)
    for label in "abc":
        damage(world, chunk_key(label), "gone")
        world.datastore.remove_chunk(label)
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
        names = [name for name in running.problems() if name.startswith("in the bucket: .chunks")]
        assert len(names) == 2
        assert "in the bucket: more" in running.problems()


async def test_a_held_snapshot_that_is_damaged_is_named_and_not_taken_for_removed(world: World) -> None:
    world.unseen_after = 7 * 86400.0
    await fill(world)
    shutil.rmtree(world.datastore.root / SECOND)
    damage(world, content_key(f"{SECOND}/{INDEX}"), "flipped")
    async with world.running() as running, scrubbing(running) as scrub:
        await running.settled()
        await until(has_read_all(scrub))
        await running.settled()
        assert f"in the bucket: {SECOND}/{INDEX}" in running.problems()
        assert SECOND in published(world.store.objects)


async def test_what_changes_while_it_is_read_is_not_damaged(world: World) -> None:
    await fill(world)
    key = content_key(f"{FIRST}/{MANIFEST}")
    gate = world.store.gate("get", key)
    async with world.running() as running, scrubbing(running) as scrub:
        await gate.reached.wait()
        world.datastore.write_manifest(FIRST, notes="other")
        running.changed(f"{FIRST}/{MANIFEST}")
        await running.settled()
        gate.opened.set()
        await until(has_read_all(scrub))
        assert scrub.answer()["sent_again"] == 0


@dataclass
class RefusingStore(FakeStore):
    """Gives no chunk: they lie in an archive, say."""

    async def get_content(self, key: str, maximum: int, *, check_beginning: CheckBeginning | None = None) -> bytes:
        if ".chunks" in key:
            raise StoreRejected(f"read {key}", "it is archived")
        return await FakeStore.get_content(self, key, maximum, check_beginning=check_beginning)


async def test_what_the_store_refuses_to_give_is_not_taken_for_damaged(world: World) -> None:
    world.store = RefusingStore()
    await fill(world)
    world.store.requests.clear()
    async with world.running() as running, scrubbing(running) as scrub:
        await until(lambda: scrub.answer()["refusal"] is not None)
        await until(has_read_all(scrub))
        assert running.problems() == {}
    assert world.store.keys_of("put", "copy") == []


@dataclass
class PoorReader(FakeStore):
    """What is said of some keys instead of giving their objects, so many times."""

    answers: dict[str, Exception] = field(default_factory=dict)
    times: float = math.inf

    async def get_content(self, key: str, maximum: int, *, check_beginning: CheckBeginning | None = None) -> bytes:
        if key in self.answers and self.times > 0:
            self.times -= 1
            raise self.answers[key]
        return await FakeStore.get_content(self, key, maximum, check_beginning=check_beginning)


@pytest.mark.parametrize("key", [OBJECTS["chunk"], OBJECTS["index"]])
async def test_one_answer_that_it_is_missing_is_no_proof(world: World, key: str) -> None:
    world.store = store = PoorReader()
    await fill(world)
    store.requests.clear()
    store.answers, store.times = {key: ObjectMissing("read it", "not yet here")}, 1
    async with world.running() as running, scrubbing(running) as scrub:
        await until(has_read_all(scrub))
        assert (running.problems(), scrub.answer()["sent_again"]) == ({}, 0)
    assert store.keys_of("put", "copy") == []


async def test_a_file_that_is_unsound_here_has_nothing_doubted_in_the_bucket(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_RECHECK_SECONDS", 0.01)
    world.store = store = PoorReader()
    await fill(world)
    path = f"{FIRST}/{INDEX}"
    right = store.objects[content_key(path)]
    world.datastore.write(path, right[:-1] + b"!")
    async with world.running() as running:
        await running.settled()
        store.answers = {content_key(path): ObjectMissing("read it", "a part of the store is out of order")}
        async with scrubbing(running):
            await until(lambda: "another content" in running.problems().get(f"in the bucket: {path}", ""))
            store.answers = {}
            await until(lambda: f"in the bucket: {path}" not in running.problems())
    assert store.objects[content_key(path)] == right


async def test_want_of_memory_here_is_no_damage_there(world: World) -> None:
    world.store = store = PoorReader()
    await fill(world)
    store.requests.clear()
    store.answers = {OBJECTS["chunk"]: TooMuch("no room"), OBJECTS["index"]: TooMuch("no room")}
    async with world.running() as running, scrubbing(running) as scrub:
        await until(lambda: "no room" in (scrub.answer()["refusal"] or ""))
        await until(has_read_all(scrub))
        assert running.problems() == {}
        with pytest.raises(TooMuch, match="no room"):
            await running.mirror.heal_bucket([chunk_path(digest_of("a"))], dry_run=False)
    assert store.keys_of("put", "copy") == []


async def test_a_refused_object_is_not_said_to_be_missing_here(world: World) -> None:
    await fill(world)
    world.store.cannot_copy(announced=True)
    for key in (OBJECTS["chunk"], OBJECTS["blob"]):
        damage(world, key, "gone")
        world.store.rejected.add(key)
    async with world.running() as running, scrubbing(running) as scrub:
        await until(lambda: "it costs" in running.problems().get(LOST_A, ""))
        await until(lambda: f"in the bucket: {FIRST}/{CONFIG}" in running.problems())
        for name in (LOST_A, f"in the bucket: {FIRST}/{CONFIG}"):
            assert running.problems()[name].startswith("it is missing in the bucket; it could not be sent")
        assert scrub.answer()["sent_again"] == 0


async def test_what_nobody_needs_and_nobody_has_does_not_count_as_sent(world: World) -> None:
    await fill(world)
    damage(world, OBJECTS["chunk of nobody"], "flipped")
    world.datastore.remove_chunk("lonely")
    path = chunk_path(digest_of("lonely"))
    async with world.running(reconciles=False) as running:
        healing = await running.mirror.heal_bucket([path], dry_run=False)
        assert (healing.healed, healing.good, healing.lost) == ([], [path], {})


async def lose(world: World, how: str) -> None:
    """Chunk a is lost, and that is known to the next uploader."""
    await fill(world)
    damage(world, chunk_key("a"), how)
    world.datastore.remove_chunk("a")
    async with world.running() as running, scrubbing(running) as scrub:
        await until(lambda: "it costs" in running.problems().get(LOST_A, ""))
        await until(has_read_all(scrub))


async def test_a_loss_is_not_read_again_when_nothing_is_to_be_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lose(world, "flipped")
    monkeypatch.setattr(losses, "_RECHECK_SECONDS", 0.01)
    looks: list[bool] = []
    look_again = losses.Losses._look_again

    async def counted(self: losses.Losses, *, reads: bool) -> None:
        await look_again(self, reads=reads)
        looks.append(reads)

    monkeypatch.setattr(losses.Losses, "_look_again", counted)
    async with world.running() as running, trio.open_nursery() as nursery:
        await running.settled()
        world.store.requests.clear()
        nursery.start_soon(scrub_at(running, 0.0).run)
        with trio.fail_after(60):
            await until(lambda: len(looks) >= 3)
        assert world.store.requests == []
        # What the datastore has again is sent as ever, and the loss is over.
        world.datastore.back_up(SECOND.replace("02T", "03T"), ["a"])
        running.changed(chunk_path(digest_of("a")), f"{SECOND.replace('02T', '03T')}/{MANIFEST}")
        with trio.fail_after(60):
            await until(lambda: running.problems() == {})
        nursery.cancel_scope.cancel()


async def test_a_loss_waits_for_its_turn_and_for_other_work(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await lose(world, "flipped")
    monkeypatch.setattr(losses, "_RECHECK_SECONDS", 0.01)
    monkeypatch.setattr(losses, "_LONGEST_PAUSE", 0.01)
    world.datastore.write_chunk("new")
    gate = world.store.gate("put", chunk_key("new"))
    async with world.running() as running, trio.open_nursery() as nursery:
        await gate.reached.wait()
        world.store.requests.clear()
        nursery.start_soon(partial(running.mirror.losses.keep_looking, reads=True))
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert world.store.keys_of("get", "head") == []
        gate.opened.set()
        with trio.fail_after(60):
            await until(lambda: chunk_key("a") in world.store.keys_of("get"))
        nursery.cancel_scope.cancel()


async def test_what_is_gone_is_asked_for_and_not_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    await lose(world, "gone")
    monkeypatch.setattr(losses, "_RECHECK_SECONDS", 0.01)
    monkeypatch.setattr(losses, "_LONGEST_PAUSE", 0.01)
    async with world.running() as running, trio.open_nursery() as nursery:
        await running.settled()
        world.store.requests.clear()
        nursery.start_soon(partial(running.mirror.losses.keep_looking, reads=True))
        with trio.fail_after(60):
            await until(lambda: world.store.keys_of("head").count(chunk_key("a")) > 2)
        assert world.store.keys_of("get") == []
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(("age", "pause"), [(0.0, 600.0), (3600.0, 3600.0), (1e9, 86400.0)])
async def test_the_pause_grows_with_the_time_for_which_it_is_lost(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, age: float, pause: float
) -> None:
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert losses._next_look(Problem("x", "lost", 2e9 - age)) - trio.current_time() == pytest.approx(pause)


async def test_a_start_does_not_put_off_when_the_first_object_is_due(world: World) -> None:
    await fill(world)
    for now in (1000.0, 500_000.0):
        async with world.running() as running, trio.open_nursery() as nursery:
            nursery.start_soon(scrub_at(running, 1.0, partial(float, now)).run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            position = running.mirror.state.view(lambda transaction: transaction.scrub.position())
            assert position is not None
            assert position.last == 1000.0
            nursery.cancel_scope.cancel()


async def test_it_waits_while_there_is_anything_else_to_do(world: World) -> None:
    await fill(world)
    world.datastore.write_chunk("new")
    gate = world.store.gate("put", chunk_key("new"))
    async with world.running() as running:
        await gate.reached.wait()
        world.store.requests.clear()
        async with scrubbing(running) as scrub:
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert world.store.keys_of("get") == []
            gate.opened.set()
            await until(has_read_all(scrub))


async def test_it_goes_on_where_it_was(world: World) -> None:
    await fill(world)
    first = world.store.gate("get", chunk_key("b"))
    clock = Clock()
    async with world.running() as running, scrubbing(running, clock):
        await first.reached.wait()
    before = set(world.store.keys_of("get"))
    world.store.requests.clear()
    async with world.running() as running, scrubbing(running, clock) as scrub:
        await until(lambda: scrub.answer()["never_read"] == 0)
    read = [key for key in world.store.keys_of("get") if key in world.store.objects]
    assert content_key(f"{FIRST}/{MANIFEST}") in before
    assert read[0] == chunk_key("b")


async def test_it_begins_as_soon_as_there_is_anything(world: World) -> None:
    async with world.running() as running, scrubbing(running) as scrub:
        await trio.testing.wait_all_tasks_blocked(0.05)
        world.datastore.back_up(FIRST, ["a"])
        running.changed(chunk_path(digest_of("a")), f"{FIRST}/{MANIFEST}")
        await until(lambda: scrub.answer()["objects"] > 0)


async def test_off_it_reads_nothing(world: World) -> None:
    await fill(world)
    async with world.running() as running:
        world.store.requests.clear()
        scrub = running.mirror.scrub
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrub.run)
            await trio.testing.wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        assert world.store.requests == []
        assert scrub.answer()["never_read"] == PARTS


async def test_a_percent_a_day_of_what_there_is(world: World) -> None:
    await fill(world)
    async with world.running() as running:
        await running.settled()
        scrub = scrub_at(running, 1.0)
        objects = len([key for key in world.store.objects if "/.chunks/" in key or "/.cnt/" in key])
        assert scrub._seconds_between() == pytest.approx(86400 * 100 / objects)


async def test_the_longest_unread_part_comes_next() -> None:
    position = ScrubPosition.at_the_beginning(100.0)
    seen = []
    for moment in range(PARTS):
        seen.append(position.part)
        position = position.at_next_part(200.0 + moment)
    assert sorted(seen) == list(range(PARTS))
    assert seen[:2] == [DELETED, FILES]
    assert NEVER not in position.read_at
    assert position.part == seen[0]
    late = replace(position, began=2e9, read_at=[1e9 if part != 7 else 5e8 for part in range(PARTS)])
    assert late.at_next_part(2e9).part == 7


async def test_a_position_of_a_version_that_did_not_read_what_is_kept_is_gone_on_with(world: World) -> None:
    async with world.running(reconciles=False) as running:
        before = ScrubPosition(7, "07ab", 1.0, 2.0, [3.0] * FILES)
        await running.mirror.state.apply(lambda transaction: transaction.scrub.set_position(before))
        known = running.mirror.state.view(lambda transaction: transaction.scrub.position())
    assert known == replace(before, read_at=[3.0] * FILES + [NEVER] * (PARTS - FILES))
