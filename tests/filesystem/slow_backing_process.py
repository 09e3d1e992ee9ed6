"""The process of tests.filesystem.slow_backing, from outside."""

import queue
import subprocess
import sys
import threading
from pathlib import Path

from mirrorfs.filesystem.mount_table import detach, mount_at

_ANSWER_SECONDS = 20


class SlowBackingProcess:
    """The file system of tests.filesystem.slow_backing, mounted."""

    def __init__(self, directory: Path, mountpoint: Path) -> None:
        self._mountpoint = mountpoint
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.filesystem.slow_backing", str(directory), str(mountpoint)],
            # Other tests leave the working directory elsewhere.
            cwd=Path(__file__).resolve().parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_mounted(self) -> None:
        assert self._line() == "mounted"

    def hold(self, *operations: str) -> None:
        self._command("hold", *operations)

    def delay(self, seconds: float) -> None:
        self._command("delay", str(seconds))

    def go(self) -> None:
        self._command("go")

    def is_full(self) -> bool:
        return "full" in self._command("traffic")

    def wait_until_held(self, count: int) -> None:
        for _ in range(count):
            assert self._line().startswith("held ")

    def stop(self) -> None:
        # Nothing that waits for it may survive, whatever state it is in.
        self._process.kill()
        self._process.wait(_ANSWER_SECONDS)
        self._reader.join(_ANSWER_SECONDS)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        if mount_at(str(self._mountpoint)) is not None:
            detach(str(self._mountpoint))

    def _command(self, *words: str) -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        said = []
        while (line := self._line()) != "obeyed":
            # What was held meanwhile is known to be.
            said.append(line)
        return said

    def _line(self) -> str:
        line = self._lines.get(timeout=_ANSWER_SECONDS)
        assert line, "the slow file system has ended"
        return line

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.rstrip("\n"))
        self._lines.put("")
