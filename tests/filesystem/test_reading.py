"""Requests are read in a row, one task at a time, and the event loop turns all the same."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from mirrorfs.filesystem import reading
from mirrorfs.filesystem.reading import Reading, Turn
from mirrorfs.filesystem.system_calls import wait_readable

pytestmark = pytest.mark.trio


async def test_one_has_the_turn_and_all_have_it_in_the_end() -> None:
    turn = Turn()
    inside = 0
    had: set[int] = set()

    async def work(number: int) -> None:
        nonlocal inside
        for _ in range(50):
            async with turn:
                inside += 1
                assert inside == 1
                await trio.lowlevel.checkpoint()
                inside -= 1
            had.add(number)
            # As a request that something is slow for.
            await trio.lowlevel.checkpoint()

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(5):
                nursery.start_soon(work, number)
    assert had == set(range(5))


async def test_who_has_to_wait_for_something_else_leaves_the_turn_to_others() -> None:
    turn = Turn()
    go_on = trio.Event()
    had: list[str] = []

    async def slow() -> None:
        async with turn:
            had.append("slow")
        await go_on.wait()

    async def quick() -> None:
        async with turn:
            had.append("quick")

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            async with turn:
                nursery.start_soon(slow)
                nursery.start_soon(quick)
                await trio.testing.wait_all_tasks_blocked()
            await trio.testing.wait_all_tasks_blocked()
            assert sorted(had) == ["quick", "slow"]
            go_on.set()


class _Requests:
    """A pipe that has something to read, and how often it was looked for past the event loop."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.descriptor, self._other = os.pipe()
        os.write(self._other, b"request")
        self.looks = 0
        monkeypatch.setattr(reading, "wait_readable", self)

    def __call__(self, descriptor: int, nanoseconds: int) -> bool:
        self.looks += 1
        return wait_readable(descriptor, nanoseconds)

    def close(self) -> None:
        os.close(self.descriptor)
        os.close(self._other)


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Requests]:
    requests = _Requests(monkeypatch)
    yield requests
    requests.close()


@pytest.fixture
def turns(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The descriptors that the event loop was asked to wait for."""
    waited: list[int] = []
    wait = trio.lowlevel.wait_readable

    async def wait_readable(descriptor: int) -> None:
        waited.append(descriptor)
        await wait(descriptor)

    monkeypatch.setattr(trio.lowlevel, "wait_readable", wait_readable)
    return waited


async def test_the_event_loop_turns_after_so_many(requests: _Requests, turns: list[int]) -> None:
    waiting = Reading(lambda: False)
    for number in range(3 * (reading._MOST_IN_A_ROW + 1)):
        await waiting.wait_readable(requests.descriptor)
        assert len(turns) == (number + 1) // (reading._MOST_IN_A_ROW + 1)
    assert requests.looks == 3 * reading._MOST_IN_A_ROW


async def test_the_event_loop_turns_while_anything_else_is_under_way(requests: _Requests, turns: list[int]) -> None:
    waiting = Reading(lambda: True)
    for _ in range(5):
        await waiting.wait_readable(requests.descriptor)
    assert len(turns) == 5
    assert requests.looks == 0
