"""A daemon that cannot have more descriptors than a test wants it to have, and users who take what they can get."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

_PR_CAPBSET_DROP = 24
_CAP_SYS_RESOURCE = 24
# Any interpreter that another user may run: the one of the tests may lie where only root may go.
_PYTHON = os.path.realpath(sys.executable)

_GRABBER = """
import errno, json, os, resource, sys
directory, kind, most = sys.argv[1], sys.argv[2], int(sys.argv[3])
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
me = os.getuid()
held, refused = [], None
def grab(number):
    path = os.path.join(directory, f"{kind}-{me}-{number}")
    if kind == "created":
        held.append(os.open(path, os.O_CREAT | os.O_RDWR, 0o644))
    elif kind == "opened":
        held.append(os.open(os.path.join(directory, "shared"), os.O_RDONLY))
    elif kind == "listed":
        held.append(os.open(directory, os.O_RDONLY | os.O_DIRECTORY))
        if number < 50:
            os.listdir(held[-1])
    elif kind == "unlinked":
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o644))
        held.append(os.open(path, os.O_PATH))
        os.unlink(path)
for number in range(most):
    try:
        grab(number)
    except OSError as error:
        refused = errno.errorcode[error.errno]
        break
print(json.dumps({"held": len(held), "refused": refused}), flush=True)
sys.stdin.read()
"""


def limited(number: int) -> Callable[[], None]:
    """To be run before the daemon: its limit of descriptors, which it cannot raise."""

    def prepare() -> None:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_SYS_RESOURCE, 0, 0, 0)
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, number))

    return prepare


class Grabber:
    """A process of another user that opens as much as it can, up to `most`, and holds it while this is entered."""

    def __init__(self, directory: Path, kind: str, uid: int, most: int = 4000) -> None:
        self._process = subprocess.Popen(
            [_PYTHON, "-I", "-S", "-c", _GRABBER, str(directory), kind, str(most)],
            user=uid,
            group=uid,
            extra_groups=[],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"the process of user {uid} ended: {self._process.wait()}"
        answer: dict[str, Any] = json.loads(line)
        self.held: int = answer["held"]
        self.refused: str | None = answer["refused"]

    def __enter__(self) -> Grabber:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdout is not None
        self._process.communicate()
