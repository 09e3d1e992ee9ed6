"""The mount itself: options, over its own backing directory, its orderly and its violent end."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from mirrorfs.filesystem.condition import is_dead
from mirrorfs.filesystem.mount_table import detach, is_mounted, mount_at
from tests.filesystem.conftest import Mounter, PassThroughProcess
from tests.filesystem.posix_calls import check


def _options(path: Path) -> set[bytes]:
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        fields = line.split()
        if fields[4] == bytes(path):
            return set(fields[5].split(b",")) | set(fields[-1].split(b","))
    raise AssertionError(f"{path} is not mounted")


def test_safe_options_unless_asked_otherwise(mounter: Mounter) -> None:
    mount = mounter()
    assert {b"nosuid", b"nodev", b"default_permissions", b"allow_other"} <= _options(mount.mountpoint)
    entry = mount_at(str(mount.mountpoint))
    assert entry is not None
    assert (entry.file_system_type, entry.source) == (b"fuse.mirrorfs", os.fsencode(mount.backing))
    read_ahead = Path(f"/sys/class/bdi/{entry.device}/read_ahead_kb").read_text()
    assert int(read_ahead) == 4096
    os.mknod(mount.mountpoint / "null", 0o20666, os.makedev(1, 3))
    with pytest.raises(PermissionError):
        os.open(mount.mountpoint / "null", os.O_RDWR)
    other = mounter("suid", "dev", "noexec", "ro")
    assert {b"ro", b"noexec"} <= _options(other.mountpoint)
    assert not {b"nosuid", b"nodev"} & _options(other.mountpoint)
    check(f"mkdir {other.mountpoint}/d -> EROFS")


def test_over_the_backing_directory_itself(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"before")
    process = PassThroughProcess(tmp_path, tmp_path)
    try:
        process.wait_until_mounted()
        assert os.path.ismount(tmp_path)
        assert (tmp_path / "f").read_bytes() == b"before"
        (tmp_path / "d").mkdir()
        (tmp_path / "d/g").write_bytes(b"through")
        assert sorted(os.listdir(tmp_path)) == ["d", "f"]
        # ".." of this one is what is mounted over, and having been listed, its times must be asked for.
        assert os.listdir(tmp_path / "d") == ["g"]
    finally:
        process.stop()
    assert not os.path.ismount(tmp_path)
    assert (tmp_path / "d/g").read_bytes() == b"through"


def test_other_names_for_the_mount_point(mounter: Mounter, tmp_path: Path) -> None:
    base = tmp_path / "with space\tand\\backslash, ünd comma"
    base.mkdir()
    mount = mounter(base=base)
    assert is_mounted(str(mount.mountpoint))
    (mount.mountpoint / "f").touch()
    assert (mount.backing / "f").exists()
    mount.stop()
    assert not is_mounted(str(mount.mountpoint))


def test_ends_when_unmounted_from_outside(mounter: Mounter) -> None:
    mount = mounter()
    (mount.mountpoint / "f").write_bytes(b"text")
    subprocess.run(["umount", mount.mountpoint], check=True, timeout=20)
    assert mount.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_unmounts_when_told_to_end(mounter: Mounter, number: int) -> None:
    mount = mounter()
    (mount.mountpoint / "f").write_bytes(b"text")
    mount.signal(number)
    assert mount.wait() == 0
    assert not is_mounted(str(mount.mountpoint))
    assert (mount.backing / "f").read_bytes() == b"text"


def test_serves_those_who_use_it_to_the_end(mounter: Mounter) -> None:
    mount = mounter()
    with open(mount.mountpoint / "f", "wb", buffering=0) as file:
        file.write(b"before")
        mount.signal(signal.SIGTERM)
        while is_mounted(str(mount.mountpoint)):
            assert file.write(b".") == 1
        file.write(b"after")
    assert mount.wait() == 0
    content = (mount.backing / "f").read_bytes()
    assert content.startswith(b"before")
    assert content.endswith(b"after")


def test_does_not_wait_forever_for_those_who_use_it(mounter: Mounter) -> None:
    mount = mounter()
    descriptor = os.open(mount.mountpoint / "f", os.O_RDWR | os.O_CREAT)
    try:
        mount.signal(signal.SIGTERM)
        assert mount.wait() == 0
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pwrite(descriptor, b"text", 0)
    finally:
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_dead_mount_is_recognized_and_detached(mounter: Mounter) -> None:
    mount = mounter()
    path = str(mount.mountpoint)
    assert is_mounted(path)
    assert not is_dead(path)
    mount.signal(signal.SIGKILL)
    assert mount.wait() == -signal.SIGKILL
    assert is_mounted(path)
    assert is_dead(path)
    detach(path)
    assert not is_mounted(path)
    assert not is_dead(path)


def test_killed_in_the_middle_of_everything(mounter: Mounter) -> None:
    """Callers get errors and do not hang; what was answered before is there."""
    mount = mounter()
    answered: list[int] = []

    def work() -> None:
        try:
            while True:
                (mount.mountpoint / f"f{len(answered)}").write_bytes(b"data" * 10_000)
                answered.append(len(answered))
        except OSError:
            return

    worker = threading.Thread(target=work)
    worker.start()
    while len(answered) < 100:
        os.stat(mount.mountpoint)
    mount.signal(signal.SIGKILL)
    worker.join(20)
    assert not worker.is_alive()
    for number in answered:
        assert (mount.backing / f"f{number}").stat().st_size == 40_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{tmp}/none", "{tmp}"], "No such file or directory"),
        (["{tmp}/file", "{tmp}"], "Not a directory"),
        (["{tmp}", "{tmp}/none"], "cannot mount"),
        (["{tmp}", "{tmp}", "no_such_option"], "cannot mount"),
        (["{tmp}", "{tmp}/inside"], "is inside"),
    ],
)
def test_what_cannot_be_mounted(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "inside").mkdir()
    command = [sys.executable, "-m", "mirrorfs.filesystem", *(text.format(tmp=tmp_path) for text in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not os.path.ismount(tmp_path)


def test_slow_requests_do_not_hold_up_others(mounter: Mounter) -> None:
    """While one thread synchronizes again and again, others are answered."""
    mount = mounter()
    done = threading.Event()

    def synchronize() -> None:
        with open(mount.mountpoint / "synchronized", "wb", buffering=0) as file:
            while not done.is_set():
                file.write(bytes(4 << 20))
                os.fsync(file.fileno())
                os.ftruncate(file.fileno(), 0)
                file.seek(0)

    worker = threading.Thread(target=synchronize)
    worker.start()
    try:
        for number in range(300):
            (mount.mountpoint / f"f{number}").write_bytes(b"data")
    finally:
        done.set()
        worker.join(30)
    assert len(os.listdir(mount.backing)) == 301
