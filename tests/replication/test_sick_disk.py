"""Directories and files that the disk refuses to give: said, passed over, never taken for gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.datastore import tree as tree_module
from mirrorfs.datastore.limits import longest_index
from tests.datastore.formats import plain_blob
from tests.replication.datastore import (
    CHUNK_SIZE,
    CONFIG,
    ELSEWHERE,
    FIRST,
    INDEX,
    MANIFEST,
    SECOND,
    chunk_key,
    chunk_path,
    content_key,
    digest_of,
    published,
)
from tests.replication.world import World

pytestmark = pytest.mark.trio

KIB = 1024
MIB = 1024 * KIB
OTHER = "vm/200/2026-01-01T00:00:00Z"


@contextmanager
def refusing(root: Path, directory: str, number: int) -> Iterator[None]:
    """The directory and all in it answer an error to every open."""
    sick = os.stat(root / directory)
    opens = tree_module._open

    def refuse(name: str, flags: int, parent: int) -> int:
        descriptor = opens(name, flags, parent)
        status = os.fstat(descriptor)
        if (status.st_dev, status.st_ino) == (sick.st_dev, sick.st_ino):
            os.close(descriptor)
            raise OSError(number, os.strerror(number))
        return descriptor

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tree_module, "_open", refuse)
        yield


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("sick", ["ns", "ns/a", "ns/a/ct", "ns/a/ct/7", ELSEWHERE, ".chunks/0000"])
async def test_a_directory_that_cannot_be_listed(world: World, sick: str, number: int) -> None:
    world.datastore.back_up(ELSEWHERE, ["b"])
    world.datastore.write("ns/a/ct/7/no name of PBS", b"")
    labels = [label for label in "abcdefghij" if not chunk_path(digest_of(label)).startswith(".chunks/0000/")]
    async with world.running() as running:
        await running.settled()
        before = dict(world.store.objects)
        assert running.state.view(lambda transaction: transaction.foreign.examples(0))[0] == 1
    world.datastore.back_up(OTHER, labels[:2])
    async with world.running() as running:
        await running.settled()
        with refusing(world.datastore.root, sick, number):
            world.datastore.back_up(SECOND, labels[2:4])
            running.changed(b"", sick if sick[0] != "." else b"", f"{ELSEWHERE}/{MANIFEST}")
            await running.settled()
            assert f"{sick}/" in running.problems()
            assert published(world.store.objects) == {ELSEWHERE, OTHER, SECOND}
            assert before.items() <= world.store.objects.items()
            assert running.state.view(lambda transaction: transaction.foreign.examples(0))[0] == 1
            running.mirror.look_again_at_problems()
            await running.settled()
            assert f"{sick}/" in running.problems()
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    world.datastore.remove("ns/a/ct/7/no name of PBS")
    world.check()


@pytest.mark.parametrize("sick", ["vm", "vm/100"])
async def test_the_uploader_starts_on_a_sick_disk(world: World, sick: str) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.back_up(ELSEWHERE, ["b"])
    with refusing(world.datastore.root, sick, errno.EIO):
        problems = await world.converge()
    assert "Input/output error" in problems[f"{sick}/"]
    assert published(world.store.objects) == {ELSEWHERE}
    assert await world.converge() == {}
    world.check()


async def test_the_chunks_of_a_removed_snapshot_that_cannot_be_looked_at_are_said(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.datastore.forget(FIRST)
        world.datastore.remove_chunk("a")
        directory = os.path.dirname(chunk_path(digest_of("a")))
        with refusing(world.datastore.root, directory, errno.EIO):
            running.changed(FIRST)
            await running.settled()
            assert list(running.problems()) == [chunk_path(digest_of("a"))]
            assert chunk_key("a") in world.store.objects
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    world.check()


async def test_a_problem_in_a_directory_that_goes_goes_with_it(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write(f"{FIRST}/{CONFIG}", b"")
    async with world.running() as running:
        await running.settled()
        assert list(running.problems()) == [FIRST]
        world.datastore.forget_group("vm/100")
        running.changed("vm/100")
        await running.settled()
        assert running.problems() == {}


@pytest.mark.parametrize(
    ("path", "size", "name"),
    [
        (chunk_path(digest_of("a")), 17 * MIB + 44, chunk_path(digest_of("a"))),
        # What the manifest says of it.
        (f"{FIRST}/{CONFIG}", len(plain_blob(b"cores: 4")), FIRST),
        (f"{FIRST}/{MANIFEST}", 4 * MIB + 64 * KIB, FIRST),
        (f"{FIRST}/{INDEX}", longest_index(CHUNK_SIZE), FIRST),
        (f"{FIRST}/client.log.blob", 16 * MIB, f"{FIRST}/client.log.blob"),
        (f"{FIRST}/.protected", 64 * KIB, f"{FIRST}/.protected"),
        ("vm/100/owner", 64 * KIB, "vm/100"),
        ("vm/100/notes", 64 * KIB, "vm/100"),
    ],
)
async def test_a_file_larger_than_its_kind_is_not_read(
    world: World, path: str, size: int, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write(path, b"")
    os.truncate(world.datastore.root / path, size + 1)
    reads = os.read
    sizes: list[int] = []

    def count(descriptor: int, length: int) -> bytes:
        sizes.append(length)
        return reads(descriptor, length)

    monkeypatch.setattr(os, "read", count)
    problems = await world.converge()
    assert f"larger than {size} bytes" in problems[name]
    assert max(sizes, default=0) < MIB


async def test_each_of_several_damaged_extras_is_said_and_stays_as_it_was(world: World) -> None:
    log, protected = f"{FIRST}/client.log.blob", f"{FIRST}/.protected"
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write(log, plain_blob(b"done"))
    world.datastore.write(protected, b"")
    async with world.running() as running:
        await running.settled()
        before = dict(world.store.objects)
        for path in (log, protected):
            world.datastore.write(path, b"")
            os.truncate(world.datastore.root / path, 129 * MIB)
            running.changed(path)
        await running.settled()
        assert set(running.problems()) == {log, protected}
        assert world.store.objects == before
        world.datastore.write(log, plain_blob(b"done"))
        running.changed(log)
        await running.settled()
        assert set(running.problems()) == {protected}
        world.datastore.forget(FIRST)
        running.changed(FIRST)
        await running.settled()
        assert running.problems() == {}
    world.check()


async def test_an_owner_that_cannot_be_read_does_not_keep_the_notes(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.remove("vm/100/owner")
    (world.datastore.root / "vm/100/owner").mkdir()
    world.datastore.write("vm/100/notes", b"web shop")
    assert list(await world.converge()) == ["vm/100"]
    assert world.store.objects[content_key("vm/100/notes")] == b"web shop"


async def test_foreign_things_of_any_kind_count_as_long_as_they_stand(world: World) -> None:
    os.symlink("/nowhere", world.datastore.root / "link")
    os.mkfifo(world.datastore.root / "fifo")
    names = [b"link", b"fifo", "Łódź".encode()]
    (world.datastore.root / "Łódź").touch()
    async with world.running() as running:
        await running.settled()
        running.changed(*names)
        await running.settled()
        assert running.state.view(lambda transaction: transaction.foreign.examples(0))[0] == len(names)
        for name in names:
            os.unlink(os.path.join(os.fsencode(world.datastore.root), name))
        running.changed(*names)
        await running.settled()
        assert running.state.view(lambda transaction: transaction.foreign.examples(0))[0] == 0
