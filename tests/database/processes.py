"""Child processes for tests of what one process sees of another's database."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

_READER = """
import json, sys
from mirrorfs.journal.journal import JournalReader, Position
reader = JournalReader(sys.argv[1])
print(json.dumps(reader.generation), flush=True)
for line in sys.stdin:
    command, *arguments = json.loads(line)
    if command == "read":
        answer = [[record.sequence, record.path.hex()] for record in reader.read(*arguments)]
    elif command == "pending":
        answer = reader.pending(Position(*arguments))
    else:
        answer = reader.last_sequence()
    print(json.dumps(answer), flush=True)
"""


class ReaderProcess:
    """A JournalReader in a process of its own, as the uploader is."""

    def __init__(self, directory: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.generation = cast(str, self._answer())

    def ask(self, command: str, *arguments: object) -> int:
        """pending or last_sequence"""
        return cast(int, self._ask(command, *arguments))

    def _ask(self, command: str, *arguments: object) -> object:
        assert self._process.stdin is not None
        print(json.dumps([command, *arguments]), file=self._process.stdin, flush=True)
        return self._answer()

    def read(self, after: int = 0, maximum: int = 1_000_000) -> list[tuple[int, bytes]]:
        records = cast("list[tuple[int, str]]", self._ask("read", after, maximum))
        return [(sequence, bytes.fromhex(path)) for sequence, path in records]

    def _answer(self) -> object:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


@contextmanager
def reader_of(directory: Path) -> Iterator[ReaderProcess]:
    reader = ReaderProcess(directory)
    try:
        yield reader
    finally:
        reader.close()


def run_and_kill(program: str, *arguments: object) -> None:
    """Run a Python program that is to end itself with SIGKILL."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert finished.returncode == -9, finished.stderr
