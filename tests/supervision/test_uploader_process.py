"""The uploader as the mount sees it, played by a stub that is started in the place of the interpreter."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs import restarts
from mirrorfs.database.errors import DatabaseError
from mirrorfs.journal.journal import Position
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.restarts import Failing
from mirrorfs.supervision import uploader_process, watchdog
from mirrorfs.supervision.uploader_process import StoreAnswer, UploaderProcess

pytestmark = pytest.mark.trio

_READ_SETTINGS = """
line = b""
while not line.endswith(b"\\n"):
    line += os.read(0, 1)
"""


@pytest.fixture
def root() -> Iterator[int]:
    """The descriptor that it inherits."""
    descriptor = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has the given program started as the uploader."""
    path = tmp_path / "uploader"
    interpreter = sys.executable

    def install(program: str) -> None:
        path.write_text(f"#!{interpreter}\nimport json, os, signal, sys\n{program}")
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


def uploader(
    root: int,
    done: Callable[[Position], None] = lambda _: None,
    died: Callable[[], None] = lambda: None,
    failing: Callable[[Failing | None], None] = lambda _: None,
) -> UploaderProcess:
    settings = UploaderSettings("/mnt/datastore", "/state", root, "bucket", "name")
    return UploaderProcess(settings, done=done, died=died, failing=failing)


async def test_what_it_says_is_heard(stub: Callable[[str], None], root: int, tmp_path: Path) -> None:
    stub(
        _READ_SETTINGS
        + f"""
settings = json.loads(line)
os.fstat(settings["root_descriptor"])
print(json.dumps({{"event": "store", "state": "waiting", "reason": settings["bucket"]}}), flush=True)
os.read(0, 1)
print(json.dumps({{"event": "done", "generation": "g", "sequence": 7}}), flush=True)
while os.read(0, 4096):
    pass
open({str(tmp_path / "ended")!r}, "w").close()
"""
    )
    positions: list[Position] = []
    heard = trio.Event()

    def hear(position: Position) -> None:
        positions.append(position)
        heard.set()

    process = uploader(root, hear)
    process.wake()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await process.answered.wait()
            assert process.store_answer == StoreAnswer("waiting", "bucket")
            process.wake()
            await heard.wait()
            nursery.cancel_scope.cancel()
    assert positions == [Position("g", 7)]
    assert (tmp_path / "ended").exists(), "it was not let end by itself"


async def test_it_is_told_when_the_journal_has_caught_up_though_the_pipe_is_full_of_news(
    stub: Callable[[str], None], root: int, tmp_path: Path
) -> None:
    stub(
        _READ_SETTINGS
        + f"""
print(json.dumps({{"event": "catch-up", "number": 5}}), flush=True)
while not os.path.exists({str(tmp_path / "full")!r}):
    signal.sigtimedwait([], 0.01)
heard = b""
while b"caught-up 5\\n" not in heard:
    heard += os.read(0, 4096)
assert heard.strip(b"\\n") == b"caught-up 5", heard
print(json.dumps({{"event": "done", "generation": "g", "sequence": 5}}), flush=True)
while os.read(0, 4096):
    pass
"""
    )
    heard, asked, may_answer = trio.Event(), trio.Event(), trio.Event()

    async def catch_up() -> None:
        asked.set()
        await may_answer.wait()

    process = UploaderProcess(
        UploaderSettings("/mnt/datastore", "/state", root, "bucket", "name"),
        done=lambda _: heard.set(),
        died=lambda: None,
        catch_up=catch_up,
    )
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await asked.wait()
            for _ in range(100_000):
                process.wake()
            assert not heard.is_set()
            may_answer.set()
            await trio.testing.wait_all_tasks_blocked()
            (tmp_path / "full").touch()
            await heard.wait()
            nursery.cancel_scope.cancel()


async def test_deaths_are_forgotten_when_it_has_lived_for_long(
    stub: Callable[[str], None], root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = tmp_path / "lives"
    stub(f"""
with open({str(lives)!r}, 'a') as file:
    file.write('x')
if os.path.getsize({str(lives)!r}) <= 3:
    sys.exit(1)
while os.read(0, 4096):
    pass
""")
    monkeypatch.setattr(uploader_process, "WELL_AFTER", 2.0)
    told: list[Failing | None] = []
    forgotten = trio.Event()

    def hear(failing: Failing | None) -> None:
        told.append(failing)
        if len(told) == 4:
            forgotten.set()

    process = uploader(root, failing=hear)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await forgotten.wait()
            nursery.cancel_scope.cancel()
    assert [failing and failing.deaths for failing in told] == [None, None, 3, None]


@pytest.mark.parametrize("death", ["os.kill(os.getpid(), signal.SIGKILL)", "sys.exit(1)", "sys.exit(0)", "os.close(0)"])
async def test_it_is_started_again_with_a_growing_delay(
    stub: Callable[[str], None], root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, death: str
) -> None:
    stub(f"open({str(tmp_path / 'lives')!r}, 'a').write('x')\n{death}")
    deaths: list[int] = []
    told: list[Failing | None] = []
    process = uploader(root, died=lambda: deaths.append(1), failing=told.append)
    delays = await delays_of(process, 8, monkeypatch)
    assert delays == [1, 2, 4, 8, 16, 32, 60, 60]
    assert told[:2] == [None, None]
    assert [failing.deaths for failing in told if failing is not None] == [3, 4, 5, 6, 7, 8]
    assert len(deaths) == 8
    assert (tmp_path / "lives").read_text() == "x" * 8


async def test_removals_are_allowed_until_it_says_that_they_are_noted(
    stub: Callable[[str], None], root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed = tmp_path / "allowed"
    # The first ends before it has noted anything, the second when it has.
    stub(
        _READ_SETTINGS
        + f"""
with open({str(allowed)!r}, "a") as file:
    print(json.loads(line)["allow_removals"], file=file)
print(json.dumps({{"event": "store", "state": "ready", "reason": ""}}), flush=True)
if os.path.getsize({str(allowed)!r}) > len("True "):
    print(json.dumps({{"event": "removals-allowed"}}), flush=True)
"""
    )
    process = uploader(root)
    process.settings = replace(process.settings, allow_removals=True)
    await delays_of(process, 3, monkeypatch)
    assert allowed.read_text().split() == ["True", "True", "False"]


async def test_one_that_was_well_is_started_again_soon(
    stub: Callable[[str], None], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "WELL_AFTER", 0.0)
    stub("sys.exit(1)")
    assert await delays_of(uploader(root), 3, monkeypatch) == [1, 1, 1]


async def delays_of(process: UploaderProcess, number: int, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each of so many deaths is mourned."""
    delays: list[float] = []
    with trio.fail_after(30), trio.CancelScope() as scope:

        async def sleep(seconds: float) -> None:
            delays.append(seconds)
            if len(delays) == number:
                scope.cancel()
            await trio.lowlevel.checkpoint()

        with monkeypatch.context() as patch:
            patch.setattr(trio, "sleep", sleep)
            await process.keep_running()
    return delays


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOMEM, "no memory"), OSError(errno.EAGAIN, "later"), RuntimeError("can't start new thread")],
)
async def test_one_that_cannot_be_started_is_tried_again(
    root: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    async def fail(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr(trio.lowlevel, "open_process", fail)
    assert await delays_of(uploader(root), 3, monkeypatch) == [1, 2, 4]
    assert len(caplog.messages) == 3
    assert str(error) in caplog.text


async def test_a_python_that_is_just_being_upgraded_is_waited_for(
    root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "not there"))
    descriptors = len(os.listdir("/proc/self/fd"))
    assert await delays_of(uploader(root), 2, monkeypatch) == [1, 2]
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_no_descriptor_for_the_wake_ups_is_survived(
    stub: Callable[[str], None], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("while os.read(0, 4096):\n    pass")

    def fail(_: int) -> int:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "dup", fail)
    assert await delays_of(uploader(root), 2, monkeypatch) == [1, 2]


async def test_a_failure_to_clean_up_behind_it_is_survived(
    stub: Callable[[str], None], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise DatabaseError("the journal's disk is sick")

    stub("sys.exit(1)")
    assert await delays_of(uploader(root, died=fail), 2, monkeypatch) == [1, 2]


async def test_what_is_not_understood_is_ignored(stub: Callable[[str], None], root: int) -> None:
    stub(
        _READ_SETTINGS
        + """
for nonsense in (b"", b"a warning", b"\\xff\\xfe", b"[" * 30000, b"[]", b"7", b'{"event": "store"}',
                 b'{"event": "new"}', b'{"event": "done", "generation": "g", "sequence": "7"}'):
    os.write(1, nonsense + b"\\n")
print(json.dumps({"event": "store", "state": "ready", "reason": ""}), flush=True)
while os.read(0, 4096):
    pass
"""
    )
    positions: list[Position] = []
    process = uploader(root, positions.append)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await process.answered.wait()
            nursery.cancel_scope.cancel()
    assert process.store_answer == StoreAnswer("ready", "")
    assert positions == []


async def test_one_that_cannot_be_heard_any_more_is_replaced(
    stub: Callable[[str], None], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader_process, "_END_SECONDS", 0.05)
    stub("os.write(1, b'x' * 100_000)\nsignal.pause()")
    assert await delays_of(uploader(root), 2, monkeypatch) == [1, 2]


async def test_waking_one_that_does_not_listen_never_blocks(
    stub: Callable[[str], None], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader_process, "_END_SECONDS", 0.05)
    stub(
        _READ_SETTINGS
        + """
print(json.dumps({"event": "store", "state": "ready", "reason": ""}), flush=True)
signal.pause()
"""
    )
    process = uploader(root)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await process.answered.wait()
            for _ in range(100_000):
                process.wake()
            nursery.cancel_scope.cancel()
    # It is gone, although it never looked.
    process.wake()


async def test_a_wake_up_while_it_is_dead_is_no_error(
    stub: Callable[[str], None], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub("sys.exit(1)")
    process = uploader(root, died=lambda: process.wake())
    descriptors = len(os.listdir("/proc/self/fd"))
    await delays_of(process, 5, monkeypatch)
    assert len(os.listdir("/proc/self/fd")) == descriptors


async def test_it_does_not_get_the_terminals_interrupt(
    stub: Callable[[str], None], root: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(
        _READ_SETTINGS
        + """
state = "ready" if os.getsid(0) == os.getpid() else "refused"
print(json.dumps({"event": "store", "state": state, "reason": ""}), flush=True)
while os.read(0, 4096):
    pass
"""
    )
    process = uploader(root)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await process.answered.wait()
            nursery.cancel_scope.cancel()
    assert process.store_answer == StoreAnswer("ready", "")


async def test_one_that_works_no_more_is_replaced(
    stub: Callable[[str], None],
    root: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(watchdog, "ALIVE_SECONDS", 0.05)
    monkeypatch.setattr(restarts, "_FIRST_DELAY", 0.01)
    # The first says that it lives, and hangs; the next goes on.
    stub(
        _READ_SETTINGS
        + f"""
path = {str(tmp_path / "hung")!r}
if os.path.exists(path):
    print(json.dumps({{"event": "store", "state": "ready", "reason": ""}}), flush=True)
    while os.read(0, 4096):
        pass
open(path, "w").close()
print(json.dumps({{"event": "alive"}}), flush=True)
while True:
    signal.pause()
"""
    )
    process = uploader(root)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await process.answered.wait()
            nursery.cancel_scope.cancel()
    assert "does not work any more" in caplog.text
    assert "signal 9" in caplog.text
