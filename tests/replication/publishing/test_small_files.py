"""Owner, notes, protection and namespaces that are not what PBS writes never replace what the bucket has of them."""

from __future__ import annotations

import shutil

import pytest

from tests.replication.datastore import ELSEWHERE, FIRST, content_key
from tests.replication.world import World

pytestmark = pytest.mark.trio

OWNER, NOTES, PROTECTED = "vm/100/owner", "vm/100/notes", f"{FIRST}/.protected"
MARKER = "ns/a/.namespace"


@pytest.mark.parametrize(
    ("path", "good", "bad", "reason"),
    [
        (OWNER, b"backup@pbs!client\n", b"", "is empty"),
        (OWNER, b"backup@pbs!client\n", b"\0" * 12, "names no owner"),
        (OWNER, b"backup@pbs!client\n", b"nobody\n", "names no owner"),
        (NOTES, b"web shop", b"\xff\xfe\0", "is not text"),
    ],
)
async def test_a_group_file_that_pbs_cannot_read_replaces_no_good_one(
    world: World, path: str, good: bytes, bad: bytes, reason: str
) -> None:
    world.datastore.back_up(FIRST, "a")
    world.datastore.write(path, good)
    async with world.running() as running:
        await running.settled()
        world.datastore.write(path, bad)
        running.changed(path)
        await running.settled()
        assert world.store.objects[content_key(path)] == good
        assert f"{path} {reason}" in running.problems()["vm/100"]
    # Nor does the next start, nor a publication of the same group.
    async with world.running() as running:
        running.changed(FIRST)
        await running.settled()
        assert world.store.objects[content_key(path)] == good
        assert path in running.problems()["vm/100"]
        world.datastore.write(path, good)
        running.changed(path)
        await running.settled()
        assert running.problems() == {}
    world.check()


@pytest.mark.parametrize("path", [OWNER, NOTES])
async def test_a_group_file_that_pbs_cannot_read_is_not_sent_where_there_is_none(world: World, path: str) -> None:
    world.datastore.back_up(FIRST, "a")
    world.datastore.write(path, b"\xff")
    assert path in (await world.converge())["vm/100"]
    assert content_key(path) not in world.store.objects
    assert content_key(f"{FIRST}/index.json.blob") in world.store.objects


@pytest.mark.parametrize("kind", ["directory", "link"])
async def test_a_protection_that_is_no_file_is_a_problem_and_the_marker_stays(world: World, kind: str) -> None:
    world.datastore.back_up(FIRST, "a")
    world.datastore.write(PROTECTED, b"")
    async with world.running() as running:
        await running.settled()
        marker = world.datastore.root / PROTECTED
        marker.unlink()
        if kind == "directory":
            marker.mkdir()
        else:
            marker.symlink_to("/etc/hostname")
        running.changed(PROTECTED)
        await running.settled()
        assert "cannot be used" in running.problems()[PROTECTED]
        assert world.store.objects[content_key(PROTECTED)] == b""
        marker.rmdir() if kind == "directory" else marker.unlink()
        running.changed(PROTECTED)
        await running.settled()
        assert running.problems() == {}
    world.check()


async def test_a_namespace_that_is_no_directory_is_a_problem_and_its_marker_stays(world: World) -> None:
    world.datastore.back_up(ELSEWHERE, "a")
    empty = world.datastore.root / "ns/empty"
    empty.mkdir()
    async with world.running() as running:
        await running.settled()
        empty.rmdir()
        empty.write_bytes(b"a file in its place")
        running.changed("ns/empty")
        await running.settled()
        assert "no directory" in running.problems()["ns/empty"]
        assert world.store.objects[content_key("ns/empty/.namespace")] == b""
        empty.unlink()
        running.changed("ns/empty")
        await running.settled()
        assert running.problems() == {}
        assert content_key("ns/empty/.namespace") not in world.store.objects
    world.check()


async def test_a_namespace_with_backups_that_is_no_directory_keeps_its_marker(world: World) -> None:
    world.datastore.back_up(ELSEWHERE, "a")
    await world.converge()
    shutil.rmtree(world.datastore.root / "ns/a")
    (world.datastore.root / "ns/a").write_bytes(b"")
    problems = await world.converge()
    assert "no directory" in problems["ns/a"]
    assert world.store.objects[content_key(MARKER)] == b""


async def test_notes_of_a_group_that_is_about_to_go_stay_until_its_snapshots_have_left(world: World) -> None:
    """PBS takes a group's snapshots, then its notes, then its owner; the notes may be looked at in between."""
    world.datastore.back_up(FIRST, "a")
    world.datastore.write(OWNER, b"backup@pbs!client\n")
    world.datastore.write(NOTES, b"web shop")
    async with world.running() as running:
        await running.settled()
        shutil.rmtree(world.datastore.root / FIRST)
        world.datastore.remove(NOTES)
        running.changed(NOTES)
        await running.settled()
        assert world.store.objects[content_key(NOTES)] == b"web shop"
        shutil.rmtree(world.datastore.root / "vm/100")
        running.changed("vm/100/owner", FIRST)
        await running.settled()
        assert content_key(NOTES) not in world.store.objects
    world.check()
