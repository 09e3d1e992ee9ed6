"""What does not work any more is ended, and what only waits for a disk is not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs.filesystem.condition import Condition
from mirrorfs.filesystem.slots import MOST_REQUESTS, Traffic
from mirrorfs.replication.parent import ALIVE_SECONDS
from mirrorfs.supervision.notify import ServiceManager
from mirrorfs.supervision.watchdog import SignsOfLife, Watchdog

pytestmark = pytest.mark.trio


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager's socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as bound:
        bound.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield bound


@pytest.fixture
def backing() -> Iterator[int]:
    """A backing directory."""
    descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def _finding(condition: Condition) -> Callable[[str, float], Condition]:
    return lambda _path, _seconds: condition


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "²"}, None),
    ],
)
async def test_whom_the_service_manager_waits_for(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], seconds: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert ServiceManager().watchdog_seconds == seconds
    assert not os.environ.keys() & {"WATCHDOG_USEC", "WATCHDOG_PID"}, "the uploader would inherit them"


@pytest.mark.parametrize(
    ("condition", "is_well"),
    [
        (Condition.SERVING, True),
        (Condition.ABSENT, True),
        (Condition.SILENT, False),
        (Condition.DEAD, False),
    ],
)
async def test_it_is_told_while_the_mount_answers(
    listener: socket.socket, backing: int, monkeypatch: pytest.MonkeyPatch, condition: Condition, is_well: bool
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "5000000")
    asked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def find(path: str, seconds: float) -> Condition:
        assert path == "/mnt/datastore"
        assert seconds == pytest.approx(1.0)
        if len(times) == 1:
            token.run_sync_soon(asked.set)
        times.append(seconds)
        return condition

    times: list[float] = []
    watchdog = Watchdog(ServiceManager(), "/mnt/datastore", backing, Traffic(), condition=find)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watchdog.run)
            await asked.wait()
            nursery.cancel_scope.cancel()
    if is_well:
        assert listener.recv(100) == b"WATCHDOG=1"
    else:
        with pytest.raises(BlockingIOError):
            listener.recv(100)


async def test_nobody_is_told_who_does_not_want_to_hear(backing: int) -> None:
    asked: list[str] = []

    def find(path: str, _: float) -> Condition:
        asked.append(path)
        return Condition.SERVING

    await Watchdog(ServiceManager(), "/mnt/datastore", backing, Traffic(), condition=find).run()
    assert asked == []


async def test_a_mount_that_waits_for_its_disk_is_left_alone(
    backing: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hang, answer = os.pipe()
    calls: list[bytes] = []
    monkeypatch.setattr(os, "fstatvfs", lambda _: calls.append(os.read(hang, 1)))
    watchdog = Watchdog(ServiceManager(), "/mnt/datastore", backing, Traffic(), condition=_finding(Condition.SILENT))
    # The second look does not begin another thread that hangs.
    assert await watchdog.is_well(1.0)
    assert await watchdog.is_well(1.0)
    assert "the datastore's disk does not" in caplog.text
    os.close(answer)
    assert not await watchdog.is_well(60.0)
    assert calls == [b"", b""]
    os.close(hang)


async def test_that_nobody_can_be_asked_is_no_fault_of_the_mount(backing: int) -> None:
    def fail(_path: str, _seconds: float) -> Condition:
        raise BlockingIOError("no process is to be had")

    assert await Watchdog(ServiceManager(), "/mnt/datastore", backing, Traffic(), condition=fail).is_well(1.0)


async def test_that_nobody_asks_is_no_fault_of_the_mount(backing: int, caplog: pytest.LogCaptureFixture) -> None:
    begun, free = threading.Event(), threading.Event()
    asked: list[str] = []

    def hang(path: str, _: float) -> Condition:
        asked.append(path)
        begun.set()
        free.wait()
        return Condition.SILENT

    watchdog = Watchdog(ServiceManager(), "/mnt/datastore", backing, Traffic(), condition=hang)
    try:
        with trio.fail_after(60):
            # The second one does not begin another thread that hangs.
            assert await watchdog.is_well(0.05)
            assert await watchdog.is_well(0.05)
            await trio.to_thread.run_sync(begun.wait)
    finally:
        free.set()
    assert len(asked) == 1
    assert "nobody could be made to ask the mount" in caplog.text


async def test_a_mount_whose_requests_all_wait_is_left_alone(backing: int, caplog: pytest.LogCaptureFixture) -> None:
    traffic = Traffic(under_way=MOST_REQUESTS, done=5)
    find = _finding(Condition.SILENT)
    watchdog = Watchdog(ServiceManager(), "/mnt/datastore", backing, traffic, condition=find)
    assert await watchdog.is_well(60.0)
    assert "a disk holds up all requests" in caplog.text
    # With a request more it could serve the question.
    traffic.under_way -= 1
    assert not await watchdog.is_well(60.0)


async def test_a_mount_that_serves_others_is_left_alone(backing: int, caplog: pytest.LogCaptureFixture) -> None:
    traffic = Traffic(done=5)

    def find(_path: str, _seconds: float) -> Condition:
        traffic.done += 1
        return Condition.SILENT

    assert await Watchdog(ServiceManager(), "/mnt/datastore", backing, traffic, condition=find).is_well(60.0)
    assert "but serves others" in caplog.text


async def test_a_failed_question_is_followed_by_the_next_at_once(
    listener: socket.socket,
    backing: int,
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "300000000")
    watchdog = Watchdog(ServiceManager(), "/mnt/datastore", backing, Traffic())
    began = trio.current_time()
    asked: list[float] = []

    async def fail(seconds: float) -> bool:
        asked.append(trio.current_time() - began)
        # The first is answered at once, the others are not.
        await trio.sleep(seconds if len(asked) > 1 else 0)
        return len(asked) == 1

    monkeypatch.setattr(watchdog, "is_well", fail)
    with trio.move_on_after(299):
        await watchdog.run()
    assert asked == pytest.approx([0, 60, 120, 180, 240])
    assert listener.recv(100) == b"WATCHDOG=1"


async def test_silence_ends_the_watch_only_after_a_first_sign(autojump_clock: trio.testing.MockClock) -> None:
    signs = SignsOfLife()
    with trio.move_on_after(1000 * ALIVE_SECONDS) as opening:
        await signs.watch()
    assert opening.cancelled_caught, "it was ended while it opened its state"
    with trio.move_on_after(1000 * ALIVE_SECONDS) as working:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(signs.watch)
            while True:
                signs.hear()
                await trio.sleep(3 * ALIVE_SECONDS)
    assert working.cancelled_caught, "it was ended though it was heard"
    signs.hear()
    began = trio.current_time()
    await signs.watch()
    assert 9 * ALIVE_SECONDS < trio.current_time() - began < 13 * ALIVE_SECONDS
