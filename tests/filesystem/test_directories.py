"""Listings that stand changes, long paths, odd names."""

import ctypes
import errno
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.filesystem.conftest import Mounter, PassThroughProcess
from tests.filesystem.posix_calls import check

# Many times what one call of getdents gives.
_MANY = 40_000

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.opendir.argtypes = (ctypes.c_char_p,)
_libc.telldir.argtypes = (ctypes.c_void_p,)
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = (ctypes.c_void_p, ctypes.c_long)
_libc.rewinddir.argtypes = (ctypes.c_void_p,)
_libc.closedir.argtypes = (ctypes.c_void_p,)


class _DirectoryEntry(ctypes.Structure):
    _fields_ = (
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_ushort),
        ("d_type", ctypes.c_ubyte),
        ("d_name", ctypes.c_char * 256),
    )


_libc.readdir.argtypes = (ctypes.c_void_p,)
_libc.readdir.restype = ctypes.POINTER(_DirectoryEntry)


class _Stream:
    """opendir(3) and its relatives."""

    def __init__(self, path: bytes) -> None:
        self._stream = _libc.opendir(path)
        assert self._stream

    def read(self) -> tuple[bytes, int, int] | None:
        entry = _libc.readdir(self._stream)
        return (entry.contents.d_name, entry.contents.d_ino, entry.contents.d_type) if entry else None

    def rest(self) -> list[bytes]:
        names = []
        while (entry := self.read()) is not None:
            names.append(entry[0])
        return names

    def tell(self) -> int:
        return int(_libc.telldir(self._stream))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._stream, position)

    def rewind(self) -> None:
        _libc.rewinddir(self._stream)

    def close(self) -> None:
        _libc.closedir(self._stream)


def test_entries(area: Path) -> None:
    os.mkdir("d")
    os.mkdir("d/directory")
    Path("d/file").touch()
    os.symlink("x", "d/link")
    os.mkfifo("d/fifo")
    stream = _Stream(b"d")
    entries = {}
    while (entry := stream.read()) is not None:
        entries[entry[0]] = entry[1:]
    stream.close()
    types = {name: kind for name, (_, kind) in entries.items()}
    assert types == {b".": 4, b"..": 4, b"directory": 4, b"file": 8, b"link": 10, b"fifo": 1}
    assert entries[b"."][0] == os.stat("d").st_ino
    assert entries[b".."][0] == os.stat(".").st_ino
    for name in (b"directory", b"file", b"link", b"fifo"):
        assert entries[name][0] == os.lstat(b"d/" + name).st_ino


def test_positions(area: Path) -> None:
    os.mkdir("d")
    for count in range(1000):
        Path(f"d/{count}").touch()
    stream = _Stream(b"d")
    everything = stream.rest()
    assert len(everything) == 1002
    stream.rewind()
    positions = []
    for name in everything:
        positions.append(stream.tell())
        entry = stream.read()
        assert entry is not None
        assert entry[0] == name
    for index in (700, 3, 999, 0, 500):
        stream.seek(positions[index])
        entry = stream.read()
        assert entry is not None
        assert entry[0] == everything[index]
    Path("d/new").touch()
    os.unlink("d/500")
    stream.rewind()
    again = stream.rest()
    assert set(again) == {*everything, b"new"} - {b"500"}
    stream.close()


def test_unlinking_while_listing(area: Path) -> None:
    # Garbage collection unlinks between two calls of getdents.
    for count in range(3000):
        Path(f"{count:064x}").touch()
    directory = os.open(".", os.O_RDONLY)
    seen = []
    with os.scandir(directory) as entries:
        for entry in entries:
            seen.append(entry.name)
            os.unlink(entry.name, dir_fd=directory)
    assert sorted(seen) == [f"{count:064x}" for count in range(3000)]
    assert os.listdir(directory) == []
    os.close(directory)


def test_a_directory_removed_while_it_is_open(area: Path) -> None:
    os.mkdir("d")
    Path("d/f").touch()
    descriptor = os.open("d", os.O_RDONLY)
    assert os.listdir(descriptor) == ["f"]
    os.unlink("d/f", dir_fd=None)
    os.rmdir("d")
    os.mkdir("d")
    Path("d/other").touch()
    with pytest.raises(FileNotFoundError):
        os.stat("other", dir_fd=descriptor)
    with pytest.raises(FileNotFoundError):
        os.open("f", os.O_CREAT | os.O_RDWR, dir_fd=descriptor)
    assert os.fstat(descriptor).st_nlink == 0
    assert os.fstat(descriptor).st_ino != os.stat("d").st_ino
    os.fsync(descriptor)
    os.close(descriptor)


def test_many_entries_while_others_come_and_go(memory_base: Path, mounter: Mounter) -> None:
    mount = mounter(base=memory_base)
    backing = mount.backing / "many"
    backing.mkdir()
    directory = os.open(backing, os.O_RDONLY)
    for count in range(_MANY):
        os.mknod(f"stays{count}", dir_fd=directory)
    os.close(directory)
    os.chdir(mount.mountpoint / "many")
    listed: Counter[str] = Counter()
    with os.scandir() as entries:
        for position, entry in enumerate(entries):
            listed[entry.name] += 1
            if position % 100 == 0:
                _disturb(position // 100)
    assert sum(name.startswith("stays") for name in listed) == _MANY
    assert set(listed.values()) == {1}
    with os.scandir() as entries:
        assert sum(1 for _ in entries) == _MANY + 10
    os.chdir("/")


def _disturb(count: int) -> None:
    """Makes files come, go and change their names; ten are left."""
    os.mknod(f"new{count}")
    if count >= 10:
        os.rename(f"new{count - 5}", f"renamed{count - 5}")
        os.unlink(f"new{count - 10}" if count < 15 else f"renamed{count - 10}")


def test_deeper_than_the_longest_path(area: Path) -> None:
    name = "d" * 200
    depth = 60
    for _ in range(depth):
        os.mkdir(name)
        os.chdir(name)
    Path("f").write_bytes(b"text")
    os.rename("f", "g")
    os.mkdir("e")
    os.link("g", "e/h")
    os.chmod("g", 0o600)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert Path("e/h").read_bytes() == b"text"
    assert os.listdir("e") == ["h"]
    os.chdir(area)
    # The top renamed, everything below still works.
    os.rename(name, "renamed")
    os.chdir("renamed")
    for _ in range(depth - 1):
        os.chdir(name)
    Path("e/new").write_bytes(b"new")
    assert sorted(os.listdir("e")) == ["h", "new"]
    os.chdir(area)


def test_renamed_while_in_use(area: Path) -> None:
    os.makedirs("a/b/c")
    descriptor = os.open("a/b/c", os.O_RDONLY)
    with open("a/b/c/f", "w+b") as file:
        os.rename("a/b", "b")
        os.mkdir("a/b")
        os.rename("b/c", "a/c")
        file.write(b"text")
        file.flush()
        assert Path("a/c/f").read_bytes() == b"text"
        os.chmod("a/c/f", 0o600)
        assert os.fstat(file.fileno()).st_mode & 0o777 == 0o600
        os.close(os.open("g", os.O_CREAT | os.O_RDWR, dir_fd=descriptor))
        assert sorted(os.listdir("a/c")) == ["f", "g"]
        os.rename("a/c/f", "a/c/g")
        assert os.listdir(descriptor) == ["g"]
    assert Path("a/c/g").read_bytes() == b"text"
    os.close(descriptor)


def test_exchanged_while_in_use(area: Path) -> None:
    os.makedirs("a/x")
    os.makedirs("b/y")
    Path("a/f").write_bytes(b"a")
    Path("b/f").write_bytes(b"b")
    in_a = os.open("a", os.O_RDONLY)
    in_b = os.open("b", os.O_RDONLY)
    check("renameat2 a b EXCHANGE\nlist a -> f,y\nlist b -> f,x\nrenameat2 a/f b/f EXCHANGE\nread a/f -> b'a'")
    assert sorted(os.listdir(in_a)) == ["f", "x"]
    Path("b/x/new").touch()
    assert os.listdir("b/x") == ["new"]
    assert os.stat("f", dir_fd=in_b).st_ino == os.stat("a/f").st_ino
    check("renameat2 a/f b/x EXCHANGE\nlist a/f -> new\nread b/x -> b'a'\nlstat a nlink -> 4\nlstat b nlink -> 2")
    os.close(in_a)
    os.close(in_b)


def test_odd_names(area: Path) -> None:
    names = [bytes([value]) for value in range(1, 256) if value not in b"/."]
    names += [b"\xff" * 255, "ä€𝄞".encode(), b"host:3 \n\\", b"...", b"2026-11-22T23:50:41Z"]
    for name in names:
        Path(os.fsdecode(name)).write_bytes(name)
    assert sorted(os.listdir(b".")) == sorted(names)
    for name in names:
        assert Path(os.fsdecode(name)).read_bytes() == name
        os.rename(name, b"renamed")
        os.rename(b"renamed", name)
        os.symlink(name, b"link")
        assert os.readlink(b"link") == name
        os.unlink(b"link")
    for name in names:
        os.unlink(name)
    assert os.listdir(b".") == []


def test_missing_names_appear(area: Path) -> None:
    # What was missing is remembered by the kernel; every way to make it must end that.
    os.mkdir("d")
    Path("d/f").touch()
    makers: tuple[Callable[[str], object], ...] = (
        lambda name: Path(name).touch(),
        os.mkdir,
        os.mkfifo,
        lambda name: os.symlink("x", name),
        lambda name: os.link("d/f", name),
        lambda name: os.rename("d/f", name),
    )
    for count, make in enumerate(makers):
        name = f"n{count}"
        for _ in range(2):
            assert not os.path.lexists(name)
        make(name)
        assert os.path.lexists(name)
    assert not os.path.lexists("d/f")
    os.rename("n0", "d/f")
    assert os.path.lexists("d/f")
    assert not os.path.lexists("n0")


def test_too_many_links(shared_mount: PassThroughProcess) -> None:
    directory = shared_mount.backing / "links"
    directory.mkdir()
    (directory / "f").touch()
    assert _link_until_refused(directory) == errno.EMLINK
    mounted = shared_mount.mountpoint / "links"
    with pytest.raises(OSError, match="Too many links"):
        os.link(mounted / "f", mounted / "one more")
    os.unlink(mounted / "0")
    os.link(mounted / "f", mounted / "one more")
    assert os.stat(mounted / "f").st_nlink == os.stat(directory / "f").st_nlink > 60_000


def _link_until_refused(directory: Path) -> int | None:
    try:
        for count in range(100_000):
            os.link(directory / "f", directory / str(count))
    except OSError as error:
        return error.errno
    return None
