"""How many at a time, who is next, and how fast."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest
import trio
import trio.testing

from mirrorfs.recovery.digest_set import DigestSet
from mirrorfs.recovery.pace import Pace, Slots


def run(main: Callable[[], Awaitable[None]]) -> None:
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def test_the_lowest_rank_is_next_and_no_more_than_so_many() -> None:
    order: list[int] = []
    at_once = 0

    async def work(slots: Slots, rank: int) -> None:
        nonlocal at_once
        async with slots.taken(rank):
            at_once += 1
            assert at_once <= 2
            order.append(rank)
            await trio.sleep(1)
            at_once -= 1

    async def main() -> None:
        slots = Slots(2)
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(work, slots, 99)
            await trio.testing.wait_all_tasks_blocked()
            for rank in (5, 3, 4, 1, 2, 1):
                nursery.start_soon(work, slots, rank)

    run(main)
    assert order[:2] == [99, 99]
    # Two that are let in at the same moment run in any order.
    assert [sorted(order[at : at + 2]) for at in (2, 4, 6)] == [[1, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("is_granted", [False, True])
def test_whoever_gives_up_waiting_keeps_nothing(is_granted: bool) -> None:
    async def wait(slots: Slots, scope: trio.CancelScope) -> None:
        with scope:
            async with slots.taken(1):
                pytest.fail("it had given up")

    async def main() -> None:
        slots, scope = Slots(1), trio.CancelScope()
        async with trio.open_nursery() as nursery, slots.taken(0):
            nursery.start_soon(wait, slots, scope)
            await trio.testing.wait_all_tasks_blocked()
            scope.cancel()
            if not is_granted:
                await trio.testing.wait_all_tasks_blocked()
            # Else it is granted to the one that has given up and could not say so yet.
        with trio.fail_after(1):
            async with slots.taken(5):
                pass

    run(main)


@pytest.mark.parametrize("parallelism", [1, 4])
def test_bytes_come_no_faster_than_allowed(parallelism: int) -> None:
    async def fetch(pace: Pace) -> None:
        for _ in range(100 // parallelism):
            await pace.keep()
            await trio.sleep(0.01)
            pace.fetched(1000)

    async def main() -> None:
        pace = Pace(10_000)
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(parallelism):
                nursery.start_soon(fetch, pace)
        # What was fetched within the credit of a second, and the last ones, need not be waited for.
        assert 8 <= trio.current_time() - began <= 10

    run(main)


def test_without_a_limit_nobody_waits() -> None:
    async def main() -> None:
        pace = Pace()
        began = trio.current_time()
        for _ in range(100):
            await pace.keep()
            pace.fetched(10**9)
        assert trio.current_time() == began

    run(main)


def test_a_set_of_digests() -> None:
    randomness = random.Random(5)
    # All in few directories, of few different bytes: so that pieces of two look like a third.
    digests = [bytes([0, randomness.randrange(2)]) + bytes(randomness.choices(b"\0\1", k=30)) for _ in range(2000)]
    found, expected = DigestSet(), set()
    for digest in digests[:1000]:
        found.add(digest)
        expected.add(digest[:10])
    for digest in digests:
        assert (digest in found) == (digest[:10] in expected)


def test_a_set_of_digests_takes_little_memory() -> None:
    digests = DigestSet()
    randomness = random.Random(6)
    count = 200_000
    for _ in range(count):
        digests.add(randomness.randbytes(32))
    size = sum(len(bucket) for bucket in digests._buckets.values())
    assert size <= 8 * count
