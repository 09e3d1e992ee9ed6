"""Calls in threads: outcomes, how many run at a time, and that a late one makes the event loop wait only once."""

import threading

import pytest
import trio

from mirrorfs.filesystem.system_calls import add_event
from mirrorfs.filesystem.threads import Threads, _Call

_MANY = 100


class _Gate:
    """Calls that do not return before they are let go, counted."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._open = False
        self.inside = 0

    def __call__(self) -> None:
        with self._condition:
            self.inside += 1
            self._condition.notify_all()
            assert self._condition.wait_for(lambda: self._open, timeout=20)

    def wait_for(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.inside >= count, timeout=20)

    def let_go(self) -> None:
        with self._condition:
            self._open = True
            self._condition.notify_all()


@pytest.mark.trio
@pytest.mark.parametrize("briefly", [True, False])
async def test_returns_and_raises_what_the_call_does(briefly: bool) -> None:
    threads = Threads()

    def fail() -> None:
        raise FileNotFoundError("missing")

    for _ in range(200):
        assert await threads.run("inode", lambda: 7, briefly=briefly) == 7
        with pytest.raises(FileNotFoundError, match="missing"):
            await threads.run("inode", fail, briefly=briefly)
    threads.close()


@pytest.mark.trio
async def test_only_so_many_about_one_inode_and_all_in_the_end() -> None:
    threads = Threads()
    gate = _Gate()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for _ in range(_MANY):
                nursery.start_soon(threads.run, "stuck", gate)
            await trio.to_thread.run_sync(gate.wait_for, 32)
            # Another inode has its turn at once, however many wait.
            assert await threads.run("other", lambda: 7) == 7
            assert gate.inside == 32
            gate.let_go()
    assert gate.inside == _MANY
    threads.close()


@pytest.mark.trio
async def test_many_inodes_at_a_time() -> None:
    threads = Threads()
    gate = _Gate()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(_MANY):
                nursery.start_soon(threads.run, number, gate)
            await trio.to_thread.run_sync(gate.wait_for, _MANY)
            gate.let_go()
    threads.close()


@pytest.mark.trio
async def test_the_event_loop_waits_for_the_first_late_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = 0

    def wait_readable(descriptor: int, nanoseconds: int) -> bool:
        nonlocal waits
        waits += 1
        return False

    monkeypatch.setattr("mirrorfs.filesystem.threads.wait_readable", wait_readable)
    threads = Threads()
    gate = _Gate()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(_MANY):
                nursery.start_soon(threads.run, number, gate)
            await trio.to_thread.run_sync(gate.wait_for, _MANY)
            assert waits == 1
            gate.let_go()
    await threads.run("inode", lambda: 7)
    assert waits == 2
    threads.close()


@pytest.mark.trio
async def test_a_thread_that_has_yet_to_tell_gets_the_interpreters_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has claimed the end of its call when the event loop gives up waiting, and tells of it only after that."""
    claimed, given_up = threading.Event(), threading.Event()
    claim = _Call.claim

    def wait_readable(descriptor: int, nanoseconds: int) -> bool:
        assert claimed.wait(20)
        return False

    def tell(counter: int) -> None:
        if threading.current_thread().name == "mirrorfs-call":
            claimed.set()
            assert given_up.wait(20)
        add_event(counter)

    def claim_noticing(call: _Call[int]) -> bool:
        is_ours = claim(call)
        if not is_ours:
            given_up.set()
        return is_ours

    monkeypatch.setattr("mirrorfs.filesystem.threads.wait_readable", wait_readable)
    monkeypatch.setattr("mirrorfs.filesystem.threads.add_event", tell)
    monkeypatch.setattr(_Call, "claim", claim_noticing)
    threads = Threads()
    assert await threads.run("inode", lambda: 7) == 7
    monkeypatch.setattr("mirrorfs.filesystem.threads.add_event", add_event)
    threads.close()


@pytest.mark.trio
async def test_close_ends_the_threads() -> None:
    before = set(threading.enumerate())
    threads = Threads()
    gate = _Gate()
    async with trio.open_nursery() as nursery:
        for number in range(_MANY):
            nursery.start_soon(threads.run, number, gate)
        await trio.to_thread.run_sync(gate.wait_for, _MANY)
        gate.let_go()
    threads.close()
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name == "mirrorfs-call"]
