"""While requests wait for a slow disk, whatever they are, all others are served as ever."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.filesystem.conftest import Mounter, PassThroughProcess
from tests.filesystem.slow_backing import HELD
from tests.filesystem.slow_backing_process import SlowBackingProcess
from tests.harness.fault_disk import FaultDisk

_ANSWER_SECONDS = 20
_AT_A_TIME = 3
_MEBIBYTE = 1 << 20


class _Kind:
    """One kind of operation that is stuck: what has to be there, and what is done."""

    def __init__(self, held: str, prepare: Callable[[Path], object], act: Callable[[Path, object], object]) -> None:
        self.held = held
        self.prepare = prepare
        self.act = act


def _nothing(directory: Path) -> None:
    """There need not be anything."""


def _file(directory: Path) -> None:
    (directory / "slow").write_bytes(bytes(5 * _MEBIBYTE))
    os.setxattr(directory / "slow", "user.a", b"1")


def _subdirectory(directory: Path) -> None:
    (directory / "slow").mkdir()


def _link(directory: Path) -> None:
    (directory / "slow").symlink_to("target")


def _opened(flags: int) -> Callable[[Path], int]:
    def prepare(directory: Path) -> int:
        _file(directory)
        return os.open(directory / "slow", flags)

    return prepare


def _closing(call: Callable[[int], object]) -> Callable[[Path, object], object]:
    def act(directory: Path, prepared: object) -> object:
        assert isinstance(prepared, int)
        try:
            return call(prepared)
        finally:
            os.close(prepared)

    return act


def _path(call: Callable[[Path], object]) -> Callable[[Path, object], object]:
    return lambda directory, _: call(directory / "slow")


_KINDS = {
    "missing": _Kind("lookup", _nothing, _path(os.path.exists)),
    "open": _Kind("open", _file, _path(lambda path: os.close(os.open(path, os.O_RDONLY)))),
    "chmod, name not in memory": _Kind("lookup", _file, _path(lambda path: path.chmod(0o600))),
    "read": _Kind("read", _opened(os.O_RDONLY), _closing(lambda file: os.pread(file, 10, 0))),
    "write": _Kind("write", _opened(os.O_RDWR), _closing(lambda file: os.pwrite(file, b"data", 0))),
    "fsync": _Kind("fsync", _opened(os.O_RDWR), _closing(os.fsync)),
    "flush": _Kind("flush", _opened(os.O_RDWR), _closing(lambda file: os.pwrite(file, b"data", 0))),
    "truncate": _Kind("setattr", _opened(os.O_RDWR), _closing(lambda file: os.ftruncate(file, 5))),
    "listing": _Kind("opendir", _subdirectory, _path(os.listdir)),
    "reading a directory": _Kind("readdir", _subdirectory, _path(os.listdir)),
    "create": _Kind("create", _nothing, _path(lambda path: path.write_bytes(b"data"))),
    "mkdir": _Kind("mkdir", _nothing, _path(lambda path: path.mkdir())),
    "mknod": _Kind("mknod", _nothing, _path(os.mkfifo)),
    "symlink": _Kind("symlink", _nothing, _path(lambda path: path.symlink_to("target"))),
    "readlink": _Kind("readlink", _link, _path(os.readlink)),
    "link": _Kind("link", _file, _path(lambda path: os.link(path, f"{path}-other"))),
    "unlink": _Kind("unlink", _file, _path(os.unlink)),
    "rmdir": _Kind("rmdir", _subdirectory, _path(os.rmdir)),
    "rename": _Kind("rename", _file, _path(lambda path: os.rename(path, f"{path}-other"))),
    "utimensat": _Kind("setattr", _file, _path(lambda path: os.utime(path, ns=(1, 2)))),
    "getxattr": _Kind("getxattr", _file, _path(lambda path: os.getxattr(path, "user.a"))),
    "setxattr": _Kind("setxattr", _file, _path(lambda path: os.setxattr(path, "user.a", b"2"))),
    "listxattr": _Kind("listxattr", _file, _path(os.listxattr)),
    "removexattr": _Kind("removexattr", _file, _path(lambda path: os.removexattr(path, "user.a"))),
    "statfs": _Kind("statfs", _nothing, _path(lambda path: os.statvfs(path.parent))),
}


class _Others:
    """What others do meanwhile: everything, in a directory of their own."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self._number = 0

    def round(self) -> None:
        self._number += 1
        path = self._directory / f"f{self._number}"
        temporary = path.with_suffix(".tmp")
        with open(temporary, "xb", buffering=0) as file:
            file.write(b"data")
            os.fsync(file.fileno())
        os.rename(temporary, path)
        assert path.read_bytes() == b"data"
        os.utime(path, ns=(1, 2))
        path.chmod(0o600)
        os.setxattr(path, "user.a", b"1")
        assert os.getxattr(path, "user.a") == b"1"
        subdirectory = self._directory / f"d{self._number}"
        subdirectory.mkdir()
        (subdirectory / "link").symlink_to("target")
        assert os.listdir(subdirectory) == ["link"]
        assert os.readlink(subdirectory / "link") == "target"
        os.unlink(subdirectory / "link")
        os.rmdir(subdirectory)
        os.truncate(path, 2)
        assert path.stat().st_size == 2
        if self._number % 2:
            os.unlink(path)

    def go_on(self) -> None:
        """All of it twice: a file that stays, and one that goes."""
        for _ in range(2):
            self.round()


@contextmanager
def _stuck(calls: Sequence[Callable[[], object]], free: Callable[[], None]) -> Iterator[list[Future[object]]]:
    """The calls, each in a thread; what holds them up is taken away at the end."""
    with ThreadPoolExecutor(max_workers=len(calls)) as executor:
        try:
            yield [executor.submit(call) for call in calls]
        finally:
            free()


def _calls_of(kind: _Kind, directory: Path) -> list[Callable[[], object]]:
    def call(name: str) -> Callable[[], object]:
        place = directory / name
        place.mkdir()
        prepared = kind.prepare(place)
        return lambda: kind.act(place, prepared)

    return [call(f"{directory.name}{number}") for number in range(_AT_A_TIME)]


def test_a_stuck_operation_holds_up_no_other(slow: tuple[PassThroughProcess, SlowBackingProcess]) -> None:
    """One kind after the other, in one mount."""
    mount, backing = slow
    others = _Others(mount.mountpoint / "others")
    others.go_on()
    for number, (name, kind) in enumerate(_KINDS.items()):
        directory = mount.mountpoint / f"stuck{number}"
        directory.mkdir()
        calls = _calls_of(kind, directory)
        backing.hold(kind.held)
        with _stuck(calls, backing.go) as stuck:
            backing.wait_until_held(len(calls))
            others.go_on()
            assert not any(future.done() for future in stuck), name
        for future in stuck:
            future.result()


def test_all_kinds_stuck_at_once(slow: tuple[PassThroughProcess, SlowBackingProcess]) -> None:
    mount, backing = slow
    calls = []
    for number, kind in enumerate(_KINDS.values()):
        directory = mount.mountpoint / f"stuck{number}"
        directory.mkdir()
        calls += _calls_of(kind, directory)
    others = _Others(mount.mountpoint / "others")
    others.go_on()
    backing.hold(*HELD)
    with _stuck(calls, backing.go) as stuck:
        # Across directories the kernel renames one at a time; here each stays in its own.
        backing.wait_until_held(len(calls))
        others.go_on()
        assert not any(future.done() for future in stuck)
        backing.hold()
    for future in stuck:
        future.result()


def test_very_many_stuck_on_one_file(slow: tuple[PassThroughProcess, SlowBackingProcess]) -> None:
    """More than there would be threads or requests for all, and what the kernel reads ahead besides."""
    mount, backing = slow
    path = mount.mountpoint / "slow"
    path.write_bytes(bytes(200 * 4096))
    descriptor = os.open(path, os.O_RDONLY)
    large = [mount.mountpoint / f"slow{number}" for number in range(4)]
    for file in large:
        file.write_bytes(bytes(16 * _MEBIBYTE))
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    others = _Others(mount.mountpoint / "others")
    others.go_on()
    backing.hold("read", "getxattr")
    calls: list[Callable[[], object]] = [
        *(lambda number=number: os.pread(descriptor, 1, number * 4096) for number in range(150)),
        *(lambda number=number: os.getxattr(path, f"user.{number}") for number in range(100)),
        *(file.read_bytes for file in large),
    ]
    with _stuck(calls, backing.go) as stuck:
        backing.wait_until_held(32)
        others.go_on()
        assert not any(future.done() for future in stuck)
        backing.hold()
    for future in stuck:
        assert future.exception() is None or isinstance(future.exception(), OSError)
    os.close(descriptor)


# On a real disk


@pytest.fixture
def disk(mounter: Mounter) -> Iterator[tuple[FaultDisk, PassThroughProcess]]:
    base = Path(tempfile.mkdtemp(prefix="slow-disk-test-"))
    disk = FaultDisk(base / "disk", size=256 * _MEBIBYTE)
    mount: PassThroughProcess | None = None
    try:
        disk.start()
        mount = mounter(base=disk.mountpoint)
        yield disk, mount
    finally:
        if mount is not None:
            disk.speed_up()
            mount.stop()
            for name in ("backing", "mountpoint"):
                shutil.rmtree(disk.mountpoint / name, ignore_errors=True)
        disk.stop()
        shutil.rmtree(base, ignore_errors=True)


def test_names_and_data_that_the_disk_is_slow_to_read(disk: tuple[FaultDisk, PassThroughProcess]) -> None:
    fault_disk, mount = disk
    cold = [mount.backing / f"cold{number}" for number in range(4)]
    for directory in cold:
        directory.mkdir()
        for number in range(200):
            (directory / f"f{number}").write_bytes(bytes(10_000))
    (mount.backing / "warm").mkdir()
    for number in range(200):
        (mount.backing / "warm" / f"f{number}").write_bytes(bytes(10_000))
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    warm = mount.mountpoint / "warm"
    for path in warm.iterdir():
        path.read_bytes()
    seen = [mount.mountpoint / path.name for path in cold]
    fault_disk.slow_down(30, writes=False)
    calls = [
        lambda: os.listdir(seen[0]),
        lambda: os.stat(seen[1] / "f7"),
        lambda: (seen[2] / "f7").read_bytes(),
        lambda: os.utime(seen[3] / "f7", ns=(1, 2)),
    ]
    with _stuck(calls, fault_disk.speed_up) as stuck:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while fault_disk.counters.delayed_requests == 0:
            assert time.monotonic() < deadline
        for number in range(200):
            path = warm / f"f{number}"
            assert path.stat().st_size == 10_000
            assert len(path.read_bytes()) == 10_000
            os.utime(path, ns=(number, number))
        assert len(os.listdir(warm)) == 200
        # What lies beside something that was read may have been read with it, but not all of this.
        assert not all(future.done() for future in stuck)
    for future in stuck:
        future.result()


def test_a_disk_that_is_slow_to_write(disk: tuple[FaultDisk, PassThroughProcess]) -> None:
    """When the journal stands still, changes have to wait; whoever only looks does not."""
    fault_disk, mount = disk
    for number in range(200):
        (mount.mountpoint / f"f{number}").write_bytes(bytes(10_000))
    os.sync()
    fault_disk.slow_down(30, reads=False)

    def synchronize() -> None:
        with open(mount.mountpoint / "synchronized", "wb", buffering=0) as file:
            file.write(b"data")
            os.fsync(file.fileno())

    changes = [lambda number=number: os.utime(mount.mountpoint / f"f{number}", ns=(1, 2)) for number in range(40)]
    with _stuck([synchronize, *changes], fault_disk.speed_up) as stuck:
        deadline = time.monotonic() + _ANSWER_SECONDS
        while fault_disk.counters.delayed_requests == 0:
            assert time.monotonic() < deadline
        for number in range(40, 200):
            path = mount.mountpoint / f"f{number}"
            assert path.stat().st_size == 10_000
            assert len(path.read_bytes()) == 10_000
        assert len(os.listdir(mount.mountpoint)) == 201
        assert not stuck[0].done()
    for future in stuck:
        future.result()
