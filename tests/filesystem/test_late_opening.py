"""What is opened for reading only is opened when it is read, and not at all if it never is."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyfuse3
import pytest
import trio

from mirrorfs.filesystem import files
from mirrorfs.filesystem.inodes import ROOT_NUMBER
from mirrorfs.filesystem.operations import PassThrough
from tests.filesystem.test_observer import CALLER

pytestmark = pytest.mark.trio


def _is_open(number: int) -> bool:
    """Whether a descriptor of ours is a real one, not O_PATH."""
    lines = Path(f"/proc/self/fdinfo/{number}").read_text().splitlines()
    flags = next(int(line.split()[1], 8) for line in lines if line.startswith("flags:"))
    return not flags & os.O_PATH


@pytest.fixture(autouse=True)
def _file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")


async def _open(operations: PassThrough, flags: int) -> int:
    inode = (await operations.lookup(ROOT_NUMBER, b"file", CALLER)).st_ino
    return (await operations.open(inode, flags, CALLER)).fh


async def test_it_is_opened_when_it_is_read(operations: PassThrough, tmp_path: Path) -> None:
    handle = await _open(operations, os.O_RDONLY)
    assert not _is_open(handle)
    # By then it may have another name, or none.
    os.unlink(tmp_path / "file")
    assert bytes(await operations.read(handle, 3, 100)) == b"tent"
    assert _is_open(handle)
    await operations.release(handle)


async def test_it_is_opened_when_it_is_synced(operations: PassThrough) -> None:
    handle = await _open(operations, os.O_RDONLY)
    await operations.fsync(handle, False)
    assert _is_open(handle)
    await operations.release(handle)


async def test_readers_that_come_at_once_share_it(operations: PassThrough) -> None:
    handle = await _open(operations, os.O_RDONLY)
    descriptors = len(os.listdir("/proc/self/fd"))
    read: list[bytes] = []

    async def read_some(offset: int) -> None:
        read.append(bytes(await operations.read(handle, offset, 1)))

    async with trio.open_nursery() as nursery:
        for offset in range(7):
            nursery.start_soon(read_some, offset)
    assert sorted(read) == sorted(bytes([letter]) for letter in b"content")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    await operations.release(handle)


@pytest.mark.parametrize("flags", [os.O_RDWR, os.O_WRONLY, os.O_RDONLY | os.O_TRUNC])
async def test_others_are_opened_at_once(operations: PassThrough, flags: int) -> None:
    handle = await _open(operations, flags)
    assert _is_open(handle)
    await operations.release(handle)


async def test_beside_another_handle_it_is_opened_at_once(operations: PassThrough) -> None:
    writing = await _open(operations, os.O_RDWR)
    reading = await _open(operations, os.O_RDONLY)
    assert _is_open(reading)
    for handle in (reading, writing):
        await operations.release(handle)


async def test_what_is_never_read_is_never_opened(operations: PassThrough) -> None:
    handle = await _open(operations, os.O_RDONLY)
    assert not _is_open(handle)
    await operations.release(handle)
    assert operations.statistics()["files"] == 0


async def test_the_kernel_is_told_not_to_ask_when_something_is_closed(operations: PassThrough) -> None:
    handle = await _open(operations, os.O_RDWR)
    with pytest.raises(pyfuse3.FUSEError) as answer:
        await operations.flush(handle)
    assert answer.value.errno == errno.ENOSYS
    await operations.release(handle)


async def test_a_file_system_that_asks_somebody_is_asked_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "file_system_type_of", lambda _: "nfs4")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    operations = PassThrough(descriptor)
    for flags in (os.O_RDONLY, os.O_RDWR):
        handle = await _open(operations, flags)
        assert _is_open(handle)
        # It may have late errors to report: it is asked at each close.
        await operations.flush(handle)
        await operations.release(handle)
    operations.close()
    os.close(descriptor)
