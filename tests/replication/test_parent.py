"""The filesystem process as the uploader hears it, whatever comes in which pieces."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import IO

import pytest
import trio
import trio.testing

from mirrorfs.objectstore.rate_schedule import RateLimits, RateSchedule, RateWindow
from mirrorfs.replication.parent import ALIVE_SECONDS, LIMITS, FilesystemProcess

pytestmark = pytest.mark.trio


class Scene:
    """A parent that is played by a pipe."""

    def __init__(self, write: int) -> None:
        self.write = write
        self.wakes = 0
        self.limits: list[RateLimits] = []
        self.told: list[tuple[str, dict[str, str | int]]] = []
        self.parent = FilesystemProcess(self.wake, self.tell, self.limits.append)

    def wake(self) -> None:
        self.wakes += 1

    def tell(self, event: str, /, **details: str | int) -> None:
        self.told.append((event, details))


@pytest.fixture
def scene(monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene whose pipe stands in the place of standard input."""
    read, write = os.pipe()
    standard: IO[bytes] = os.fdopen(read, "rb")
    monkeypatch.setattr(sys, "stdin", standard)
    made = Scene(write)
    yield made
    standard.close()


async def test_it_is_woken_and_hears_the_end(scene: Scene) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.parent.follow)
        os.write(scene.write, b"\n\n")
        await trio.testing.wait_all_tasks_blocked()
        assert scene.wakes == 2
        # The nursery ends with the pipe.
        os.close(scene.write)


async def test_other_limits_are_heard(scene: Scene) -> None:
    limits = RateLimits(up=RateSchedule((RateWindow(420, 1140, 1e6),), 2e6))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.parent.follow)
        os.write(scene.write, f"{LIMITS} {json.dumps(asdict(limits))}\n\n".encode())
        await trio.testing.wait_all_tasks_blocked()
        assert scene.limits == [limits]
        assert scene.wakes == 1
        os.close(scene.write)


async def test_each_question_waits_for_its_own_answer(scene: Scene) -> None:
    answered: list[str] = []

    async def ask(name: str) -> None:
        await scene.parent.catch_up()
        answered.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(scene.parent.follow)
        nursery.start_soon(ask, "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(ask, "second")
        await trio.testing.wait_all_tasks_blocked()
        assert scene.told == [("catch-up", {"number": 1}), ("catch-up", {"number": 2})]
        # An answer to another uploader's question, and one that comes in pieces between news.
        os.write(scene.write, b"caught-up 77\n\ncaught-")
        await trio.testing.wait_all_tasks_blocked()
        assert answered == []
        os.write(scene.write, b"up 2\n\n")
        await trio.testing.wait_all_tasks_blocked()
        assert (answered, scene.wakes) == (["second"], 2)
        os.write(scene.write, b"caught-up 1\n")
        with trio.fail_after(20):
            while len(answered) < 2:
                await trio.testing.wait_all_tasks_blocked()
        assert answered == ["second", "first"]
        os.close(scene.write)


async def test_it_says_that_it_works(scene: Scene, autojump_clock: trio.testing.MockClock) -> None:
    with trio.move_on_after(2.5 * ALIVE_SECONDS):
        await scene.parent.say_alive()
    assert scene.told == [("alive", {})] * 3
