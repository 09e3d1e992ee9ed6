"""Chunks that are new are sent in one go, with an intention before and a confirmation after; the rest step by step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

import crc32c
import pytest
import trio

from mirrorfs.replication.sending.attempt import LOST, NOT_BEGUN, Attempt
from mirrorfs.replication.sending.sender import ChunkSender
from mirrorfs.replication.work.items import ChunkItem
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.chunks import ChunkState
from tests.replication.datastore import FIRST, PREFIX, chunk_key, chunk_path, digest_of
from tests.replication.world import Running, World

pytestmark = pytest.mark.trio


@dataclass(slots=True)
class FakeSender:
    """Stores what is in the datastore, or does what it is told to do instead."""

    world: World
    is_open: bool = True
    instead: Callable[[bytes], Attempt | None] = lambda digest: None
    running: Running | None = None
    asked: list[bytes] = field(default_factory=list)

    async def send(self, digest: bytes) -> Attempt:
        await trio.lowlevel.checkpoint()
        self.asked.append(digest)
        if self.running is not None:
            # The intention is on stable storage before anything is sent.
            known = self.running.state.view(lambda transaction: transaction.chunks.get(digest))
            assert known is not None
            assert not known.confirmed
        attempt = self.instead(digest)
        if attempt is not None:
            return attempt
        data = (self.world.datastore.root / chunk_path(digest)).read_bytes()
        self.world.store.objects[f"{PREFIX}/{chunk_path(digest)}"] = data
        return Attempt(began=True, size=len(data), crc32c=crc32c.crc32c(data))


def sending(world: World) -> FakeSender:
    sender = FakeSender(world)
    world.sender = cast(ChunkSender, sender)
    world.store.watches = False
    return sender


def known(running: Running, label: str) -> ChunkState | None:
    return running.state.view(lambda transaction: transaction.chunks.get(digest_of(label)))


async def test_new_chunks_are_sent_once_each_and_confirmed(world: World) -> None:
    sender = sending(world)
    world.datastore.back_up(FIRST, ["a", "b", "c"])
    async with world.running(reconciles=False) as running:
        sender.running = running
        await running.reconcile()
        assert running.problems() == {}
    assert sorted(sender.asked) == sorted(digest_of(label) for label in "abc")
    assert not {key for key in world.store.keys_of("put") if "/.chunks/" in key}
    world.check()


async def test_what_waits_is_handled_by_the_publication_that_needs_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    sender = sending(world)
    world.datastore.back_up(FIRST, ["a", "b"])

    async def take_none(_: Worklist) -> None:
        await trio.sleep_forever()

    # Nobody else is there to handle a chunk.
    monkeypatch.setattr(Worklist, "take_chunk", take_none)
    async with world.running(reconciles=False) as running:
        # Together: a reconciliation may find a chunk when its snapshot has brought it already.
        running.changed(*(chunk_path(digest_of(label)) for label in "ab"), FIRST)
        await running.settled()
        assert running.problems() == {}
    assert sorted(sender.asked) == sorted(digest_of(label) for label in "ab")
    world.check()


async def test_what_was_not_begun_leaves_no_intention(world: World) -> None:
    sender = sending(world)
    sender.instead = lambda digest: NOT_BEGUN
    async with world.running() as running:
        running.add(ChunkItem(digest_of("never there")))
        await running.settled()
        assert known(running, "never there") is None
    assert sender.asked == [digest_of("never there")]
    assert world.store.deletions == []


async def test_what_was_lost_is_looked_for_before_it_is_sent_again(world: World) -> None:
    sender = sending(world)
    world.datastore.write_chunk("a")
    data = (world.datastore.root / chunk_path(digest_of("a"))).read_bytes()

    def lose_the_answer(digest: bytes) -> Attempt:
        world.store.objects[chunk_key("a")] = data
        return LOST

    sender.instead = lose_the_answer
    async with world.running() as running:
        await running.settled()
        assert known(running, "a") == ChunkState(len(data), crc32c.crc32c(data), 0)
    assert world.store.keys_of("put") == []
    assert chunk_key("a") in world.store.keys_of("head")


async def test_what_was_lost_is_done_step_by_step(world: World) -> None:
    sender = sending(world)
    sender.instead = lambda digest: LOST
    world.datastore.back_up(FIRST, ["a", "b"])
    assert await world.converge() == {}
    assert {chunk_key("a"), chunk_key("b")} <= set(world.store.keys_of("put"))
    world.check()


async def test_a_sick_chunk_is_a_problem_as_without_a_sender(world: World) -> None:
    sender = sending(world)
    sender.instead = lambda digest: NOT_BEGUN
    world.datastore.write(chunk_path(digest_of("a")), b"no blob at all, and no chunk")
    (reason,) = (await world.converge()).values()
    assert reason.startswith("it is not sound in the datastore")


async def test_a_chunk_that_is_known_is_not_sent_in_one_go(world: World) -> None:
    sender = sending(world)
    world.datastore.write_chunk("a")
    await world.converge()
    assert sender.asked == [digest_of("a")]
    world.datastore.write_chunk("a", version=1)
    async with world.running() as running:
        running.add(ChunkItem(digest_of("a")))
        await running.settled()
    assert sender.asked == [digest_of("a")]
    world.check()


async def test_nothing_is_sent_in_one_go_while_the_sender_is_closed(world: World) -> None:
    sender = sending(world)
    sender.is_open = False
    world.datastore.back_up(FIRST, ["a"])
    assert await world.converge() == {}
    assert sender.asked == []
    world.check()


async def test_a_chunk_that_was_only_come_upon_is_not_read_when_it_is_confirmed(world: World) -> None:
    world.datastore.write_chunk("a")
    await world.converge()
    path, digest = world.datastore.root / chunk_path(digest_of("a")), digest_of("a")
    path.write_bytes(bytes(path.stat().st_size))
    async with world.running() as running:
        assert await running.mirror._chunks.settle(digest, at_a_glance=True)
        running.add(ChunkItem(digest))
        await running.settled()
        assert list(running.problems()) == [chunk_path(digest)]
