"""The event loop runs whatever becomes of those who ask: also when they are gone before they are heard."""

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.filesystem.mount_table import detach, is_mounted

_ANSWER_SECONDS = 20
_ROOT = Path(__file__).resolve().parents[2]


class _StoppingProcess:
    """The process of tests.filesystem.stopping."""

    def __init__(self, backing: Path, mountpoint: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.filesystem.stopping", str(backing), str(mountpoint)],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._mountpoint = mountpoint

    def line(self) -> bytes | None:
        """The next line that it writes, None if there is none in a time in which there ought to be."""
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], _ANSWER_SECONDS)
        return self._process.stdout.readline() if readable else None

    def say(self, line: bytes) -> bytes | None:
        assert self._process.stdin is not None
        self._process.stdin.write(line)
        return self.line()

    def wait_until_stopped(self) -> None:
        assert os.waitid(os.P_PID, self._process.pid, os.WSTOPPED) is not None

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait(_ANSWER_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        if is_mounted(str(self._mountpoint)):
            detach(str(self._mountpoint))


@pytest.fixture
def stopping(tmp_path: Path) -> Iterator[_StoppingProcess]:
    for name in ("backing", "mountpoint"):
        (tmp_path / name).mkdir()
    process = _StoppingProcess(tmp_path / "backing", tmp_path / "mountpoint")
    try:
        assert process.line() == b"mounted\n"
        yield process
    finally:
        process.stop()


def test_a_request_that_is_gone_before_it_is_read(stopping: _StoppingProcess, tmp_path: Path) -> None:
    """The event loop, told that there is a request, does not wait for one if who asked was killed meanwhile."""
    for number in range(3):
        assert stopping.say(b"stop\n") == b"stop\n"
        asking = subprocess.Popen(["stat", str(tmp_path / "mountpoint" / f"absent{number}")], stderr=subprocess.DEVNULL)
        stopping.wait_until_stopped()
        asking.kill()
        asking.wait(_ANSWER_SECONDS)
        stopping.go_on()
        assert stopping.say(b"hello\n") == b"hello\n"
