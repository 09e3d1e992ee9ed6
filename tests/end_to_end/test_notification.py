"""A mirror tells by itself that it is broken, and well again: once each, also over restarts."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.mirror import Mirror


@pytest.fixture
def arguments(mirror: MirrorUnderTest) -> list[str]:
    """The options of a mount that tells into a file, as soon as it sees something."""
    program = mirror.base / "tell"
    program.write_text(f"#!/bin/sh\ngrep SigBlk /proc/self/status >{mirror.base}/signals\ncat >>{mirror.base}/told\n")
    program.chmod(0o755)
    return ["--notify-command", str(program), "--notify-after", "0"]


def _told(mirror: MirrorUnderTest) -> list[str]:
    path = mirror.base / "told"
    return [json.loads(line)["event"] for line in path.read_text().splitlines()] if path.exists() else []


def _until(is_so: Callable[[], bool], mirror: MirrorUnderTest, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, mirror.log[-4000:]
        time.sleep(0.05)


def test_what_breaks_is_told_once_and_so_is_its_end(mirror: MirrorUnderTest, arguments: list[str]) -> None:
    mirror.mount(*arguments)
    with mirror.writer() as writer:
        writer.backup("vm/100")
    mirror.wait()
    chunk = next(path for path in sorted((mirror.datastore / ".chunks").glob("*/*")) if path.is_file())
    good = chunk.read_bytes()
    # Sick from the start, so that it cannot be sent.
    sick = chunk.parent / f"{chunk.parent.name}{'0' * 60}"
    sick.write_bytes(b"no chunk")
    _until(lambda: _told(mirror) == ["broken"], mirror)
    # A mailer may count on its alarms, which the mount has blocked.
    assert (mirror.base / "signals").read_text().split() == ["SigBlk:", "0" * 16]
    told_file = Path(mirror.state) / "mirrorfs.told"
    _until(lambda: told_file.exists() and "broken" in told_file.read_text(), mirror)
    assert told_file.stat().st_mode & 0o777 == 0o600
    mirror.umount()
    assert (Path(mirror.state) / "notifier.lock").read_text() == "", "it has not ended in order"
    mirror.mount(*arguments)
    mirror.run("wait", str(mirror.datastore))
    assert mirror.status()["word"] == "broken"
    sick.unlink()
    _until(lambda: _told(mirror) == ["broken", "recovered"], mirror)
    assert chunk.read_bytes() == good


def test_an_uploader_that_keeps_dying_is_told(mirror: MirrorUnderTest, arguments: list[str]) -> None:
    mirror.mount(*arguments)
    known: set[int] = set()

    def kill_and_look() -> bool:
        pid = Mirror.uploader_pid(mirror)
        if pid is not None and pid not in known:
            known.add(pid)
            mirror.kill_uploader()
        return bool(_told(mirror))

    _until(kill_and_look, mirror)
    assert _told(mirror) == ["broken"]
    assert "times in a row" in (mirror.base / "told").read_text()


@pytest.mark.long
def test_an_uploader_that_hangs_is_told_before_the_mount_ends_it(mirror: MirrorUnderTest, arguments: list[str]) -> None:
    """Takes as long as an uploader is to be silent: two and a half minutes."""
    mirror.mount(*arguments)
    pid = mirror.uploader_pid()
    os.kill(pid, signal.SIGSTOP)
    try:
        _until(lambda: _told(mirror) == ["broken"], mirror, seconds=280)
        assert mirror.uploader_pid() == pid
        assert "has not answered within" in (mirror.base / "told").read_text()
    finally:
        os.kill(pid, signal.SIGCONT)
    _until(lambda: _told(mirror) == ["broken", "recovered"], mirror)


def test_a_filesystem_process_that_is_killed_is_told(mirror: MirrorUnderTest, arguments: list[str]) -> None:
    mirror.mount(*arguments)
    os.kill(mirror.mount_pid(), signal.SIGKILL)
    _until(lambda: _told(mirror) == ["broken"], mirror)
    assert "was killed: mount it again" in (mirror.base / "told").read_text()
    mirror.mount(*arguments)
    _until(lambda: _told(mirror) == ["broken", "recovered"], mirror)


def test_what_happens_can_be_read_afterwards(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        published = writer.backup("vm/100")
        removed = writer.backup("vm/100")
        mirror.wait()
        writer.forget(removed.name)
    mirror.wait()
    mirror.kill_uploader()
    mirror.wait()
    mirror.umount()
    of_it = (str(mirror.datastore), "--state-dir", str(mirror.state))
    events = [json.loads(line) for line in mirror.succeed("log", *of_it, "--json").splitlines()]
    told = [(event["event"], event.get("snapshot")) for event in events]
    assert told[0] == ("mounted", None)
    assert told[-1] == ("unmounted", None)
    assert ("published", published.path) in told
    assert told.index(("published", removed.path)) < told.index(("removed", removed.path))
    assert ("uploader-restarted", None) in told
    lines = mirror.succeed("log", *of_it, "--since", "1h").splitlines()
    assert len(lines) == len(events)
