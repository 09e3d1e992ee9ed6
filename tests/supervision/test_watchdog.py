"""What does not work any more is ended, and what only waits for a disk is not."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs.filesystem.condition import Condition
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
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    asked = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def find(path: str, seconds: float) -> Condition:
        assert path == "/mnt/datastore"
        assert seconds == pytest.approx(0.2)
        if len(times) == 3:
            token.run_sync_soon(asked.set)
        times.append(seconds)
        return condition

    times: list[float] = []
    watchdog = Watchdog(ServiceManager(), "/mnt/datastore", backing, condition=find)
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

    await Watchdog(ServiceManager(), "/mnt/datastore", backing, condition=find).run()
    assert asked == []


async def test_a_mount_that_waits_for_its_disk_is_left_alone(
    backing: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hang, answer = os.pipe()
    calls: list[bytes] = []
    monkeypatch.setattr(os, "fstatvfs", lambda _: calls.append(os.read(hang, 1)))
    watchdog = Watchdog(ServiceManager(), "/mnt/datastore", backing, condition=_finding(Condition.SILENT))
    # The second look does not begin another thread that hangs.
    assert await watchdog.is_well(0.05)
    assert await watchdog.is_well(0.05)
    assert "the datastore's disk does not" in caplog.text
    os.close(answer)
    assert not await watchdog.is_well(60.0)
    assert calls == [b"", b""]
    os.close(hang)


async def test_that_nobody_can_be_asked_is_no_fault_of_the_mount(backing: int) -> None:
    def fail(_path: str, _seconds: float) -> Condition:
        raise BlockingIOError("no process is to be had")

    assert await Watchdog(ServiceManager(), "/mnt/datastore", backing, condition=fail).is_well(1.0)


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
