"""Files that do not pass their own checks: never published, said why, published by themselves when repaired."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import struct
from collections.abc import Callable

import pytest
import trio
import trio.testing

from mirrorfs.datastore.manifest import Manifest, parse_manifest
from mirrorfs.replication.comparing import adoption as adoption_module
from mirrorfs.replication.publishing import publication as publication_module
from mirrorfs.state.problems import Problem
from tests.datastore.formats import plain_blob
from tests.replication.datastore import (
    CHUNK_DIRECTORIES,
    CONFIG,
    FIRST,
    INDEX,
    MANIFEST,
    SECOND,
    Datastore,
    chunk_key,
    chunk_path,
    content_key,
    digest_of,
    published,
)
from tests.replication.world import World

pytestmark = pytest.mark.trio

A = chunk_path(digest_of("a"))


def flipped(data: bytes, offset: int) -> bytes:
    changed = bytearray(data)
    changed[offset] ^= 1
    return bytes(changed)


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "truncated manifest": (f"{FIRST}/{MANIFEST}", lambda data: data[:-5], "manifest"),
    "empty manifest": (f"{FIRST}/{MANIFEST}", lambda _: b"", "truncated"),
    "manifest with a bad CRC": (f"{FIRST}/{MANIFEST}", lambda data: flipped(data, 40), "CRC"),
    "manifest that is no JSON": (f"{FIRST}/{MANIFEST}", lambda _: plain_blob(b"{"), "not JSON"),
    "index with a wrong magic": (f"{FIRST}/{INDEX}", lambda data: flipped(data, 0), "magic"),
    "index with a wrong csum": (f"{FIRST}/{INDEX}", lambda data: flipped(data, 4096), "checksum"),
    "truncated index": (f"{FIRST}/{INDEX}", lambda data: data[:-1], INDEX),
    "index of another length": (
        f"{FIRST}/{INDEX}",
        lambda data: data[:64] + struct.pack("<Q", 99 * 65536) + data[72:],
        INDEX,
    ),
    "truncated blob": (f"{FIRST}/{CONFIG}", lambda data: data[:-1], CONFIG),
    "other blob": (f"{FIRST}/{CONFIG}", lambda _: plain_blob(b"cores: 2"), CONFIG),
    "chunk of length 0": (A, lambda _: b"", A),
    "chunk with a wrong CRC": (A, lambda data: flipped(data, len(data) - 1), A),
    "truncated chunk": (A, lambda data: data[:-1], A),
    "chunk of unknown kind": (A, lambda data: flipped(data, 3), A),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_it_is_named_and_publishes_when_it_is_repaired(world: World, name: str) -> None:
    path, damage, expected = DAMAGES[name]
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b"])
    sound = (world.datastore.root / path).read_bytes()
    world.datastore.write(path, damage(sound))
    async with world.running() as running:
        await running.settled()
        assert published(world.store.objects) == {SECOND}
        assert expected in running.problems()[FIRST]
        assert chunk_key("b") in world.store.objects
        world.datastore.write(path, sound)
        running.changed(path)
        await running.settled()
        assert running.problems() == {}
    world.check()
    assert published(world.store.objects) == {FIRST, SECOND}


@pytest.mark.parametrize("path", [f"{FIRST}/{INDEX}", f"{FIRST}/{CONFIG}", A])
async def test_what_is_missing_is_waited_for(world: World, path: str) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    sound = (world.datastore.root / path).read_bytes()
    world.datastore.remove(path)
    async with world.running() as running:
        await running.settled()
        assert published(world.store.objects) == set()
        assert "missing" in running.problems()[FIRST]
        world.datastore.write(path, sound)
        running.changed(path)
        await running.settled()
        assert running.problems() == {}
    world.check()


async def test_damage_does_not_touch_what_is_published(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        before = dict(world.store.objects)
        for path in (A, f"{FIRST}/{INDEX}", f"{FIRST}/{CONFIG}", f"{FIRST}/{MANIFEST}"):
            world.datastore.write(path, flipped((world.datastore.root / path).read_bytes(), -1))
            running.changed(path)
        await running.settled()
        assert set(running.problems()) == {A, FIRST}
    assert world.store.objects == before


async def test_a_damaged_chunk_stays_damaged_locally_and_whole_in_the_bucket(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        before = world.store.objects[chunk_key("a")]
        world.datastore.write(A, b"")
        running.changed(A)
        world.datastore.back_up(SECOND, ["a", "b"])
        running.changed(f"{SECOND}/{MANIFEST}")
        await running.settled()
    assert world.store.objects[chunk_key("a")] == before
    assert published(world.store.objects) == {FIRST, SECOND}
    assert world.store.broken == []


async def test_a_chunk_repaired_while_others_are_still_being_sent(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.remove_chunk("a")
    gate = world.store.gate("put", chunk_key("b"))
    async with world.running(reconciles=False) as running:
        running.changed(f"{FIRST}/{MANIFEST}")
        await gate.reached.wait()
        await trio.testing.wait_all_tasks_blocked(0.01)
        world.datastore.write_chunk("a")
        running.changed(A)
        while chunk_key("a") not in world.store.objects:
            await trio.testing.wait_all_tasks_blocked()
        gate.opened.set()
        await running.settled()
        assert running.problems() == {}
    world.check()


async def test_a_damaged_log_is_left_out_until_it_is_repaired(world: World) -> None:
    log = f"{FIRST}/client.log.blob"
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write(log, b"not a blob")
    async with world.running() as running:
        await running.settled()
        assert published(world.store.objects) == {FIRST}
        assert list(running.problems()) == [log]
        world.datastore.write(log, plain_blob(b"done"))
        running.changed(log)
        await running.settled()
        assert running.problems() == {}
    world.check()


def as_directory(datastore: Datastore, path: str) -> None:
    (datastore.root / path).mkdir()


def as_link(datastore: Datastore, path: str) -> None:
    (datastore.root / path).symlink_to("/etc/hostname")


def as_fifo(datastore: Datastore, path: str) -> None:
    os.mkfifo(datastore.root / path)


def too_large(datastore: Datastore, path: str) -> None:
    (datastore.root / path).write_bytes(bytes(2 * 1024 * 1024))


@pytest.mark.parametrize("make", [as_directory, as_link, as_fifo, too_large])
@pytest.mark.parametrize("name", ["notes", "owner"])
async def test_a_group_file_that_is_none_holds_up_nothing(
    world: World, make: Callable[[Datastore, str], None], name: str
) -> None:
    path = f"vm/100/{name}"
    world.datastore.back_up(FIRST, ["a"])
    (world.datastore.root / path).unlink(missing_ok=True)
    make(world.datastore, path)
    async with world.running() as running:
        await running.settled()
        assert published(world.store.objects) == {FIRST}
        assert content_key(path) not in world.store.objects
        assert list(running.problems()) == ["vm/100"]
        assert name in running.problems()["vm/100"]
        if (world.datastore.root / path).is_dir():
            (world.datastore.root / path).rmdir()
        else:
            world.datastore.remove(path)
        world.datastore.write(path, b"root@pam")
        running.changed(path)
        await running.settled()
        assert running.problems() == {}
    world.check()


@pytest.mark.parametrize("key", [content_key(f"{FIRST}/{INDEX}"), chunk_key("a"), content_key(f"{FIRST}/{MANIFEST}")])
async def test_what_the_store_refuses_for_good(world: World, key: str) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.store.rejected.add(key)
    async with world.running() as running:
        await running.settled()
        assert published(world.store.objects) == set()
        assert "refused" in running.problems()[FIRST]
        world.store.rejected.clear()
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    world.check()


async def test_looking_again_keeps_what_is_known_of_a_problem(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.remove(f"{FIRST}/{CONFIG}")
    os.mkfifo(world.datastore.root / "vm/100/notes")
    (world.datastore.root / "vm/100/2026-01-09T00:00:00Z").mkdir()
    async with world.running() as running:
        await running.settled()
        before = running.state.view(lambda transaction: list(transaction.problems.all()))
        running.mirror.look_again_at_problems()
        running.changed(FIRST, "vm/100")
        await running.settled()
        assert running.state.view(lambda transaction: list(transaction.problems.all())) == before
        assert {problem.name for problem in before} == {FIRST}


async def test_problems_of_what_went_while_nobody_looked_are_forgotten(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write(A, b"")
    problems = await world.converge()
    assert set(problems) == {A, FIRST}
    world.datastore.forget_group("vm/100")
    world.datastore.remove_chunk("a")
    async with world.running() as running:
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}


async def test_problems_with_names_that_are_no_text_can_be_looked_at_again(world: World) -> None:
    name = b"\xff\xfe".decode("utf-8", "surrogateescape")
    async with world.running() as running:
        await running.settled()
        running.state.update(lambda transaction: transaction.problems.set(Problem(name, "it cannot be read", 1.0)))
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}


async def test_a_chunk_with_a_sound_checksum_and_other_content_does_not_replace_the_good_object(world: World) -> None:
    # A name in one of the few chunk directories that these tests look at.
    numbers = (number.to_bytes(4, "big") for number in itertools.count())
    content = next(text for text in numbers if hashlib.sha256(text).digest() < bytes([0, CHUNK_DIRECTORIES]))
    path = chunk_path(world.datastore.write_plain_chunk(content))
    async with world.running() as running:
        await running.settled()
        before = dict(world.store.objects)
        world.datastore.write(path, plain_blob(b"something else"))
        running.changed(path)
        await running.settled()
        assert "SHA-256" in running.problems()[path]
        assert world.store.objects == before
        world.datastore.write_plain_chunk(content)
        running.changed(path)
        await running.settled()
        assert running.problems() == {}
    world.check()


@pytest.mark.parametrize("error", [MemoryError, RecursionError, OverflowError])
async def test_what_asks_for_too_much_is_a_problem_of_its_own(
    world: World, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """Wherever that comes up: the uploader lives, and publishes what is sound."""

    def parse_or_fail(data: bytes) -> Manifest:
        manifest = parse_manifest(data)
        if manifest.backup_id == "100":
            raise error
        return manifest

    monkeypatch.setattr(publication_module, "parse_manifest", parse_or_fail)
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.back_up("vm/200/2026-01-01T00:00:00Z", ["b"])
    problems = await world.converge()
    assert list(problems) == [FIRST]
    assert f"more than this process can give ({error.__name__})" in problems[FIRST]
    assert published(world.store.objects) == {"vm/200/2026-01-01T00:00:00Z"}


async def test_adoption_takes_a_bucket_in_parts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption_module, "_CONTENTS_AT_ONCE", 2)
    world.datastore.back_up(FIRST, ["a"])
    assert await world.converge() == {}
    shutil.rmtree(world.state_directory)
    assert await world.converge() == {}
    assert published(world.store.objects) == {FIRST}
