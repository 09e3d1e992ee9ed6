"""The memory of the daemon does not grow with what it has done."""

import os
import resource
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from statistics import median

import pytest

from tests.arenas import arenas
from tests.filesystem.conftest import Mounter, PassThroughProcess

_USERS = 16
_MEBIBYTE = 1 << 20
_FILE_SIZE = 2 * _MEBIBYTE


def _forget(path: Path) -> None:
    """Takes a file out of the kernel's memory."""
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _use(mount: PassThroughProcess, data: bytes, turn: int, user: int) -> None:
    """Makes, lists and removes files of different lengths, and reads what is not in memory."""
    folder = mount.mountpoint / f"folder{user}"
    for number in range(10):
        (folder / f"new{number}").write_bytes(data[: (number * 7919 * (turn + 1)) % 300_000])
    assert len(os.listdir(folder)) == 11
    for base in (mount.backing, mount.mountpoint):
        _forget(base / folder.name / "file")
    assert (folder / "file").read_bytes() == data
    for number in range(10):
        os.unlink(folder / f"new{number}")


def _resident(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def _run(mount: PassThroughProcess, rounds: int) -> list[int]:
    """What the daemon has in memory after each round."""
    data = os.urandom(_FILE_SIZE)
    for user in range(_USERS):
        (mount.mountpoint / f"folder{user}").mkdir()
        (mount.mountpoint / f"folder{user}" / "file").write_bytes(data)
    # What is not on the disk yet stays in memory.
    os.sync()
    resident = []
    with ThreadPoolExecutor(_USERS) as users:
        for turn in range(rounds):
            list(users.map(partial(_use, mount, data, turn), range(_USERS)))
            resident.append(_resident(mount.pid))
    return resident


def test_threads_share_their_memory(mounter: Mounter) -> None:
    mount = mounter()
    _run(mount, 4)
    assert arenas(mount.pid) == 0


@pytest.mark.long
def test_memory_stays_the_same(mounter: Mounter) -> None:
    mount = mounter()
    resident = _run(mount, 100)
    # Not the most: that depends on how many reads were under way at once.
    growth = median(resident[-20:]) - median(resident[:20])
    assert growth < 4 * _MEBIBYTE, [number >> 20 for number in resident]
