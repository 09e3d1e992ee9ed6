"""Times, sizes and link counts: exact, and visible at once whatever the kernel has cached."""

import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mirrorfs.filesystem.system_calls import set_times
from tests.filesystem.conftest import Mounter, PassThroughProcess

FIELDS = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_blocks", "st_blksize", "st_ino", "st_rdev")
TIMES = ("st_atime_ns", "st_mtime_ns", "st_ctime_ns")


def _describe(status: os.stat_result) -> dict[str, int]:
    return {field: getattr(status, field) for field in (*FIELDS, *TIMES)}


def _assert_same(mount: PassThroughProcess, *names: str) -> None:
    for name in names:
        assert _describe(os.lstat(mount.mountpoint / name)) == _describe(os.lstat(mount.backing / name)), name


@pytest.mark.parametrize("opened", [False, True])
@pytest.mark.parametrize(
    ("access", "modification"),
    [(None, None), (None, 5), (5, None), (3_000_000_001, 7_000_000_009), (-1, -1_500_000_000)],
)
def test_each_time_alone(area: Path, access: int | None, modification: int | None, opened: bool) -> None:
    Path("f").write_bytes(b"text")
    set_times(b"f", 1_000_000_123, 2_000_000_456)
    descriptor = os.open("f", os.O_RDONLY)
    try:
        path = b"/proc/self/fd/%d" % descriptor if opened else b"f"
        set_times(path, access, modification)
        expected = (
            1_000_000_123 if access is None else access,
            2_000_000_456 if modification is None else modification,
        )
        for status in (os.stat("f"), os.fstat(descriptor)):
            assert (status.st_atime_ns, status.st_mtime_ns) == expected
    finally:
        os.close(descriptor)


def test_access_time_now_leaves_modification_time(area: Path) -> None:
    # As garbage collection marks chunks: [UTIME_NOW, UTIME_OMIT], here with touch -a.
    Path("chunk").write_bytes(b"data")
    os.utime("chunk", ns=(1, 1_234_567_891))
    before = time.time_ns() - 10_000_000
    assert os.spawnlp(os.P_WAIT, "touch", "touch", "-a", "-h", "-c", "chunk") == 0
    status = os.stat("chunk")
    assert before <= status.st_atime_ns <= time.time_ns()
    assert status.st_mtime_ns == 1_234_567_891
    assert before <= status.st_ctime_ns


def test_change_time_moves_with_every_change(area: Path) -> None:
    Path("f").touch()
    Path("other").touch()

    def rename() -> None:
        os.rename("f", "h")
        os.rename("h", "f")

    changes: tuple[Callable[[], object], ...] = (
        lambda: os.chmod("f", 0o600),
        lambda: os.chown("f", 1, 1),
        lambda: os.chown("f", -1, -1),
        lambda: os.truncate("f", 10),
        lambda: os.utime("f"),
        lambda: os.link("f", "g"),
        lambda: os.unlink("g"),
        rename,
        lambda: os.setxattr("f", "user.a", b"b"),
        lambda: Path("f").write_bytes(b"text"),
    )
    for number, change in enumerate(changes):
        before = os.stat("f").st_ctime_ns
        time.sleep(0.012)  # the kernel's clock for file times ticks every 4 or 10 ms
        change()
        assert os.stat("f").st_ctime_ns > before, number


def test_directory_times_move_with_their_entries(area: Path) -> None:
    os.mkdir("d")
    os.mkdir("e")
    changes: tuple[Callable[[], object], ...] = (
        lambda: Path("d/f").touch(),
        lambda: os.rename("d/f", "d/g"),
        lambda: os.link("d/g", "d/h"),
        lambda: os.unlink("d/h"),
        lambda: os.mkdir("d/x"),
        lambda: os.rmdir("d/x"),
        lambda: os.symlink("a", "d/s"),
        lambda: os.rename("d/s", "e/s"),
        lambda: os.rename("e/s", "d/s"),
        lambda: os.mkfifo("d/p"),
    )
    for number, change in enumerate(changes):
        before = os.stat("d").st_mtime_ns
        time.sleep(0.012)
        change()
        assert os.stat("d").st_mtime_ns > before, number


def test_reading_sets_the_access_time_as_the_backing_file_system_does(area: Path) -> None:
    Path("f").write_bytes(b"text")
    os.utime("f", (1, 2))
    Path("f").read_bytes()
    assert os.stat("f").st_atime > 1  # relatime: it was older than the modification
    os.mkdir("d")
    os.utime("d", (1, 2))
    os.listdir("d")
    assert os.stat("d").st_atime > 1
    os.symlink("target", "s")
    os.utime("s", (1, 2), follow_symlinks=False)
    os.readlink("s")
    assert os.lstat("s").st_atime > 1


def test_size_is_right_at_once(area: Path) -> None:
    with open("f", "wb", buffering=0) as one, open("f", "rb", buffering=0) as other:
        for count in range(1, 5):
            one.write(bytes(5000))
            assert os.fstat(other.fileno()).st_size == os.stat("f").st_size == 5000 * count
        os.ftruncate(one.fileno(), 77)
        assert os.stat("f").st_size == 77
        os.rename("f", "g")
        assert os.stat("g").st_size == 77


def test_all_names_of_an_inode_agree(area: Path) -> None:
    os.mkdir("d")
    Path("a").write_bytes(b"12345")
    os.link("a", "b")
    os.link("a", "d/c")
    names = ("a", "b", "d/c")
    assert {os.stat(name).st_nlink for name in names} == {3}
    os.chmod("b", 0o640)
    assert {os.stat(name).st_mode & 0o777 for name in names} == {0o640}
    os.truncate("d/c", 2)
    assert {os.stat(name).st_size for name in names} == {2}
    os.utime("a", ns=(11, 22))
    assert {os.stat(name).st_atime_ns for name in names} == {11}
    os.unlink("a")
    assert {os.stat(name).st_nlink for name in names[1:]} == {2}
    Path("x").touch()
    os.rename("x", "b")
    assert os.stat("d/c").st_nlink == 1
    assert len({os.stat(name).st_ino for name in ("b", "d/c")}) == 2


def test_through_an_open_file_that_has_no_name(area: Path) -> None:
    descriptor = os.open("f", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        number = os.fstat(descriptor).st_ino
        os.unlink("f")
        os.write(descriptor, b"0123456789")
        os.fchmod(descriptor, 0o4711)
        os.fchown(descriptor, 3, 4)
        os.ftruncate(descriptor, 5)
        os.utime(descriptor, ns=(1, 2))
        os.setxattr(descriptor, "user.a", b"b")
        Path("f").write_bytes(b"another")
        status = os.fstat(descriptor)
        assert (status.st_nlink, status.st_size, status.st_uid, status.st_gid) == (0, 5, 3, 4)
        assert (status.st_mode & 0o7777, status.st_atime_ns, status.st_mtime_ns) == (0o711, 1, 2)
        assert status.st_ino == number != os.stat("f").st_ino
        assert os.pread(descriptor, 10, 0) == b"01234"
        assert os.getxattr(descriptor, "user.a") == b"b"
        again = os.open(f"/proc/self/fd/{descriptor}", os.O_RDONLY)
        assert os.read(again, 10) == b"01234"
        os.close(again)
    finally:
        os.close(descriptor)
    assert Path("f").read_bytes() == b"another"


def test_a_reference_to_a_removed_inode_is_not_taken_for_a_new_one(area: Path) -> None:
    # ext4 gives the number of a deleted inode to the next file; one that is still referenced must not be it.
    Path("f").write_bytes(b"old")
    reference = os.open("f", os.O_PATH)
    try:
        number = os.fstat(reference).st_ino
        os.unlink("f")
        for count in range(20):
            Path(f"new{count}").write_bytes(b"new file")
            assert os.stat(f"new{count}").st_ino != number
        assert os.fstat(reference).st_nlink == 0
        assert os.fstat(reference).st_size == 3
        os.chmod(f"/proc/self/fd/{reference}", 0o123)
        assert os.fstat(reference).st_mode & 0o777 == 0o123
    finally:
        os.close(reference)


def test_attributes_equal_the_backing_ones(shared_mount: PassThroughProcess) -> None:
    top = shared_mount.mountpoint / "same"
    top.mkdir()
    (top / "f").write_bytes(bytes(123456))
    (top / "d").mkdir()
    (top / "s").symlink_to("target")
    os.mkfifo(top / "p")
    os.link(top / "f", top / "d/g")
    os.mknod(top / "c", 0o20600, os.makedev(300, 70000))
    names = ("", "same", "same/f", "same/d", "same/s", "same/p", "same/d/g", "same/c")
    _assert_same(shared_mount, *names)
    (top / "f").read_bytes()
    os.listdir(top)
    os.readlink(top / "s")
    _assert_same(shared_mount, *names)
    os.rename(top / "d", top / "e")
    with open(top / "f", "ab") as file:
        file.write(b"more")
    _assert_same(shared_mount, "", "same", "same/f", "same/e", "same/e/g")
    entries = {entry.name: entry.inode() for entry in os.scandir(top)}
    assert entries == {entry.name: entry.inode() for entry in os.scandir(shared_mount.backing / "same")}
    native, mounted = os.statvfs(shared_mount.backing), os.statvfs(shared_mount.mountpoint)
    for field in ("f_bsize", "f_frsize", "f_blocks", "f_files", "f_namemax"):
        assert getattr(native, field) == getattr(mounted, field), field


def test_times_survive_the_mount(mounter: Mounter) -> None:
    first = mounter()
    chunk = first.mountpoint / "chunk"
    chunk.write_bytes(b"data")
    times = (1_700_000_000_123_456_789, 1_600_000_000_987_654_321)
    os.utime(chunk, ns=times)
    Path("/proc/sys/vm/drop_caches").write_text("2")
    assert (chunk.stat().st_atime_ns, chunk.stat().st_mtime_ns) == times
    first.stop()
    backing = (first.backing / "chunk").stat()
    assert (backing.st_atime_ns, backing.st_mtime_ns) == times
    mounter(base=first.backing.parent)
    assert (chunk.stat().st_atime_ns, chunk.stat().st_mtime_ns) == times


def test_attributes_together(area: Path) -> None:
    # Every combination of changes, one after the other, ends in the same state as natively.
    for count, steps in enumerate(itertools.permutations(("mode", "owner", "size", "times"))):
        name = f"f{count}"
        Path(name).write_bytes(b"12345678")
        for step in steps:
            if step == "mode":
                os.chmod(name, 0o640)
            elif step == "owner":
                os.chown(name, 12, 34)
            elif step == "size":
                os.truncate(name, 3)
            else:
                os.utime(name, ns=(1, 2))
        status = os.stat(name)
        assert (status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_size) == (0o640, 12, 34, 3)
        assert steps.index("size") > steps.index("times") or (status.st_atime_ns, status.st_mtime_ns) == (1, 2)


@pytest.mark.parametrize("kind", ["unlinked", "replaced"])
def test_a_reference_whose_name_is_gone_while_another_one_was_never_met(mounter: Mounter, kind: str) -> None:
    """Of a file with several names, the mount knows those that somebody has used."""
    mount = mounter()
    (mount.backing / "known").write_bytes(b"data")
    os.link(mount.backing / "known", mount.backing / "unknown")
    number = (mount.backing / "known").stat().st_ino
    (mount.backing / "other").write_bytes(b"")
    reference = os.open(mount.mountpoint / "known", os.O_PATH)
    try:
        if kind == "unlinked":
            os.unlink(mount.mountpoint / "known")
        else:
            os.rename(mount.mountpoint / "other", mount.mountpoint / "known")
        path = f"/proc/self/fd/{reference}"
        os.chmod(path, 0o640)
        os.setxattr(path, "user.a", b"b")
        assert os.fstat(reference).st_nlink == 1
        assert Path(path).read_bytes() == b"data"
        # The other name is that of the same file, as ever.
        assert (mount.mountpoint / "unknown").stat().st_ino == number
        (mount.mountpoint / "unknown").write_bytes(b"more data")
        assert Path(path).read_bytes() == b"more data"
        os.unlink(mount.mountpoint / "unknown")
        assert os.fstat(reference).st_nlink == 0
        assert Path(path).read_bytes() == b"more data"
    finally:
        os.close(reference)
    (mount.mountpoint / "known").unlink(missing_ok=True)
    deadline = time.monotonic() + 10
    while mount.statistics()["descriptors"]:
        assert time.monotonic() < deadline
