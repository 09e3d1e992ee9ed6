"""What no journal told: found by looking, in both directions; and a lost state, rebuilt from the bucket."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Callable
from typing import cast

import crc32c
import pytest

from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.answers import StoredObject
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.comparing.differences import Difference, Remedy
from mirrorfs.replication.publishing.replica import holds
from mirrorfs.replication.work.items import SubtreeItem
from tests.datastore import formats as make
from tests.replication.datastore import (
    CONFIG,
    ELSEWHERE,
    FIRST,
    INDEX,
    MANIFEST,
    PREFIX,
    SECOND,
    broken_snapshots,
    chunk_key,
    chunk_path,
    content_key,
    digest_of,
    published,
)
from tests.replication.world import FakeStore, World

pytestmark = pytest.mark.trio


async def test_what_changed_while_nobody_looked_is_found(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(ELSEWHERE, ["b"])
    world.datastore.write_chunk("lonely")
    await world.converge()
    world.datastore.forget_group("ns")
    world.datastore.back_up(SECOND, ["c"])
    world.datastore.write_manifest(FIRST, notes="new")
    world.datastore.write("vm/100/notes", b"web shop")
    world.datastore.remove_chunk("lonely")
    (world.datastore.root / "ns/fresh").mkdir(parents=True)
    assert await world.converge() == {}
    world.check()


async def test_chunks_whose_whole_directory_is_gone_are_found(world: World) -> None:
    for label in ("a", "b", "c"):
        world.datastore.write_chunk(label)
    assert await world.converge() == {}
    world.check()
    shutil.rmtree(world.datastore.root / ".chunks" / digest_of("a").hex()[:4])
    assert await world.converge() == {}
    assert chunk_key("a") not in world.store.objects
    world.check()


async def test_a_directory_for_chunks_that_cannot_be_listed_hides_none(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The names in .chunks are not to be had: then each is looked for."""
    world.datastore.write_chunk("a")

    def refuse(tree: Tree) -> set[int]:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Tree, "chunk_directories", refuse)
    assert await world.converge() == {}
    assert chunk_key("a") in world.store.objects


async def test_reconciling_what_agrees_asks_the_store_for_nothing(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(ELSEWHERE, ["b"])
    await world.converge()
    world.store.requests.clear()
    await world.converge()
    assert world.store.requests == []


async def test_a_chunk_of_another_size_is_found_without_its_record(world: World) -> None:
    """Inserted again with another compression while the journal could not be written."""
    world.datastore.back_up(FIRST, ["a", "b"])
    await world.converge()
    path = chunk_path(digest_of("a"))
    world.datastore.write(path, make.encrypted_blob(b"compressed better"))
    world.store.requests.clear()
    async with world.running(reconciles=False) as running:
        survey: list[Difference] = []

        async def add(difference: Difference) -> None:
            survey.append(difference)

        await running.mirror.survey.survey(add)
        assert [(difference.key, difference.remedy) for difference in survey] == [(chunk_key("a"), Remedy.SEND)]
    assert await world.converge() == {}
    assert world.store.objects[chunk_key("a")] == (world.datastore.root / path).read_bytes()
    assert chunk_key("b") not in world.store.keys_of("put", "copy", "get", "head")
    world.check()


async def test_chunks_in_quarantine_are_found_and_lost_without_their_records(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.write_chunk("lonely")
    await world.converge()
    world.datastore.quarantine_chunk("a")
    world.datastore.quarantine_chunk("lonely")
    world.store.requests.clear()
    async with world.running() as running:
        await running.settled()
        count, chunks = running.state.view(lambda transaction: transaction.quarantine.examples(9))
        assert (count, {chunk.digest for chunk in chunks}) == (2, {digest_of("a"), digest_of("lonely")})
        assert await running.reconcile() == [], "it is as it should be"
    assert world.store.requests == []
    world.datastore.remove(f"{chunk_path(digest_of('a'))}.0.bad")
    world.datastore.remove(f"{chunk_path(digest_of('lonely'))}.0.bad")
    async with world.running() as running:
        await running.settled()
        assert running.state.view(lambda transaction: transaction.quarantine.examples(9)) == (0, [])
    assert world.store.keys_of("delete") == [chunk_key("lonely")]
    world.check()


async def test_a_lost_record_has_everything_looked_at(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write_chunk("lonely")
    async with world.running() as running:
        await running.settled()
        world.datastore.remove_chunk("lonely")
        world.datastore.write_chunk("new")
        world.datastore.back_up(SECOND, ["b"])
        (world.datastore.root / "strange name").touch()
        running.changed(b"")
        await running.settled()
        assert running.state.view(lambda transaction: transaction.foreign.examples(5)) == (1, [b"strange name"])
    world.check()


async def test_chunks_are_compared_by_their_names_and_sizes_alone(world: World) -> None:
    """As after a garbage collection, or when the kernel had more to tell than it could keep."""
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.write_chunk("gone")
    world.datastore.write_chunk("lonely")
    async with world.running() as running:
        await running.settled()
        world.datastore.remove_chunk("gone")
        world.datastore.write_chunk("new")
        world.datastore.quarantine_chunk("a")
        world.datastore.write(chunk_path(digest_of("b")), make.encrypted_blob(b"of another size"))
        world.datastore.write(f"{FIRST}/qemu-server.conf.blob", b"only chunks are looked at")
        world.store.requests.clear()
        running.changed(".chunks")
        await running.settled()
        assert world.store.objects[chunk_key("b")] == make.encrypted_blob(b"of another size")
        # Beside these, what replaced another is staged for a moment.
        for request, key in (("put", chunk_key("new")), ("delete", chunk_key("gone"))):
            assert [found for found in world.store.keys_of(request) if "/staging/" not in found] == [key]
        assert running.state.view(lambda transaction: transaction.quarantine.examples(9))[0] == 1


async def test_foreign_names_are_counted_and_left_alone(world: World) -> None:
    names = [b"lost+found", b"vm/\xff\xfe", b"vm/100/2026-99-99T00:00:00Z", b"x y"]
    for name in names:
        os.makedirs(os.path.join(os.fsencode(world.datastore.root), name))
    async with world.running() as running:
        await running.settled()
        assert running.state.view(lambda transaction: transaction.foreign.examples(9)) == (4, sorted(names))
        os.rmdir(os.path.join(os.fsencode(world.datastore.root), b"vm/\xff\xfe"))
        running.changed(b"vm/\xff\xfe")
        await running.settled()
        assert running.state.view(lambda transaction: transaction.foreign.examples(0))[0] == 3
    assert world.store.objects == {}


async def test_a_lost_state_is_rebuilt_without_sending_anything_again(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b", "c"])
    world.datastore.back_up(ELSEWHERE, ["c"])
    world.datastore.write_chunk("lonely")
    world.datastore.write(f"{FIRST}/.protected", b"")
    await world.converge()
    world.datastore.remove_chunk("a")
    before = dict(world.store.objects)
    shutil.rmtree(world.state_directory)
    world.store.requests.clear()
    assert await world.converge() == {}
    assert world.store.keys_of("put", "delete") == []
    assert world.store.objects == before
    world.check()
    assert world.references("a", "b", "c", "lonely") == [1, 2, 2, 0]
    async with world.running() as running:
        world.datastore.forget_group("vm/100")
        running.changed("vm/100")
        await running.settled()
    world.check()
    assert chunk_key("a") not in world.store.objects


async def test_a_lost_state_and_changes_meanwhile(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b", "c"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    world.datastore.forget(FIRST)
    world.datastore.remove_chunk("a")
    world.datastore.back_up(SECOND, ["c", "d"], config=b"cores: 8")
    assert await world.converge() == {}
    world.check()
    assert world.references("a", "b", "c", "d") == [0, 0, 1, 1]


@pytest.mark.parametrize("missing", [INDEX, CONFIG])
async def test_a_lost_state_and_a_bucket_that_lost_something(world: World, missing: str) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    del world.store.objects[content_key(f"{FIRST}/{missing}")]
    # What is broken already may only get better.
    world.store.watches = False
    assert await world.converge() == {}
    world.check()
    assert world.references("a", "b") == [1, 1]


async def test_a_snapshot_that_is_whole_in_the_bucket_no_more_is_unpublished_before_it_is_mended(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    world.store.watches = False
    del world.store.objects[content_key(f"{FIRST}/{INDEX}")]
    world.store.requests.clear()
    await world.converge()
    changes = [key for key in world.store.keys_of("put", "delete") if key.startswith(content_key(FIRST))]
    assert changes[0] == changes[-1] == content_key(f"{FIRST}/{MANIFEST}")
    world.check()


async def test_a_lost_state_and_a_publication_that_was_under_way(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    del world.store.objects[content_key(f"{FIRST}/{MANIFEST}")]
    world.store.objects[content_key(f"{SECOND}/{INDEX}")] = b"of a snapshot that is no more"
    world.store.objects[f"{PREFIX}/.chunks/0000/{'00' * 32}"] = b"of nobody"
    world.store.requests.clear()
    assert await world.converge() == {}
    world.check()
    # The owner may go for a moment: until its snapshot is recognized, the group has none.
    sent = [key for key in world.store.keys_of("put") if not key.endswith("/owner")]
    assert sent == [content_key(f"{FIRST}/{MANIFEST}")]


async def test_an_object_of_the_right_name_with_other_content_is_sent_again(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    world.store.watches = False
    world.store.objects[chunk_key("a")] = bytes(len(world.store.objects[chunk_key("a")]))
    world.store.requests.clear()
    assert await world.converge() == {}
    assert world.store.keys_of("copy") == [chunk_key("a")]
    assert len(world.store.keys_of("put")) == 1
    world.check()


async def test_a_directory_that_moves_takes_look_alikes_not_along(world: World) -> None:
    world.datastore.back_up("vm/1/2026-01-01T00:00:00Z", ["a"])
    world.datastore.back_up("vm/10/2026-01-01T00:00:00Z", ["a"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        world.datastore.forget_group("vm/1")
        running.add(SubtreeItem("vm/1"))
        await running.settled()
    assert published(world.store.objects) == {"vm/10/2026-01-01T00:00:00Z"}
    assert all("vm/1/" in key for key in world.store.keys_of("delete", "put"))
    world.check()


async def test_chunk_problems_are_looked_at_again_after_a_restart(world: World) -> None:
    path = chunk_path(digest_of("a"))
    world.datastore.back_up(FIRST, ["a"])
    sound = (world.datastore.root / path).read_bytes()
    world.datastore.write(path, b"")
    assert set(await world.converge()) == {path, FIRST}
    world.datastore.write(path, sound)
    assert await world.converge() == {}
    world.check()


async def test_an_adopted_snapshot_whose_chunk_only_the_bucket_has(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    world.datastore.remove_chunk("a")
    world.store.requests.clear()
    assert await world.converge() == {}
    assert world.store.keys_of("put", "delete") == []
    world.check()


@pytest.mark.parametrize("damage", [None, b"not a chunk"])
async def test_an_adopted_snapshot_whose_chunk_nobody_has_is_said(world: World, damage: bytes | None) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    await world.converge()
    shutil.rmtree(world.state_directory)
    world.datastore.remove_chunk("a")
    world.store.watches = False
    del world.store.objects[chunk_key("a")]
    if damage is not None:
        world.store.objects[chunk_key("a")] = damage
    assert "missing" in (await world.converge())[FIRST]
    world.datastore.write_chunk("a")
    assert await world.converge() == {}
    assert broken_snapshots(world.store.objects) == []
    assert world.references("a", "b") == [1, 1]


@pytest.mark.parametrize(
    ("capabilities", "asks"),
    [
        (StoreCapabilities(True, True, True, True, True), "head"),
        (StoreCapabilities(False, True, True, True, True), "head"),
        (StoreCapabilities(False, False, True, True, False), "get"),
    ],
)
async def test_an_object_is_compared_by_what_the_store_calculates(
    world: World, capabilities: StoreCapabilities, asks: str
) -> None:
    world.store.capabilities = capabilities
    store = cast(ObjectStore, world.store)
    world.store.objects["key"] = b"right"
    assert await holds(store, "key", b"right")
    assert world.store.requests[-1] == (asks, "key")
    assert not await holds(store, "key", b"wrong")
    assert not await holds(store, "key", b"longer than that")
    assert not await holds(store, "other", b"right")


async def test_a_checksum_that_the_store_only_echoes_proves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def head(key: str) -> StoredObject:
        return StoredObject(key, 5, hashlib.md5(b"right").hexdigest(), crc32c.crc32c(b"right"))

    monkeypatch.setattr(FakeStore, "head", staticmethod(head))
    world.store.objects["key"] = b"wrong"
    world.store.capabilities = StoreCapabilities(False, False, True, True, False)
    assert not await holds(cast(ObjectStore, world.store), "key", b"right")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda world: world.datastore.write("vm/100/owner", b"nobody\n"), {"vm/100/owner": Remedy.NONE}),
        # A group that has lost its owner is about to go as a whole: until then both stay.
        (lambda world: (world.datastore.root / "vm/100/owner").unlink(), {}),
        (lambda world: (world.datastore.root / "vm/100/notes").unlink(), {"vm/100/notes": Remedy.DELETE}),
        (lambda world: world.datastore.write("vm/100/notes", b"new"), {"vm/100/notes": Remedy.SEND}),
    ],
)
async def test_what_is_told_is_what_would_be_done(
    world: World, change: Callable[[World], None], expected: dict[str, Remedy]
) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write("vm/100/notes", b"old")
    assert await world.converge() == {}
    before = dict(world.store.objects)
    change(world)
    told: list[Difference] = []

    async def add(difference: Difference) -> None:
        told.append(difference)

    async with world.running(reconciles=False) as running:
        await running.mirror.survey.survey(add)
        assert {difference.key: difference.remedy for difference in told} == {
            content_key(name): remedy for name, remedy in expected.items()
        }
    problems = await world.converge()
    assert bool(problems) is (Remedy.NONE in expected.values())
    after = dict(world.store.objects)
    changed = {key for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    done = {content_key(name) for name, remedy in expected.items() if remedy is not Remedy.NONE}
    assert {key for key in changed if not key.startswith(f"{PREFIX}/.mirrorfs/")} == done
