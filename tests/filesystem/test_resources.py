"""What the daemon holds: no descriptor per known inode, and memory only for what the kernel knows."""

import errno
import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from tests.filesystem.conftest import Mounter, PassThroughProcess
from tests.filesystem.limits import limited

_FOLDERS = 65_536


def _wait_until_known(mount: PassThroughProcess, most: int) -> None:
    deadline = time.monotonic() + 60
    while mount.statistics()["inodes"] > most:
        assert time.monotonic() < deadline, mount.statistics()
        Path("/proc/sys/vm/drop_caches").write_text("2")


def test_chunk_folders(memory_base: Path, mounter: Mounter) -> None:
    """All 65,536 chunk folders known at once, under a limit of 1024 descriptors, and forgotten again."""
    mount = mounter(base=memory_base, prepare=limited(1024))
    chunks = mount.backing / ".chunks"
    chunks.mkdir()
    parent = os.open(chunks, os.O_RDONLY)
    for number in range(_FOLDERS):
        os.mkdir(f"{number:04x}", 0o750, dir_fd=parent)
    os.close(parent)
    mounted = mount.mountpoint / ".chunks"
    before = _memory(mount.pid)
    # A kernel that is short of memory may forget some meanwhile.
    for _ in range(5):
        listed = os.listdir(mounted)
        assert len(listed) == _FOLDERS
        if mount.statistics()["inodes"] > _FOLDERS * 0.9:
            break
    else:
        raise AssertionError(mount.statistics())
    for name in listed[::16]:
        assert os.listdir(mounted / name) == []
    statistics = mount.statistics()
    assert statistics["descriptors"] < 600
    assert len(os.listdir(f"/proc/{mount.pid}/fd")) < 700
    # The list of names and the kernel's own share not counted, some 250 bytes an inode.
    assert _memory(mount.pid) - before < _FOLDERS * 500
    for number in range(0, _FOLDERS, 97):
        (mounted / f"{number:04x}" / "chunk").write_bytes(b"data")
        os.utime(mounted / f"{number:04x}" / "chunk", ns=(1, 2))
    for number in range(0, _FOLDERS, 97):
        assert (chunks / f"{number:04x}" / "chunk").stat().st_atime_ns == 1
    _wait_until_known(mount, 10)
    assert mount.statistics()["descriptors"] < 10


def test_unlinked_files_are_let_go(memory_base: Path, mounter: Mounter) -> None:
    mount = mounter(base=memory_base, prepare=limited(1024))
    for number in range(1500):
        (mount.mountpoint / f"f{number}").write_bytes(b"data")
    for number in range(1500):
        if number % 3 == 0:
            os.rename(mount.mountpoint / f"f{number}", mount.mountpoint / "replaced")
        else:
            os.unlink(mount.mountpoint / f"f{number}")
    os.unlink(mount.mountpoint / "replaced")
    _wait_until_known(mount, 1)
    assert mount.statistics() == {"inodes": 1, "files": 0, "directories": 0, "descriptors": 0}
    assert os.listdir(mount.backing) == []
    open_files = [os.readlink(f"/proc/{mount.pid}/fd/{number}") for number in _descriptors(mount.pid)]
    assert not [path for path in open_files if path.startswith(str(mount.backing)) and "deleted" in path]


def test_more_unlinked_files_than_descriptors(memory_base: Path, mounter: Mounter) -> None:
    """Out of descriptors, what is unlinked and open goes on working, and new files are not mixed up with it."""
    mount = mounter(base=memory_base, prepare=limited(1024))
    files = []
    try:
        for number in range(450):
            path = mount.mountpoint / f"f{number}"
            files.append(open(path, "w+b", buffering=0))  # noqa: SIM115
            files[-1].write(b"%d" % number)
        for number in range(450):
            os.unlink(mount.mountpoint / f"f{number}")
        for number, file in enumerate(files):
            assert os.fstat(file.fileno()).st_nlink == 0
            assert os.pread(file.fileno(), 10, 0) == b"%d" % number
        (mount.mountpoint / "new").write_bytes(b"new")
        assert (mount.mountpoint / "new").read_bytes() == b"new"
    finally:
        for file in files:
            file.close()


def _memory(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _descriptors(pid: int) -> list[str]:
    listing = f"/proc/{pid}/fd"
    return [name for name in os.listdir(listing) if os.path.lexists(f"{listing}/{name}")]


@contextmanager
def _no_descriptor_left(pid: int, most: int | None = None) -> Iterator[None]:
    """So that the daemon gets none with a number of `most` or above; by default, it has all of those below."""
    held = {int(number) for number in _descriptors(pid)}
    limit = next(number for number in count() if number not in held) if most is None else most
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def _use(folder: Path) -> None:
    (folder / "new").write_bytes(b"data")
    assert (folder / "new").read_bytes() == b"data"
    os.setxattr(folder / "new", "user.a", b"b")
    os.rename(folder / "new", folder / "renamed")
    (folder / "directory").mkdir()
    assert set(os.listdir(folder)) == {"file", "renamed", "directory"}
    os.truncate(folder / "renamed", 1)
    os.unlink(folder / "renamed")
    os.rmdir(folder / "directory")


def _look_at_all(folders: list[Path], name: str, mount: PassThroughProcess) -> None:
    """Until each is held open; the kernel may forget some of them again when others want memory."""
    for _ in range(100):
        for known in folders:
            assert (known / "file").stat().st_size == 4
            assert not (known / f"absent {name}").exists()
        if mount.statistics()["descriptors"] >= len(folders):
            return
    pytest.fail("the kernel forgets folders at once")


def test_without_a_descriptor_left_caches_are_dropped(mounter: Mounter) -> None:
    mount = mounter()
    folders = [mount.mountpoint / f"folder{number}" for number in range(30)]
    for folder in folders:
        folder.mkdir()
        (folder / "file").write_bytes(b"data")
    for folder in folders:
        _look_at_all(folders, folder.name, mount)
        with _no_descriptor_left(mount.pid):
            _use(folder)


def test_close_never_lacks_a_descriptor(mounter: Mounter) -> None:
    mount = mounter()
    opened = os.open(mount.mountpoint / "file", os.O_WRONLY | os.O_CREAT)
    os.write(opened, b"data")
    again = os.dup(opened)
    with _no_descriptor_left(mount.pid, 3):
        with pytest.raises(OSError, match=os.strerror(errno.EMFILE)):
            os.open(mount.mountpoint, os.O_RDONLY)
        os.close(again)
        os.close(opened)
    assert (mount.mountpoint / "file").read_bytes() == b"data"
