"""The notifier as the mount sees it, played by a stub: there when it is to be, and told what holds."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs import interpreter
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.supervision import notifier_process
from mirrorfs.supervision.notifier_process import NotifierProcess
from mirrorfs.supervision.settings import MountSettings, NotifySettings

pytestmark = pytest.mark.trio

MAIL = NotifySettings(mail="root")


def _settings(notify: NotifySettings = MAIL) -> MountSettings:
    return MountSettings("/srv/a", UploaderSettings("/srv/a", "/state", -1, "b", "n"), notify=notify)


class Heard:
    """The lines that the stub gets, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[str]:
        """Those until now."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    async def until(self, number: int) -> list[str]:
        """Return the lines when there are so many."""
        with trio.fail_after(30):
            await trio.to_thread.run_sync(self._wait, number, abandon_on_cancel=True)
        return self.lines

    def _wait(self, number: int) -> None:
        while len(self.lines) < number:
            time.sleep(0.02)


@pytest.fixture
def heard(tmp_path: Path) -> Heard:
    """What the stub gets."""
    return Heard(tmp_path / "heard")


@pytest.fixture
def stub(tmp_path: Path, heard: Heard, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Has a stub started as the notifier, which does something after its first line."""
    path = tmp_path / "notifier"
    interpreter = sys.executable

    def install(then: str) -> None:
        path.write_text(
            f"#!{interpreter}\nimport os, signal, sys\n"
            f"for line in sys.stdin:\n"
            f"    with open({str(heard.path)!r}, 'a') as file:\n        file.write(line)\n"
            f"    {then}\n"
        )
        path.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(path))

    return install


async def test_it_is_told_the_settings_and_at_last_that_the_mount_ends_in_order(
    stub: Callable[[str], None], heard: Heard
) -> None:
    stub("pass")
    process = NotifierProcess(_settings())
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            (line,) = await heard.until(1)
            assert MountSettings.decode(line.encode()) == _settings()
            nursery.cancel_scope.cancel()
    assert heard.lines[1:] == ["end"]


async def test_there_is_none_while_nobody_is_to_be_told(stub: Callable[[str], None], heard: Heard) -> None:
    stub("pass")
    process = NotifierProcess(_settings(NotifySettings()))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await trio.testing.wait_all_tasks_blocked()
            assert heard.lines == []
            process.take(MAIL)
            await heard.until(1)
            process.take(MAIL)
            process.take(replace(MAIL, after=5.0))
            lines = await heard.until(3)
            process.take(NotifySettings())
            await heard.until(4)
            nursery.cancel_scope.cancel()
    assert [json.loads(line)["notify"]["after"] for line in (lines[0], lines[2])] == [120.0, 5.0]
    assert heard.lines[1::2] == ["end", "end"]


async def test_one_that_dies_is_started_again_and_one_that_hangs_is_killed(
    stub: Callable[[str], None], heard: Heard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(notifier_process, "_END_SECONDS", 0.1)
    stub("sys.exit(3) if open(file.name).read().count('\\n') == 1 else signal.pause()")
    process = NotifierProcess(_settings())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            await heard.until(2)
            nursery.cancel_scope.cancel()
    assert "the notifier ended unexpectedly (exit code 3); starting it again in 1 s" in caplog.text


async def test_one_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "not there"))
    async with trio.open_nursery() as nursery:
        slept: list[float] = []

        async def sleep(seconds: float) -> None:
            slept.append(seconds)
            if len(slept) == 3:
                nursery.cancel_scope.cancel()
            await trio.lowlevel.checkpoint()

        monkeypatch.setattr(trio, "sleep", sleep)
        nursery.start_soon(NotifierProcess(_settings()).keep_running)
    assert slept == [1, 2, 4]
    assert "the notifier could not be run" in caplog.text


async def test_what_was_told_is_forgotten_when_nobody_is_told_any_more(tmp_path: Path) -> None:
    told = tmp_path / "mirrorfs.told"
    told.write_text('{"mail root": ["broken"]}')
    uploader = UploaderSettings("/srv/a", str(tmp_path), -1, "b", "n")
    process = NotifierProcess(MountSettings("/srv/a", uploader, notify=NotifySettings()))
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(process.keep_running)
            while told.exists():
                await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


@pytest.fixture
def private(tmp_path: Path) -> Path:
    """A state directory, nobody else's."""
    tmp_path.chmod(0o700)
    return tmp_path


async def test_an_end_that_follows_the_settings_at_once_is_heard(private: Path) -> None:
    uploader = UploaderSettings("/srv/a", str(private), -1, "b", "n")
    given = MountSettings("/srv/a", uploader, notify=MAIL).encode() + b"\n" + notifier_process.END + b"\n"
    command = interpreter.command("mirrorfs.notification")
    # Open for as long as it runs: it must end by the line, not by the end of the stream.
    process = await trio.lowlevel.open_process(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=interpreter.environment()
    )
    assert process.stdin is not None
    try:
        await process.stdin.send_all(given)
        with trio.fail_after(60):
            assert await process.wait() == 0
    finally:
        process.kill()
        await process.wait()
        await process.stdin.aclose()
        if process.stderr is not None:
            await process.stderr.aclose()
