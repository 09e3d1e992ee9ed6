"""What the observer hears of each operation, in which order, and what its failures do."""

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyfuse3
import pytest

from mirrorfs.filesystem.operations import PassThrough

ROOT = pyfuse3.ROOT_INODE
CALLER = pyfuse3.RequestContext()  # root
WRITE = os.O_WRONLY | os.O_TRUNC


class Recorder:
    """An observer that keeps what it was told, and fails when asked to."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.fails = False

    def take(self) -> list[tuple[object, ...]]:
        events, self.events = self.events, []
        return events

    def _note(self, *event: object) -> None:
        self.events.append(event)
        if self.fails:
            raise OSError(28, "No space left on device")

    async def writer_opened(self, inode: int) -> None:
        self._note("opened", inode)

    async def writer_closed(self, inode: int, paths: Sequence[bytes], remaining: int) -> None:
        self._note("closed", inode, sorted(paths), remaining)

    async def created(self, path: bytes, mode: int) -> None:
        self._note("created", path, mode >> 12)

    async def truncated(self, path: bytes) -> None:
        self._note("truncated", path)

    async def removed(self, path: bytes, is_directory: bool) -> None:
        self._note("removed", path, is_directory)

    async def renamed(self, old: bytes, new: bytes, *, is_directory: bool, writers: int, exchanged: bool) -> None:
        self._note("renamed", old, new, is_directory, writers, exchanged)


@asynccontextmanager
async def _observed(directory: Path) -> AsyncIterator[tuple[PassThrough, Recorder]]:
    recorder = Recorder()
    descriptor = os.open(directory, os.O_RDONLY)
    operations = PassThrough(descriptor, recorder)
    try:
        yield operations, recorder
    finally:
        operations.close()
        os.close(descriptor)


async def _truncate(operations: PassThrough, inode: int, fh: int | None) -> None:
    names = ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")
    fields = SimpleNamespace(**{f"update_{name}": name == "size" for name in names})
    attributes = pyfuse3.EntryAttributes()
    attributes.st_size = 3
    await operations.setattr(inode, attributes, cast(Any, fields), fh, CALLER)


@pytest.mark.trio
async def test_a_file_from_temporary_to_final_name(tmp_path: Path) -> None:
    async with _observed(tmp_path) as (operations, recorder):
        directory = await operations.mkdir(ROOT, b"d", 0o755, CALLER)
        assert recorder.take() == [("created", b"d", 4)]
        info, entry = await operations.create(directory.st_ino, b"f.tmp_XXXXXX", 0o644, os.O_RDWR, CALLER)
        assert recorder.take() == [("opened", entry.st_ino)]
        await operations.write(info.fh, 0, b"data")
        await operations.rename(directory.st_ino, b"f.tmp_XXXXXX", directory.st_ino, b"f", 0, CALLER)
        assert recorder.take() == [("renamed", b"d/f.tmp_XXXXXX", b"d/f", False, 1, False)]
        second = await operations.open(entry.st_ino, os.O_WRONLY, CALLER)
        reader = await operations.open(entry.st_ino, os.O_RDONLY, CALLER)
        recorder.take()
        await operations.rename(ROOT, b"d", ROOT, b"e", 0, CALLER)
        await operations.release(info.fh)
        await operations.release(reader.fh)
        await operations.release(second.fh)
        assert recorder.take() == [
            ("renamed", b"d", b"e", True, 0, False),
            ("closed", entry.st_ino, [b"e/f"], 1),
            ("closed", entry.st_ino, [b"e/f"], 0),
        ]
    assert (tmp_path / "e/f").read_bytes() == b"data"


@pytest.mark.trio
async def test_links_and_removal(tmp_path: Path) -> None:
    async with _observed(tmp_path) as (operations, recorder):
        info, entry = await operations.create(ROOT, b"f", 0o644, os.O_WRONLY, CALLER)
        await operations.link(entry.st_ino, ROOT, b"g", CALLER)
        await operations.symlink(ROOT, b"s", b"target", CALLER)
        await operations.mkdir(ROOT, b"d", 0o755, CALLER)
        await operations.unlink(ROOT, b"f", CALLER)
        await operations.rmdir(ROOT, b"d", CALLER)
        await operations.unlink(ROOT, b"g", CALLER)
        await operations.release(info.fh)
        assert recorder.take() == [
            ("opened", entry.st_ino),
            ("created", b"g", 8),
            ("created", b"s", 10),
            ("created", b"d", 4),
            ("removed", b"f", False),
            ("removed", b"d", True),
            ("removed", b"g", False),
            ("closed", entry.st_ino, [], 0),
        ]


@pytest.mark.trio
async def test_exchange(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "d").mkdir()
    async with _observed(tmp_path) as (operations, recorder):
        for name in (b"f", b"d"):
            await operations.lookup(ROOT, name, CALLER)
        await operations.rename(ROOT, b"f", ROOT, b"d", pyfuse3.RENAME_EXCHANGE, CALLER)
        assert recorder.take() == [("renamed", b"f", b"d", False, 0, True)]


@pytest.mark.trio
async def test_truncation(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    async with _observed(tmp_path) as (operations, recorder):
        entry = await operations.lookup(ROOT, b"f", CALLER)
        await _truncate(operations, entry.st_ino, None)
        assert recorder.take() == [("truncated", b"f")]
        info = await operations.open(entry.st_ino, WRITE, CALLER)
        await _truncate(operations, entry.st_ino, info.fh)
        await _truncate(operations, entry.st_ino, None)
        assert recorder.take() == [("opened", entry.st_ino)]
        await operations.release(info.fh)
    assert (tmp_path / "f").read_bytes() == bytes(3)


@pytest.mark.trio
async def test_nothing_is_heard_of_what_fails_or_only_reads(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"12345")
    (tmp_path / "d").mkdir()
    async with _observed(tmp_path) as (operations, recorder):
        entry = await operations.lookup(ROOT, b"f", CALLER)
        for attempt in (
            operations.mkdir(ROOT, b"d", 0o755, CALLER),
            operations.unlink(ROOT, b"d", CALLER),
            operations.unlink(ROOT, b"none", CALLER),
            operations.rename(ROOT, b"none", ROOT, b"x", 0, CALLER),
            operations.rename(ROOT, b"f", ROOT, b"d", 0, CALLER),
        ):
            with pytest.raises(pyfuse3.FUSEError):
                await attempt
        info = await operations.open(entry.st_ino, os.O_RDONLY, CALLER)
        assert await operations.read(info.fh, 0, 10) == b"12345"
        await operations.release(info.fh)
        assert recorder.take() == []


@pytest.mark.trio
async def test_failure_of_the_observer_is_that_of_the_call(tmp_path: Path) -> None:
    async with _observed(tmp_path) as (operations, recorder):
        recorder.fails = True
        for attempt in (
            operations.create(ROOT, b"f", 0o644, os.O_WRONLY, CALLER),
            operations.mkdir(ROOT, b"d", 0o755, CALLER),
        ):
            with pytest.raises(pyfuse3.FUSEError, match="No space left"):
                await attempt
        # The kernel was given nothing, so nothing is held for it.
        assert operations.statistics() == {"inodes": 1, "files": 0, "directories": 0, "descriptors": 0}


@pytest.mark.trio
async def test_a_defect_is_an_input_output_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with _observed(tmp_path) as (operations, _):
        with pytest.raises(pyfuse3.FUSEError, match="Input/output error"):
            await operations.lookup(ROOT, cast(bytes, 5.0), CALLER)
        assert "lookup" in caplog.text
        with pytest.raises(pyfuse3.FUSEError, match="Stale"):
            await operations.getattr(987654321, CALLER)
