"""What docs/semantics.md says is otherwise than on the backing file system, as it is."""

import ctypes
import errno
import os
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.filesystem.conftest import Mounter, PassThroughProcess

_STATX_BTIME = 0x800
_MASK_OFFSET = 0
_DEFAULT_LIST = "system.posix_acl_default"
# user::rwx, group::rwx, other::r-x
_LIST = struct.pack("<IHHIHHIHHI", 2, 1, 7, 0xFFFFFFFF, 4, 7, 0xFFFFFFFF, 0x20, 5, 0xFFFFFFFF)
_LONGEST_HANDLE = 128

_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def folder(shared_mount: PassThroughProcess) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=shared_mount.mountpoint) as path:
        yield Path(path)


def test_holes_are_not_told(folder: Path) -> None:
    descriptor = os.open(folder / "f", os.O_RDWR | os.O_CREAT)
    try:
        os.pwrite(descriptor, b"data", 1 << 20)
        assert os.lseek(descriptor, 0, os.SEEK_DATA) == 0
        assert os.lseek(descriptor, 0, os.SEEK_HOLE) == (1 << 20) + 4
        assert os.fstat(descriptor).st_blocks * 512 < 1 << 20
    finally:
        os.close(descriptor)


def test_no_file_without_a_name(folder: Path) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.EOPNOTSUPP)):
        os.open(folder, os.O_TMPFILE | os.O_RDWR)
    # What the standard library does instead.
    with tempfile.TemporaryFile(dir=folder) as file:
        assert file.write(b"data") == 4


def test_no_time_of_birth(folder: Path) -> None:
    (folder / "f").touch()
    answer = ctypes.create_string_buffer(256)
    assert _libc.statx(-100, os.fsencode(folder / "f"), 0, _STATX_BTIME, answer) == 0
    assert not struct.unpack_from("=I", answer, _MASK_OFFSET)[0] & _STATX_BTIME


def _after_a_read(mount: PassThroughProcess, flags: int) -> int:
    """The access time, in nanoseconds, of a file that was last read in 1970, after a read that reaches the mount."""
    path = mount.mountpoint / "f"
    path.write_bytes(b"data")
    os.utime(path, ns=(1, 1))
    descriptor = os.open(path, os.O_RDONLY | flags)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.read(descriptor, 4) == b"data"
    finally:
        os.close(descriptor)
    return (mount.backing / "f").stat().st_atime_ns


def test_the_option_noatime_changes_nothing(mounter: Mounter) -> None:
    mount = mounter("noatime")
    assert "noatime" in subprocess.check_output(["findmnt", "-no", "OPTIONS", mount.mountpoint], text=True).split(",")
    assert _after_a_read(mount, 0) > 1
    assert _after_a_read(mount, os.O_NOATIME) == 1


def test_file_handles_hold_as_long_as_the_kernel_knows_the_file(mounter: Mounter) -> None:
    mount = mounter()
    (mount.mountpoint / "f").write_bytes(b"data")
    handle = ctypes.create_string_buffer(struct.pack("Ii", _LONGEST_HANDLE, 0), 8 + _LONGEST_HANDLE)
    mount_id = ctypes.c_int()
    path = os.fsencode(mount.mountpoint / "f")
    assert _libc.name_to_handle_at(-100, path, handle, ctypes.byref(mount_id), 0) == 0
    root = os.open(mount.mountpoint, os.O_RDONLY)
    try:
        opened = _libc.open_by_handle_at(root, handle, os.O_RDONLY)
        assert os.read(opened, 4) == b"data"
        os.close(opened)
        deadline = time.monotonic() + 20
        while mount.statistics()["inodes"] > 1:
            assert time.monotonic() < deadline
            Path("/proc/sys/vm/drop_caches").write_text("2")
        assert _libc.open_by_handle_at(root, handle, os.O_RDONLY) == -1
        assert ctypes.get_errno() == errno.ESTALE
    finally:
        os.close(root)


def test_the_umask_counts_in_spite_of_a_default_list(folder: Path, native_directory: Path) -> None:
    found = {}
    for directory in (folder, native_directory):
        try:
            os.setxattr(directory, _DEFAULT_LIST, _LIST)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            pytest.skip("the file system has no access control lists")
        umask = os.umask(0o027)
        try:
            os.close(os.open(directory / "f", os.O_CREAT, 0o666))
        finally:
            os.umask(umask)
            os.removexattr(directory, _DEFAULT_LIST)
        found[directory] = (directory / "f").stat().st_mode & 0o777
        (directory / "f").unlink()
    assert found == {folder: 0o640, native_directory: 0o664}
