"""Group commit: all who wait share one, in order; a failure reaches everybody and ends the run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
import trio
import trio.testing

from mirrorfs.database.errors import DatabaseError
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.state import State, StateTransaction

pytestmark = pytest.mark.trio
Result = TypeVar("Result")


class CountingState(State):
    """Counts its commits."""

    commits = 0

    def update(self, work: Callable[[StateTransaction], Result]) -> Result:
        self.commits += 1
        return super().update(work)


async def test_all_who_wait_share_one_commit(directory: Path) -> None:
    state = CountingState(str(directory))
    commits = CommittedState(state)
    under_way, go_on = threading.Event(), threading.Event()
    results: dict[int, int] = {}
    order: list[int] = []

    def wait(_: StateTransaction) -> None:
        under_way.set()
        assert go_on.wait(10)

    async def apply(number: int) -> None:
        def work(transaction: StateTransaction) -> int:
            order.append(number)
            transaction.contents.intend([f"vm/{number}/owner"])
            return number * 2

        results[number] = await commits.apply(work)
        assert state.view(lambda transaction: transaction.contents.get(f"vm/{number}/owner")) is not None

    async with trio.open_nursery() as nursery:
        nursery.start_soon(commits.run)
        async with trio.open_nursery() as appliers:
            appliers.start_soon(commits.apply, wait)
            await trio.to_thread.run_sync(under_way.wait)
            for number in range(20):
                appliers.start_soon(apply, number)
            await trio.testing.wait_all_tasks_blocked()
            go_on.set()
        nursery.cancel_scope.cancel()
    assert results == {number: number * 2 for number in range(20)}
    assert sorted(order) == list(range(20))
    assert state.commits == 2
    state.close()


async def test_a_failed_commit_stores_nothing_reaches_all_and_ends_the_run(directory: Path) -> None:
    state = State(str(directory))
    commits = CommittedState(state)
    failures: list[DatabaseError] = []

    def fail(_: StateTransaction) -> None:
        raise DatabaseError("no space left on device")

    async def apply(work: Callable[[StateTransaction], None]) -> None:
        with pytest.raises(DatabaseError) as failure:
            await commits.apply(work)
        failures.append(failure.value)

    async def run() -> None:
        with pytest.raises(DatabaseError):
            await commits.run()

    async with trio.open_nursery() as nursery:
        for work in (lambda transaction: transaction.contents.intend(["vm/1/owner"]), fail):
            nursery.start_soon(apply, work)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(run)
    assert [str(failure) for failure in failures] == ["no space left on device"] * 2
    assert state.view(lambda transaction: list(transaction.contents.all())) == []
    state.close()
