"""Chunk objects: deleted many at a time and none too many, kept through quarantine, replaced without a gap."""

from __future__ import annotations

import logging
import time

import pytest
import trio
import trio.testing

from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.objectstore.errors import StoreRejected
from mirrorfs.replication.retention.chunks import ChunkRemoval
from mirrorfs.replication.work.items import ChunkItem
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import StateTransaction
from tests.datastore import formats as make
from tests.replication.datastore import (
    FIRST,
    MANIFEST,
    PREFIX,
    broken_snapshots,
    chunk_key,
    chunk_path,
    digest_of,
)
from tests.replication.world import Running, World

pytestmark = pytest.mark.trio

STAGING = f"{PREFIX}/.mirrorfs/staging/"


def path_of(label: str) -> str:
    return chunk_path(digest_of(label))


def remove_chunks(running: Running, world: World, labels: list[str]) -> None:
    for label in labels:
        world.datastore.remove_chunk(label)
    running.changed(*map(path_of, labels))


# --- deleting


async def test_a_garbage_collection_takes_one_request_for_a_thousand_chunks(world: World) -> None:
    labels = [f"garbage {number}" for number in range(2500)]
    world.store.watches = False
    for label in labels:
        world.datastore.write_chunk(label)
    world.datastore.back_up(FIRST, ["a"])
    await world.converge()
    for label in labels:
        world.datastore.remove_chunk(label)
    assert await world.converge() == {}
    assert sorted(map(len, world.store.deletions)) == [500, 1000, 1000]
    assert set(world.store.keys_of("delete")) == {chunk_key(label) for label in labels}
    world.check()


async def test_what_the_store_refuses_to_delete_stays_known_and_is_not_asked_for_again_too_early(
    world: World, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = list("abcd")
    for label in labels:
        world.datastore.write_chunk(label)
    world.store.kept = {chunk_key("b"), chunk_key("d")}
    now = time.time()
    async with world.running() as running:
        await running.settled()
        before = running.state.view(lambda transaction: transaction.chunks.get(digest_of("b")))
        for label in labels:
            world.datastore.remove_chunk(label)
        with caplog.at_level(logging.WARNING):
            await running.mirror.remove_chunks([ChunkItem(digest_of(label)) for label in labels])
        assert world.store.objects.keys() == world.store.kept
        assert running.state.view(lambda transaction: transaction.chunks.get(digest_of("b"))) == before
        assert [record.message for record in caplog.records if "refuses" in record.message] == [
            "the store refuses to delete 2 of 4 chunks that nobody needs; it is asked again later: "
            f"Could not delete {min(world.store.kept)}: it is locked."
        ]
        count, refusals = running.state.view(lambda transaction: transaction.retention.refusals(1))
        assert count == 2
        assert now + 3600 <= refusals[0].retry_at <= time.time() + 3600
        assert running.problems() == {}
    world.store.requests.clear()
    async with world.running() as running:
        await running.mirror.look_again_at_refused()
        await running.settled()
        assert world.store.requests == []
        monkeypatch.setattr(running.mirror._chunk_removal, "_now", lambda: time.time() + 3601)
        world.store.kept.clear()
        await running.mirror.look_again_at_refused()
        await running.settled()
        assert running.state.view(lambda transaction: transaction.retention.refusals(1)) == (0, [])
    assert world.store.objects == {}


async def test_a_lock_that_is_known_tells_when_to_ask_again(world: World) -> None:
    until = time.time() + 90_000
    world.datastore.write_chunk("a")
    world.store.kept = {chunk_key("a")}
    async with world.running() as running:
        await running.settled()
        await running.mirror.state.apply(
            lambda transaction: transaction.locks.set_chunks_locked([digest_of("a")], until)
        )
        remove_chunks(running, world, ["a"])
        await running.settled()
        _, refusals = running.state.view(lambda transaction: transaction.retention.refusals(1))
        assert [refusal.retry_at for refusal in refusals] == [until]
        assert running.state.view(lambda transaction: transaction.locks.chunk_locked_until(digest_of("a"))) == until


async def test_a_request_that_is_refused_leaves_everything_in_doubt(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(keys: list[str]) -> None:
        raise StoreRejected("delete objects", "the request is malformed")

    world.datastore.write_chunk("a")
    async with world.running() as running:
        await running.settled()
        monkeypatch.setattr(type(world.store), "delete_each", staticmethod(refuse))
        remove_chunks(running, world, ["a"])
        await running.settled()
        known = running.state.view(lambda transaction: transaction.chunks.get(digest_of("a")))
        assert known is not None
        assert not known.confirmed
        monkeypatch.undo()
        world.datastore.write_chunk("a")
        running.changed(path_of("a"))
        await running.settled()
    world.check()


async def test_of_a_batch_only_what_returns_is_sent_again(world: World) -> None:
    labels = list("abc")
    for label in labels:
        world.datastore.write_chunk(label)
    async with world.running() as running:
        await running.settled()
        gate = world.store.gate("delete", chunk_key("b"))
        for label in labels:
            world.datastore.remove_chunk(label)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(running.mirror.remove_chunks, [ChunkItem(digest_of(label)) for label in labels])
            await gate.reached.wait()
            world.store.requests.clear()
            # Without a record: whoever has deleted looks for itself.
            world.datastore.write_chunk("a")
            world.datastore.write_chunk("b", version=1)
            gate.opened.set()
        await running.settled()
    assert set(world.store.keys_of("put")) == {chunk_key("a"), chunk_key("b")}
    world.check()


async def test_a_reference_that_comes_while_a_batch_is_prepared_keeps_its_chunk(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a snapshot is found in the bucket that the state did not know; publications announce theirs by pins."""
    for label in "ab":
        world.datastore.write_chunk(label)
    found = SnapshotState(SnapshotPhase.ADOPTED, {}, 0.0)
    unneeded = ChunkRemoval._unneeded

    async with world.running() as running:

        def adopt(transaction: StateTransaction) -> None:
            transaction.commit_snapshot(FIRST, found, [digest_of("a")])

        def and_then_adopt(removal: ChunkRemoval, digests: list[bytes]) -> list[bytes]:
            judged = unneeded(removal, digests)
            assert set(judged) == {digest_of("a"), digest_of("b")}
            trio.from_thread.run(running.mirror.state.apply, adopt)
            return judged

        await running.settled()
        monkeypatch.setattr(ChunkRemoval, "_unneeded", and_then_adopt)
        for label in "ab":
            world.datastore.remove_chunk(label)
        await running.mirror.remove_chunks([ChunkItem(digest_of(label)) for label in "ab"])
        await running.settled()
        known = running.state.view(lambda transaction: transaction.chunks.get(digest_of("a")))
        assert known is not None
        assert (known.confirmed, known.references) == (True, 1)
    assert world.store.objects.keys() == {chunk_key("a")}


async def test_a_reference_that_comes_while_a_batch_is_deleted_is_not_forgotten(world: World) -> None:
    world.datastore.write_chunk("a")
    found = SnapshotState(SnapshotPhase.ADOPTED, {}, 0.0)
    async with world.running() as running:
        await running.settled()
        gate = world.store.gate("delete", chunk_key("a"))
        remove_chunks(running, world, ["a"])
        await gate.reached.wait()
        await running.mirror.state.apply(
            lambda transaction: transaction.commit_snapshot(FIRST, found, [digest_of("a")])
        )
        gate.opened.set()
        await running.settled()
        known = running.state.view(lambda transaction: transaction.chunks.get(digest_of("a")))
        assert known is not None
        assert (known.confirmed, known.references) == (False, 1)


async def test_a_chunk_pinned_while_its_deletion_waits_is_kept_as_long_as_that(world: World) -> None:
    for label in "ab":
        world.datastore.write_chunk(label)
    async with world.running() as running:
        await running.settled()
        for label in "ab":
            world.datastore.remove_chunk(label)
        async with running.mirror._chunks.pinned(Digests(digest_of("a"))):
            await running.mirror.remove_chunks([ChunkItem(digest_of(label)) for label in "ab"])
            await running.settled()
            assert world.store.objects.keys() == {chunk_key("a")}
        await running.settled()
    assert world.store.objects == {}


async def test_a_chunk_of_a_batch_that_somebody_works_on_is_looked_at_again(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write_chunk("b")
    await world.converge()
    async with world.running() as running:
        await running.settled()
        busy = running.mirror._chunks._busy
        world.datastore.remove_chunk("b")
        async with busy.hold(digest_of("b")):
            # As if it had been postponed before somebody began to work on it.
            await running.mirror.remove_chunks([ChunkItem(digest_of("b"))])
            await trio.testing.wait_all_tasks_blocked(0.01)
            assert chunk_key("b") in world.store.objects
        await running.settled()
    world.check()
    assert chunk_key("b") not in world.store.objects


async def test_one_chunk_that_cannot_be_looked_at_does_not_hold_up_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for label in "ab":
        world.datastore.write_chunk(label)
    async with world.running() as running:
        await running.settled()
        remove_chunks(running, world, ["a", "b"])
        tree = running.mirror._tree
        look = tree.chunk

        def look_at_sick_disk(digest: bytes) -> object:
            if digest == digest_of("a"):
                raise OSError(5, "Input/output error")
            return look(digest)

        monkeypatch.setattr(tree, "chunk", look_at_sick_disk)
        await running.mirror.remove_chunks([ChunkItem(digest_of(label)) for label in "ab"])
        assert running.problems() == {path_of("a"): "it cannot be read: Input/output error"}
        assert world.store.objects.keys() == {chunk_key("a")}
        monkeypatch.undo()
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    assert world.store.objects == {}


# --- quarantine


async def test_a_corrupt_chunk_is_kept_and_listed_until_its_copy_is_gone(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    world.datastore.write_chunk("lonely")
    async with world.running() as running:
        await running.settled()
        began = time.time()
        for label in ("a", "lonely"):
            world.datastore.quarantine_chunk(label)
            running.changed(path_of(label), f"{path_of(label)}.0.bad")
        await running.settled()
        count, chunks = running.state.view(lambda transaction: transaction.quarantine.examples(9))
        assert count == 2
        assert all(began <= chunk.since <= time.time() and chunk.has_good_copy for chunk in chunks)
        assert world.store.keys_of("delete") == []
        # PBS stores it again at the next backup, and its garbage collection unlinks the corrupt copy later.
        world.datastore.write_chunk("a", version=1)
        running.changed(path_of("a"))
        await running.settled()
        assert running.state.view(lambda transaction: transaction.quarantine.examples(0))[0] == 2
        for label in ("a", "lonely"):
            world.datastore.remove(f"{path_of(label)}.0.bad")
            running.changed(f"{path_of(label)}.0.bad")
        await running.settled()
        assert running.state.view(lambda transaction: transaction.quarantine.examples(0))[0] == 0
    assert chunk_key("lonely") not in world.store.objects
    world.check()


async def test_a_chunk_quarantined_while_its_deletion_waits_is_kept(world: World) -> None:
    world.datastore.write_chunk("a")
    async with world.running() as running:
        await running.settled()
        world.datastore.quarantine_chunk("a")
        await running.mirror.remove_chunks([ChunkItem(digest_of("a"))])
        await running.settled()
        assert running.state.view(lambda transaction: transaction.quarantine.examples(0))[0] == 1
    assert world.store.keys_of("delete") == []


# --- replacing


async def test_a_chunk_in_another_compression_is_replaced_by_what_was_confirmed_before(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        old = world.store.objects[chunk_key("a")]
        seen: list[bytes] = []
        world.store.on_change = lambda operation, key: seen.append(world.store.objects[chunk_key("a")])
        world.store.requests.clear()
        world.datastore.write_chunk("a", version=1)
        new = (world.datastore.root / path_of("a")).read_bytes()
        running.changed(path_of("a"))
        await running.settled()
        assert seen == [old, new, new]
        staged = f"{STAGING}{digest_of('a').hex()}"
        assert world.store.requests == [("put", staged), ("copy", chunk_key("a")), ("delete", staged)]
        known = running.state.view(lambda transaction: transaction.chunks.get(digest_of("a")))
        assert known is not None
        assert (known.size, known.references) == (len(new), 1)
    world.check()


async def test_what_cannot_be_confirmed_beside_it_does_not_replace_a_chunk(world: World) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        before = dict(world.store.objects)
        world.store.rejected.add(f"{STAGING}{digest_of('a').hex()}")
        world.datastore.write_chunk("a", version=1)
        running.changed(path_of("a"))
        await running.settled()
        assert set(running.problems()) == {path_of("a")}
        assert world.store.objects == before
        known = running.state.view(lambda transaction: transaction.chunks.get(digest_of("a")))
        assert known is not None
        assert known.confirmed
        world.store.rejected.clear()
        running.mirror.look_again_at_problems()
        await running.settled()
        assert running.problems() == {}
    world.check()


@pytest.mark.parametrize("announced", [True, False])
async def test_a_store_that_does_not_copy_gets_it_put(world: World, announced: bool) -> None:
    world.datastore.back_up(FIRST, ["a"])
    async with world.running() as running:
        await running.settled()
        world.store.requests.clear()
        world.store.cannot_copy(announced=announced)
        world.datastore.write_chunk("a", version=1)
        running.changed(path_of("a"))
        await running.settled()
    assert world.store.keys_of("put")[-1] == chunk_key("a")
    assert [key for key in world.store.objects if key.startswith(STAGING)] == []
    world.check()


async def test_a_damaged_object_is_replaced_and_an_absent_one_put(world: World) -> None:
    world.datastore.back_up(FIRST, ["a", "b"])
    async with world.running() as running:
        await running.settled()
        world.store.watches = False
        world.store.objects[chunk_key("a")] = b"damaged"
        del world.store.objects[chunk_key("b")]
        for label in "ab":
            await running.mirror.state.apply(
                lambda transaction, label=label: transaction.chunks.doubt(digest_of(label))  # type: ignore[misc]
            )
        world.store.requests.clear()
        running.changed(path_of("a"), path_of("b"))
        await running.settled()
    assert world.store.keys_of("copy") == [chunk_key("a")]
    assert set(world.store.keys_of("put")) == {f"{STAGING}{digest_of('a').hex()}", chunk_key("b")}
    assert broken_snapshots(world.store.objects) == []
    world.check()


async def test_the_start_clears_what_replacing_has_left_and_nothing_else(world: World) -> None:
    foreign = {f"{STAGING}notes.txt": b"mine", f"{PREFIX}/.mirrorfs/other": b"also"}
    left = {f"{STAGING}{digest_of(label).hex()}": b"left" for label in "ab"}
    world.store.objects = {**foreign, **left}
    await world.converge()
    assert world.store.objects == foreign


async def test_a_removal_does_not_overtake_the_publication_that_takes_its_chunk_along(world: World) -> None:
    """The two records of a move fall into two reads of the journal."""
    world.datastore.back_up(FIRST, ["a"])
    newest = 0
    async with world.running(newest=lambda: newest) as running:
        await running.settled()
        world.datastore.remove_chunk("a")
        (world.datastore.root / "ns/x/vm").mkdir(parents=True)
        (world.datastore.root / "vm/100").rename(world.datastore.root / "ns/x/vm/100")
        newest = 2
        running.worklist.add(SnapshotId.parse(FIRST), 1)
        running.worklist.add(ChunkItem(digest_of("a")), 1)
        running.worklist.has_read(1)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert f"{PREFIX}/.cnt/{FIRST}/{MANIFEST}" in world.store.objects
        running.worklist.add(SnapshotId.parse(f"ns/x/{FIRST}"), 2)
        running.worklist.has_read(2)
        await running.settled()
        running.changed("vm/100/owner", "ns/x/vm/100/owner")
        await running.settled()
    changes = [key for operation, key in world.store.requests if operation in ("put", "copy", "delete")]
    new, old = f"{PREFIX}/.cnt/ns/x/{FIRST}/{MANIFEST}", f"{PREFIX}/.cnt/{FIRST}/{MANIFEST}"
    assert changes.index(new) < len(changes) - 1 - changes[::-1].index(old)
    assert chunk_key("a") in world.store.objects
    world.check()


async def test_a_chunk_that_rots_in_the_datastore_stays_sound_in_the_bucket(world: World) -> None:
    content = b"the same content, well known"
    world.datastore.back_up(FIRST, [])
    digest = world.datastore.write_plain_chunk(content)
    key = f"{PREFIX}/{chunk_path(digest)}"
    async with world.running() as running:
        running.changed(chunk_path(digest))
        await running.settled()
        world.datastore.write(chunk_path(digest), make.plain_blob(b"rotten"))
        running.changed(chunk_path(digest))
        await running.settled()
        assert set(running.problems()) == {chunk_path(digest)}
        (world.datastore.root / chunk_path(digest)).rename(world.datastore.root / f"{chunk_path(digest)}.0.bad")
        running.changed(chunk_path(digest), f"{chunk_path(digest)}.0.bad")
        await running.settled()
        assert running.problems() == {}
    assert world.store.objects[key] == make.plain_blob(content)
