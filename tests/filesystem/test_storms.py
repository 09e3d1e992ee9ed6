"""Many processes at the same names at the same time: errors as on the backing file system, and nothing left over."""

import errno
import multiprocessing
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.filesystem.conftest import Mounter, PassThroughProcess
from tests.filesystem.slow_backing_process import SlowBackingProcess

_PROCESSES = 6
_STORM_SECONDS = 4.0
_FILES = [f"slow-{letter}" for letter in "abcdef"]
_DIRECTORIES = [f"slow-{letter}" for letter in "xyz"]
# What these calls give anywhere when others do the same; no ESTALE, EIO, EBADF.
_ALLOWED = {
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTEMPTY,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EINVAL,
    errno.ENODATA,
    errno.EBUSY,
}


def _write_and_rename(top: Path, name: Callable[[], Path]) -> None:
    temporary = top / f"tmp-{os.getpid()}"
    temporary.write_bytes(b"data")
    os.rename(temporary, name())


def _read(path: Path) -> None:
    with path.open("rb") as file:
        # Of a file that is truncated while it is read, the kernel may show zeros up to the size that it knew.
        assert file.read().rstrip(b"\0") in (b"", b"data")
        os.fstat(file.fileno())


def _list(path: Path) -> None:
    names = os.listdir(path)
    assert len(names) == len(set(names))


def _unlink_while_open(path: Path) -> None:
    with path.open("r+b") as file:
        path.unlink()
        # The name may have been another file's by then, and others may do to this one what they like.
        file.write(b"data")
        os.fchmod(file.fileno(), 0o600)
        os.fstat(file.fileno())


def _storm(top: str, seed: int, seconds: float, unexpected: "multiprocessing.SimpleQueue[str]") -> None:
    source = random.Random(seed)
    base = Path(top)

    def file() -> Path:
        return base / source.choice([*_DIRECTORIES, "."]) / source.choice(_FILES)

    def directory() -> Path:
        return base / source.choice([".", *_DIRECTORIES]) / source.choice(_DIRECTORIES)

    calls: list[tuple[str, Callable[[], object]]] = [
        ("rename", lambda: os.rename(file(), file())),
        ("replace", lambda: _write_and_rename(base, file)),
        ("stat", lambda: os.stat(file())),
        ("read", lambda: _read(file())),
        ("unlink", lambda: os.unlink(file())),
        ("unlink open", lambda: _unlink_while_open(file())),
        ("link", lambda: os.link(file(), file())),
        ("list", lambda: _list(directory())),
        ("mkdir", lambda: os.mkdir(directory())),
        ("rmdir", lambda: os.rmdir(directory())),
        ("move directory", lambda: os.rename(directory(), directory())),
        ("utime", lambda: os.utime(file(), ns=(source.randrange(1 << 30), 1))),
        ("chmod", lambda: os.chmod(file(), source.choice((0o600, 0o644)))),
        ("truncate", lambda: os.truncate(file(), 0)),
        ("getxattr", lambda: os.getxattr(file(), "user.a")),
    ]
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        name, call = source.choice(calls)
        try:
            call()
        except OSError as error:
            if error.errno not in _ALLOWED:
                unexpected.put(f"{name}: {error!r}")
        except AssertionError as error:
            unexpected.put(f"{name}: {error!r}")


def _tree(top: Path) -> dict[str, tuple[object, ...]]:
    found: dict[str, tuple[object, ...]] = {}
    for directory, directories, files in os.walk(top):
        for name in (*directories, *files):
            path = Path(directory, name)
            status = path.lstat()
            content = path.read_bytes() if name in files else b""
            # That of a mount over a mount counts by itself.
            found[str(path.relative_to(top))] = (status.st_mode, status.st_mtime_ns, content)
    return found


def _ride_out(mount: PassThroughProcess, seed: int) -> None:
    context = multiprocessing.get_context("spawn")
    unexpected: multiprocessing.SimpleQueue[str] = context.SimpleQueue()
    processes = [
        context.Process(target=_storm, args=(str(mount.mountpoint), seed + number, _STORM_SECONDS, unexpected))
        for number in range(_PROCESSES)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    errors = []
    while not unexpected.empty():
        errors.append(unexpected.get())
    assert not errors
    assert _tree(mount.mountpoint) == _tree(mount.backing)


def _wait_until_nothing_is_held(mount: PassThroughProcess) -> None:
    for name in os.listdir(mount.mountpoint):
        path = mount.mountpoint / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    nothing = {"inodes": 1, "files": 0, "directories": 0, "descriptors": 0}
    deadline = time.monotonic() + 15
    while mount.statistics() != nothing:
        assert time.monotonic() < deadline, mount.statistics()
        Path("/proc/sys/vm/drop_caches").write_text("2")


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.long)])
def test_on_a_disk(seed: int, memory_base: Path, mounter: Mounter) -> None:
    mount = mounter(base=memory_base)
    _ride_out(mount, seed)
    _wait_until_nothing_is_held(mount)


@pytest.mark.parametrize("seed", [3, pytest.param(4, marks=pytest.mark.long)])
def test_where_everything_takes_its_time(seed: int, slow: tuple[PassThroughProcess, SlowBackingProcess]) -> None:
    """Each operation takes its own random time, so they overtake one another as they never do on a quick disk."""
    mount, backing = slow
    backing.delay(0.003)
    _ride_out(mount, seed)
    backing.delay(0)
    _wait_until_nothing_is_held(mount)
