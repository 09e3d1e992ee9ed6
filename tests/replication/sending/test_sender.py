"""How chunks are shared out to hands, and what becomes of those that a hand loses or has no time for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
import trio
import trio.testing

from mirrorfs.objectstore.capabilities import UNPROVEN, StoreCapabilities
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import Condition
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.sending.attempt import LOST, NOT_BEGUN, Attempt
from mirrorfs.replication.sending.sender import ChunkSender
from tests.stores.capabilities import HONEST

STORED = Attempt(began=True, size=7, crc32c=1)


@dataclass(slots=True)
class Store:
    """What a sender asks of an ObjectStore."""

    condition: Condition = field(default_factory=Condition)
    capabilities: StoreCapabilities = HONEST
    sizes: list[int] = field(default_factory=list)

    def count_upload(self, size: int) -> None:
        self.sizes.append(size)


@dataclass(slots=True)
class FakeHand:
    """Takes a while for each chunk, and tells what it is told to tell."""

    seconds: float = 0.001
    answer: Callable[[Sequence[bytes]], Sequence[Attempt]] = lambda digests: [STORED] * len(digests)
    batches: list[list[bytes]] = field(default_factory=list)
    dead_until: trio.Event | None = None

    @property
    def is_ready(self) -> bool:
        return self.dead_until is None or self.dead_until.is_set()

    async def ready(self) -> None:
        if self.dead_until is not None:
            await self.dead_until.wait()

    async def send(self, digests: Sequence[bytes], capabilities: StoreCapabilities) -> Sequence[Attempt]:
        self.batches.append(list(digests))
        with trio.CancelScope(shield=True):
            await trio.sleep(self.seconds * len(digests))
        return self.answer(digests)


@asynccontextmanager
async def sending(store: Store, *hands: FakeHand) -> AsyncIterator[ChunkSender]:
    sender = ChunkSender(hands, cast(ObjectStore, store))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sender.run)
        yield sender
        nursery.cancel_scope.cancel()


async def send_all(sender: ChunkSender, count: int) -> list[Attempt]:
    attempts: list[Attempt] = []

    async def send(number: int) -> None:
        attempts.append(await sender.send(number.to_bytes(4, "big")))

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(send, number)
    return attempts


def run(test: Callable[[], object]) -> None:
    trio.run(test, clock=trio.testing.MockClock(autojump_threshold=0))  # type: ignore[arg-type]


def test_small_chunks_go_several_at_a_time_and_each_once() -> None:
    async def test() -> None:
        store, hands = Store(), [FakeHand() for _ in range(3)]
        async with sending(store, *hands) as sender:
            assert await send_all(sender, 200) == [STORED] * 200
        sent = [digest for hand in hands for batch in hand.batches for digest in batch]
        assert sorted(sent) == [number.to_bytes(4, "big") for number in range(200)]
        assert max(len(batch) for hand in hands for batch in hand.batches) == 8
        assert len(store.sizes) == 200

    run(test)


def test_large_chunks_go_one_at_a_time() -> None:
    async def test() -> None:
        hand = FakeHand(seconds=3.0)
        async with sending(Store(), hand) as sender:
            await send_all(sender, 20)
        assert [len(batch) for batch in hand.batches] == [1] * 20

    run(test)


def test_few_chunks_are_shared_out_to_all_hands() -> None:
    async def test() -> None:
        hands = [FakeHand() for _ in range(4)]
        async with sending(Store(), *hands) as sender:
            await send_all(sender, 100)
            for hand in hands:
                hand.batches.clear()
            await send_all(sender, 4)
        assert [len(hand.batches) for hand in hands] == [1, 1, 1, 1]

    run(test)


def test_what_there_was_no_time_for_comes_next() -> None:
    async def test() -> None:
        hand = FakeHand(answer=lambda digests: [STORED])
        async with sending(Store(), hand) as sender:
            assert await send_all(sender, 40) == [STORED] * 40
        assert max(map(len, hand.batches)) > 1

    run(test)


def test_what_a_hand_loses_is_told_as_lost_and_nothing_is_tried_in_one_go_for_a_while() -> None:
    async def test() -> None:
        async with sending(Store(), FakeHand(answer=lambda digests: [LOST] * len(digests))) as sender:
            assert sender.is_open
            assert await sender.send(b"a") == LOST
            assert not sender.is_open
            await trio.sleep(2)
            assert sender.is_open

    run(test)


def test_a_chunk_that_was_not_begun_closes_nothing() -> None:
    async def test() -> None:
        async with sending(Store(), FakeHand(answer=lambda digests: [NOT_BEGUN] * len(digests))) as sender:
            assert await sender.send(b"a") == NOT_BEGUN
            assert sender.is_open

    run(test)


def test_it_is_closed_while_the_store_is_down_or_proves_nothing() -> None:
    async def test() -> None:
        store = Store()
        async with sending(store, FakeHand()) as sender:
            store.capabilities = UNPROVEN
            assert not sender.is_open
            store.capabilities = replace(HONEST, head_returns_crc32c=True)
            assert sender.is_open
            series = store.condition.begin()
            store.condition.failed(series, StoreUnavailable("look at it", "it is off", StoreReason.UNREACHABLE))
            assert not sender.is_open

    run(test)


def test_without_a_hand_that_is_ready_everything_is_given_back() -> None:
    async def test() -> None:
        lost = FakeHand()

        def die(digests: Sequence[bytes]) -> Sequence[Attempt]:
            lost.dead_until = trio.Event()
            return [LOST] * len(digests)

        lost.answer = die
        async with sending(Store(), lost) as sender:
            assert set(await send_all(sender, 30)) == {LOST, NOT_BEGUN}
            assert not sender.is_open
            assert lost.dead_until is not None
            lost.answer = FakeHand().answer
            lost.dead_until.set()
            await trio.sleep(2)
            assert await send_all(sender, 3) == [STORED] * 3

    run(test)


def test_cancelling_waits_for_what_is_under_way_and_takes_back_the_rest() -> None:
    async def test() -> None:
        hand = FakeHand(seconds=5.0)
        async with sending(Store(), hand) as sender:
            began = trio.current_time()
            with trio.move_on_after(1):
                await send_all(sender, 3)
            assert trio.current_time() - began == pytest.approx(5)
            await trio.sleep(30)
        # The others are nobody's any more.
        assert len(hand.batches) == 1

    run(test)


def test_an_end_of_all_waits_for_what_is_under_way() -> None:
    async def test() -> None:
        hand = FakeHand(seconds=5.0)
        began = trio.current_time()
        sender = ChunkSender([hand], cast(ObjectStore, Store()))
        with trio.move_on_after(1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(sender.run)
                nursery.start_soon(send_all, sender, 30)
        assert trio.current_time() - began == pytest.approx(5)

    run(test)
