"""Publishing, updating and removing snapshots: P1 at every instant, P2 at the end, nothing sent twice."""

from __future__ import annotations

import struct
import threading

import pytest
import trio
import trio.testing

from mirrorfs.datastore.digests import Digests
from mirrorfs.state.state import StateTransaction
from tests.replication.datastore import (
    CHUNK_SIZE,
    CONFIG,
    ELSEWHERE,
    FIRST,
    INDEX,
    MANIFEST,
    PREFIX,
    SECOND,
    Datastore,
    chunk_key,
    chunk_path,
    content_key,
    digest_of,
    notes_of,
    published,
)
from tests.replication.world import World

pytestmark = pytest.mark.trio


async def test_a_snapshot_goes_up_with_its_manifest_last(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b", "a"])
    assert await world.converge() == {}
    world.check()
    puts = world.store.keys_of("put")
    assert puts[-1] == content_key(f"{FIRST}/{MANIFEST}")
    assert len(puts) == len(set(puts)) == len(world.store.objects)
    assert content_key("vm/100/owner") in world.store.objects
    assert world.references("a", "b") == [1, 1]


async def test_namespaces_protection_log_and_notes(world: World) -> None:
    world.datastore.back_up(ELSEWHERE, ["a"])
    world.datastore.write(f"{ELSEWHERE}/.protected", b"")
    world.datastore.write(f"{ELSEWHERE}/client.log.blob", (world.datastore.root / ELSEWHERE / CONFIG).read_bytes())
    world.datastore.write("ns/a/ct/7/notes", b"web shop")
    (world.datastore.root / "ns/empty/ns/inner").mkdir(parents=True)
    async with world.running() as running:
        await running.settled()
        world.check()
        world.datastore.remove(f"{ELSEWHERE}/.protected")
        world.datastore.remove("ns/a/ct/7/notes")
        (world.datastore.root / "ns/empty/ns/inner").rmdir()
        running.changed(f"{ELSEWHERE}/.protected", "ns/a/ct/7/notes", "ns/empty/ns/inner")
        await running.settled()
        world.check()
        assert running.problems() == {}


async def test_another_manifest_of_the_same_files_costs_only_itself(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        world.datastore.write_manifest(FIRST, notes="weekly")
        running.changed(f"{FIRST}/{MANIFEST}")
        await running.settled()
    assert world.store.requests == [("put", content_key(f"{FIRST}/{MANIFEST}"))]
    assert notes_of(world.store.objects[content_key(f"{FIRST}/{MANIFEST}")]) == "weekly"
    world.check()


async def test_a_snapshot_whose_files_change_is_unpublished_first(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        world.datastore.back_up(FIRST, ["b", "c"], config=b"cores: 8")
        running.changed(f"{FIRST}/{INDEX}", f"{FIRST}/{CONFIG}", f"{FIRST}/{MANIFEST}", chunk_path(digest_of("c")))
        await running.settled()
    manifest = content_key(f"{FIRST}/{MANIFEST}")
    changes = [(operation, key) for operation, key in world.store.requests if operation in ("put", "delete")]
    below_cnt = [(operation, key) for operation, key in changes if "/.cnt/" in key]
    assert below_cnt[0] == ("delete", manifest)
    assert below_cnt[-1] == ("put", manifest)
    assert world.references("a", "b", "c") == [0, 1, 1]
    world.check()


async def test_a_snapshot_whose_new_files_are_damaged_stays_as_it_was(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        before = dict(world.store.objects)
        world.datastore.back_up(FIRST, ["b"])
        world.datastore.remove(f"{FIRST}/{CONFIG}")
        running.changed(f"{FIRST}/{MANIFEST}")
        await running.settled()
        assert CONFIG in running.problems()[FIRST]
        assert world.store.objects == before
        world.datastore.back_up(FIRST, ["b"])
        running.changed(f"{FIRST}/{CONFIG}")
        await running.settled()
        assert running.problems() == {}
    world.check()
    assert world.references("a", "b") == [0, 1]


async def test_forgetting_takes_the_manifest_first_and_what_others_need_stays(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "shared"])
    world.datastore.back_up(SECOND, ["b", "shared"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        world.datastore.forget(FIRST)
        for label in ("a", "shared"):
            world.datastore.remove_chunk(label)
        running.changed(FIRST, f"{FIRST}/{MANIFEST}", *(chunk_path(digest_of(label)) for label in ("a", "shared")))
        await running.settled()
        assert world.store.keys_of("delete")[0] == content_key(f"{FIRST}/{MANIFEST}")
        assert chunk_key("a") not in world.store.objects
        assert chunk_key("shared") in world.store.objects
        world.check()
        world.datastore.forget_group("vm/100")
        world.datastore.remove_chunk("b")
        running.changed(f"{SECOND}/{MANIFEST}", SECOND, "vm/100/owner", "vm/100", chunk_path(digest_of("b")))
        await running.settled()
        assert running.problems() == {}
    assert world.store.objects == {}
    world.check()


async def test_a_group_that_moves_is_found_at_its_new_place(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.back_up("vm/1000/2026-01-01T00:00:00Z", ["a"])
    async with world.running() as running:
        await running.settled()
        (world.datastore.root / "ns/b/vm").mkdir(parents=True)
        (world.datastore.root / "vm/100").rename(world.datastore.root / "ns/b/vm/100")
        running.changed("ns/b", "ns/b/vm", "vm/100", "ns/b/vm/100")
        await running.settled()
        assert running.problems() == {}
    world.check()
    assert published(world.store.objects) == {"ns/b/" + FIRST, "vm/1000/2026-01-01T00:00:00Z"}
    assert world.references("a") == [2]


async def test_what_a_killed_backup_left_is_not_published_and_its_chunks_stay(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.remove(f"{FIRST}/{MANIFEST}")
    assert await world.converge() == {}
    world.check()
    assert set(world.store.objects) == {chunk_key("a")}


async def test_a_chunk_unlinked_while_it_is_published_goes_with_the_snapshot(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.datastore.remove_chunk("a")
        running.changed(chunk_path(digest_of("a")))
        await running.settled()
        assert chunk_key("a") in world.store.objects
        world.datastore.forget(FIRST)
        running.changed(FIRST)
        await running.settled()
        assert chunk_key("a") not in world.store.objects
    world.check()


async def test_a_chunk_in_another_compression_is_replaced(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        world.datastore.write_chunk("a", version=1)
        running.changed(chunk_path(digest_of("a")))
        running.changed(chunk_path(digest_of("a")))
        await running.settled()
    staging = f"{PREFIX}/.mirrorfs/staging/{digest_of('a').hex()}"
    assert world.store.keys_of("put", "copy", "delete") == [staging, chunk_key("a"), staging]
    world.check()


async def test_a_quarantined_chunk_keeps_its_object(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.write_chunk("lonely")
    async with world.running() as running:
        await running.settled()
        for label in ("a", "lonely"):
            world.datastore.quarantine_chunk(label)
            path = chunk_path(digest_of(label))
            running.changed(path, f"{path}.0.bad")
        await running.settled()
        assert {chunk_key("a"), chunk_key("lonely")} <= world.store.objects.keys()
        world.datastore.forget(FIRST)
        running.changed(FIRST)
        await running.settled()
        assert {chunk_key("a"), chunk_key("lonely")} <= world.store.objects.keys()
        for label in ("a", "lonely"):
            path = chunk_path(digest_of(label))
            world.datastore.remove(f"{path}.0.bad")
            running.changed(f"{path}.0.bad")
        await running.settled()
    assert set(world.store.objects) == {chunk_key("b")}
    assert world.store.broken == []


async def test_a_chunk_that_comes_back_while_its_deletion_is_in_flight_is_there_in_the_end(world: World) -> None:
    world.datastore.write_chunk("a")
    async with world.running() as running:
        await running.settled()
        gate = world.store.gate("delete", chunk_key("a"))
        world.datastore.remove_chunk("a")
        running.changed(chunk_path(digest_of("a")))
        await gate.reached.wait()
        world.datastore.write_chunk("a")
        running.changed(chunk_path(digest_of("a")))
        gate.opened.set()
        await running.settled()
    world.check()
    assert chunk_key("a") in world.store.objects


@pytest.mark.parametrize("returns_first", [True, False])
async def test_a_publication_waits_for_the_deletion_of_a_chunk_it_needs(world: World, returns_first: bool) -> None:
    world.datastore.write_chunk("a")
    async with world.running() as running:
        await running.settled()
        gate = world.store.gate("delete", chunk_key("a"))
        world.datastore.remove_chunk("a")
        running.changed(chunk_path(digest_of("a")))
        await gate.reached.wait()
        if returns_first:
            world.datastore.write_chunk("a")
            running.changed(chunk_path(digest_of("a")))
        world.datastore.back_up(FIRST, ["a", "b"])
        running.changed(f"{FIRST}/{MANIFEST}")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert published(world.store.objects) == set()
        gate.opened.set()
        await running.settled()
        assert running.problems() == {}
    world.check()
    assert published(world.store.objects) == {FIRST}


async def test_a_chunk_is_not_deleted_while_a_publication_needs_it(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.remove(f"{FIRST}/{MANIFEST}")
    async with world.running() as running:
        await running.settled()
        gate = world.store.gate("put", content_key(f"{FIRST}/{INDEX}"))
        world.datastore.write_manifest(FIRST)
        running.changed(f"{FIRST}/{MANIFEST}")
        await gate.reached.wait()
        world.datastore.remove_chunk("a")
        running.changed(chunk_path(digest_of("a")))
        await trio.testing.wait_all_tasks_blocked(0.01)
        gate.opened.set()
        await running.settled()
    assert world.store.keys_of("delete") == []
    world.check()


async def test_a_chunk_whose_deletion_has_been_decided_is_seen_to_again(world: World) -> None:
    world.datastore.write_chunk("a")
    digest = digest_of("a")
    begun, go_on = threading.Event(), threading.Event()

    def hold_up(_: StateTransaction) -> None:
        begun.set()
        assert go_on.wait(10)

    async with world.running() as running:
        await running.settled()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.mirror.state.apply, hold_up)
            await trio.to_thread.run_sync(begun.wait)
            # The deletion is decided, and nothing of it is in the state yet.
            world.datastore.remove_chunk("a")
            running.changed(chunk_path(digest))
            while digest not in running.mirror._chunks._busy.held():
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked(0.05)
            async with running.mirror._chunks.pinned(Digests(digest)) as missing:
                assert list(missing) == [digest]
            go_on.set()
        await running.settled()


async def test_a_snapshot_forgotten_while_it_is_published_goes_again(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    gate = world.store.gate("put", content_key(f"{FIRST}/{MANIFEST}"))
    async with world.running() as running:
        await gate.reached.wait()
        world.datastore.forget_group("vm/100")
        running.changed(f"{FIRST}/{MANIFEST}", FIRST, "vm/100/owner")
        gate.opened.set()
        await running.settled()
    world.check()
    assert set(world.store.objects) == {chunk_key("a")}


async def test_a_removed_snapshot_whose_index_the_bucket_lost_keeps_its_chunks(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.store.watches = False
        del world.store.objects[content_key(f"{FIRST}/{INDEX}")]
        world.datastore.forget(FIRST)
        world.datastore.remove_chunk("a")
        running.changed(FIRST, chunk_path(digest_of("a")))
        await running.settled()
        assert running.problems() == {}
    assert set(world.store.objects) == {chunk_key("a")}


@pytest.mark.parametrize("new_place_first", [True, False])
async def test_a_move_does_not_lose_the_chunk_that_only_the_bucket_has(world: World, new_place_first: bool) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    world.datastore.back_up(SECOND, ["b"])
    async with world.running() as running:
        await running.settled()
        world.datastore.remove_chunk("a")
        running.changed(chunk_path(digest_of("a")))
        await running.settled()
        (world.datastore.root / "ns/x/vm").mkdir(parents=True)
        (world.datastore.root / "vm/100").rename(world.datastore.root / "ns/x/vm/100")
        # The new place is slow to be published.
        gate = world.store.gate("put", content_key(f"ns/x/{FIRST}/{INDEX}"))
        moved = ["vm/100", "ns/x/vm/100"]
        running.changed(*(reversed(moved) if new_place_first else moved))
        await gate.reached.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        gate.opened.set()
        await running.settled()
        assert running.problems() == {}
        assert published(world.store.objects) == {f"ns/x/{FIRST}", f"ns/x/{SECOND}"}
        assert chunk_key("a") in world.store.objects
        world.check()
        # With the last snapshot that needs it, it goes.
        world.datastore.forget(f"ns/x/{FIRST}")
        running.changed(f"ns/x/{FIRST}")
        await running.settled()
    assert chunk_key("a") not in world.store.objects
    world.check()


async def test_a_deletion_kept_back_by_a_publication_that_fails_is_made_up_for(world: World) -> None:
    world.datastore.write_chunk("a")
    async with world.running() as running:
        running.changed(chunk_path(digest_of("a")))
        await running.settled()
        world.datastore.back_up(FIRST, ["a", "b"])
        gate = world.store.gate("put", chunk_key("b"))
        running.changed(f"{FIRST}/{MANIFEST}")
        await gate.reached.wait()
        world.datastore.forget(FIRST)
        for label in "ab":
            world.datastore.remove_chunk(label)
            running.changed(chunk_path(digest_of(label)))
        running.changed(f"{FIRST}/{MANIFEST}", FIRST)
        await trio.testing.wait_all_tasks_blocked(0.05)
        world.store.rejected.add(chunk_key("b"))
        gate.opened.set()
        await running.settled()
        assert running.problems() == {}
        assert chunk_key("a") not in world.store.objects
    world.check()


def with_other_header(datastore: Datastore, snapshot: str, offset: int, data: bytes) -> None:
    """The checksum of an index is over its digests only."""
    index = bytearray((datastore.root / snapshot / INDEX).read_bytes())
    index[offset : offset + len(data)] = data
    datastore.write(f"{snapshot}/{INDEX}", bytes(index))


async def test_an_index_with_another_header_is_replaced(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        with_other_header(world.datastore, FIRST, 8, b"U" * 16)
        running.changed(f"{FIRST}/{INDEX}")
        await running.settled()
        assert running.problems() == {}
        assert world.store.requests == [("put", content_key(f"{FIRST}/{INDEX}"))]
    world.check()


async def test_an_index_replaced_while_nobody_looked_is_found_by_its_manifest(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    await world.converge()
    with_other_header(world.datastore, FIRST, 8, b"U" * 16)
    world.datastore.write_manifest(FIRST, notes="verified")
    assert await world.converge() == {}
    world.check()


async def test_an_index_of_another_size_has_its_snapshot_published_anew(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        size = 2 * CHUNK_SIZE - 1
        with_other_header(world.datastore, FIRST, 64, struct.pack("<Q", size))
        world.datastore.write_manifest(FIRST, size=size)
        running.changed(f"{FIRST}/{INDEX}", f"{FIRST}/{MANIFEST}")
        await running.settled()
        assert running.problems() == {}
    changes = [key for key in world.store.keys_of("put", "delete") if "/.chunks/" not in key]
    assert changes[0] == changes[-1] == content_key(f"{FIRST}/{MANIFEST}")
    assert not [key for key in world.store.keys_of("put", "delete") if "/.chunks/" in key]
    world.check()
    assert world.references("a", "b") == [1, 1]


async def test_a_manifest_that_gives_another_size_than_the_index_is_not_published(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        before = dict(world.store.objects)
        world.datastore.write_manifest(FIRST, size=2 * CHUNK_SIZE - 1)
        running.changed(f"{FIRST}/{MANIFEST}")
        await running.settled()
        assert "size" in running.problems()[FIRST]
    assert world.store.objects == before
