"""Requests that meet each other between a system call in a thread and what becomes of it: each meeting arranged."""

import os
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TypeVar

import pyfuse3
import pytest
import trio

from mirrorfs.filesystem import listing, tree
from mirrorfs.filesystem.operations import PassThrough
from mirrorfs.filesystem.threads import Threads

ROOT = pyfuse3.ROOT_INODE
CALLER = pyfuse3.RequestContext()  # root
Result = TypeVar("Result")


class Stops:
    """Holds up the next call of a function that is made in a thread, before or after it is carried out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._armed: dict[str, tuple[bool, trio.Event, trio.Event]] = {}
        run = Threads.run

        async def held_up(
            threads: Threads, about: object, call: Callable[[], Result], *, briefly: bool = True
        ) -> Result:
            name = call.func.__name__ if isinstance(call, partial) else ""
            after, reached, go = self._armed.pop(name, (False, None, None))
            try:
                if reached is not None and go is not None and not after:
                    reached.set()
                    await go.wait()
                return await run(threads, about, call, briefly=briefly)
            finally:
                if reached is not None and go is not None and after:
                    reached.set()
                    await go.wait()

        monkeypatch.setattr(Threads, "run", held_up)
        # As if nothing were in memory.
        monkeypatch.setattr(tree, "open_cached", lambda *_: None)

    @asynccontextmanager
    async def at(
        self, function: str, request: Callable[[], object], *, after: bool = False
    ) -> AsyncIterator[SimpleNamespace]:
        """The request runs up to this function and goes on at the end of the block; then `result` is there."""
        reached, go = trio.Event(), trio.Event()
        outcome = SimpleNamespace(result=None)

        async def carry_out() -> None:
            outcome.result = await request()  # type: ignore[misc]

        self._armed[function] = (after, reached, go)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(carry_out)
                await reached.wait()
                yield outcome
                go.set()


class Recorder:
    """An observer that keeps what concerns paths."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []

    async def writer_opened(self, inode: int) -> None:
        """Of no interest here."""

    async def writer_closed(self, inode: int, paths: Sequence[bytes], remaining: int) -> None:
        self.events.append(("closed", *paths, remaining))

    async def created(self, path: bytes, mode: int) -> None:
        self.events.append(("created", path))

    async def truncated(self, path: bytes) -> None:
        self.events.append(("truncated", path))

    async def removed(self, path: bytes, is_directory: bool) -> None:
        self.events.append(("removed", path))

    async def renamed(self, old: bytes, new: bytes, *, is_directory: bool, writers: int, exchanged: bool) -> None:
        self.events.append(("renamed", old, new, writers))


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
async def operations(tmp_path: Path, recorder: Recorder) -> AsyncIterator[PassThrough]:
    descriptor = os.open(tmp_path, os.O_RDONLY)
    operations = PassThrough(descriptor, recorder)
    yield operations
    operations.close()
    os.close(descriptor)


@pytest.fixture
def stops(monkeypatch: pytest.MonkeyPatch) -> Stops:
    return Stops(monkeypatch)


async def _number(operations: PassThrough, name: bytes, parent: int = ROOT) -> int:
    return int((await operations.lookup(parent, name, CALLER)).st_ino)


@pytest.mark.trio
async def test_attributes_of_what_is_just_renamed(operations: PassThrough, stops: Stops, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    number = await _number(operations, b"a")
    async with stops.at("renameat2", lambda: operations.rename(ROOT, b"a", ROOT, b"b", 0, CALLER), after=True):
        assert (await operations.getattr(number, CALLER)).st_size == 4
    assert (await operations.getattr(number, CALLER)).st_size == 4


@pytest.mark.trio
async def test_renamed_while_it_is_reached_by_its_old_name(
    operations: PassThrough, stops: Stops, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"data")
    number = await _number(operations, b"a")
    async with stops.at("open", lambda: operations.getattr(number, CALLER)) as getattr_request:
        await operations.rename(ROOT, b"a", ROOT, b"b", 0, CALLER)
    assert getattr_request.result.st_size == 4


@pytest.mark.trio
async def test_renamed_there_and_back_while_it_is_reached(
    operations: PassThrough, stops: Stops, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"data")
    number = await _number(operations, b"a")
    os.rename(tmp_path / "a", tmp_path / "b")
    async with stops.at("open", lambda: operations.getattr(number, CALLER), after=True) as getattr_request:
        os.rename(tmp_path / "b", tmp_path / "a")
        await operations.rename(ROOT, b"a", ROOT, b"b", 0, CALLER)
        await operations.rename(ROOT, b"b", ROOT, b"a", 0, CALLER)
    assert getattr_request.result.st_size == 4


@pytest.mark.trio
async def test_a_directory_renamed_while_the_way_through_it_is_walked(
    operations: PassThrough, stops: Stops, tmp_path: Path
) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/f").write_bytes(b"data")
    outer = await _number(operations, b"a")
    inner = await _number(operations, b"b", outer)
    # Not walked yet: only looked up.
    async with stops.at("open", lambda: operations.lookup(inner, b"f", CALLER)) as lookup:
        await operations.rename(outer, b"b", ROOT, b"c", 0, CALLER)
    assert lookup.result.st_size == 4


@pytest.mark.trio
@pytest.mark.parametrize("change", ["unlink", "replace", "exchange"])
async def test_a_name_changed_while_it_is_looked_up(
    change: str, operations: PassThrough, stops: Stops, tmp_path: Path
) -> None:
    """The kernel lets this happen when it revalidates a name."""
    (tmp_path / "a").write_bytes(b"data")
    (tmp_path / "b").write_bytes(b"other data")
    old, other = await _number(operations, b"a"), await _number(operations, b"b")
    async with stops.at("_status_or_error", lambda: operations.lookup(ROOT, b"a", CALLER), after=True) as lookup:
        if change == "unlink":
            await operations.unlink(ROOT, b"a", CALLER)
        else:
            flags = pyfuse3.RENAME_EXCHANGE if change == "exchange" else 0
            await operations.rename(ROOT, b"b", ROOT, b"a", flags, CALLER)
    assert lookup.result.st_ino == (0 if change == "unlink" else other)
    await operations.forget([(old, 1), (other, 1 if change == "unlink" else 2)])
    assert operations.statistics() == {"inodes": 1, "files": 0, "directories": 0, "descriptors": 0}


@pytest.mark.trio
async def test_both_names_unlinked_at_once(operations: PassThrough, stops: Stops, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    os.link(tmp_path / "a", tmp_path / "b")
    number = await _number(operations, b"a")
    assert await _number(operations, b"b") == number
    async with stops.at("unlink", lambda: operations.unlink(ROOT, b"a", CALLER)):
        await operations.unlink(ROOT, b"b", CALLER)
        assert (await operations.getattr(number, CALLER)).st_nlink == 1
    attributes = await operations.getattr(number, CALLER)
    assert (attributes.st_nlink, attributes.st_size) == (0, 4)
    assert operations.statistics()["descriptors"] == 1
    await operations.forget([(number, 2)])
    assert operations.statistics()["descriptors"] == 0


@pytest.mark.trio
async def test_both_unlinked_and_told_later(operations: PassThrough, stops: Stops, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    os.link(tmp_path / "a", tmp_path / "b")
    number = await _number(operations, b"a")
    await _number(operations, b"b")
    async with stops.at("unlink", lambda: operations.unlink(ROOT, b"a", CALLER), after=True):
        await operations.unlink(ROOT, b"b", CALLER)
        assert (await operations.getattr(number, CALLER)).st_nlink == 0
    assert (await operations.getattr(number, CALLER)).st_nlink == 0
    await operations.forget([(number, 2)])
    assert operations.statistics()["descriptors"] == 0
    await trio.to_thread.run_sync(_wait_until_all_is_closed_in, tmp_path)


def _wait_until_all_is_closed_in(directory: Path) -> None:
    """What was forgotten is closed by a thread that tells nobody."""
    deadline = time.monotonic() + 5
    while any(_target(number).startswith(f"{directory}/") for number in os.listdir("/proc/self/fd")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def _target(number: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except FileNotFoundError:
        return ""


@pytest.mark.trio
async def test_forgotten_while_it_is_looked_up(operations: PassThrough, stops: Stops, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    number = await _number(operations, b"a")
    async with stops.at("_status_or_error", lambda: operations.lookup(ROOT, b"a", CALLER), after=True) as lookup:
        await operations.forget([(number, 1)])
        assert operations.statistics()["inodes"] == 1
    assert lookup.result.st_ino == number
    assert (await operations.getattr(number, CALLER)).st_size == 4
    await operations.forget([(number, 1)])
    assert operations.statistics()["inodes"] == 1


@pytest.mark.trio
async def test_two_names_looked_up_at_once(operations: PassThrough, stops: Stops, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"data")
    os.link(tmp_path / "a", tmp_path / "b")
    async with stops.at("_status_or_error", lambda: operations.lookup(ROOT, b"a", CALLER), after=True) as lookup:
        number = await _number(operations, b"b")
    assert lookup.result.st_ino == number
    await operations.unlink(ROOT, b"b", CALLER)
    assert (await operations.getattr(number, CALLER)).st_nlink == 1
    await operations.forget([(number, 2)])
    assert operations.statistics()["inodes"] == 1


@pytest.mark.trio
async def test_a_directory_in_use_leaves_the_cache(operations: PassThrough, stops: Stops, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used/f").write_bytes(b"data")
    used = await _number(operations, b"used")
    async with stops.at("_status_or_error", lambda: operations.lookup(used, b"f", CALLER)) as lookup:
        for number in range(tree.CACHED_DIRECTORIES + 10):
            (tmp_path / f"d{number}").mkdir()
            directory = await _number(operations, b"d%d" % number)
            assert (await operations.lookup(directory, b"f", CALLER)).st_ino == 0
    assert lookup.result.st_size == 4
    assert operations.statistics()["descriptors"] == tree.CACHED_DIRECTORIES


@pytest.mark.trio
async def test_a_handle_released_while_its_descriptor_is_borrowed(
    operations: PassThrough, stops: Stops, tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(b"data")
    (tmp_path / "b").write_bytes(b"other data")
    first, second = await _number(operations, b"a"), await _number(operations, b"b")
    info = await operations.open(first, os.O_RDONLY, CALLER)
    fields = SimpleNamespace(
        **{f"update_{name}": name == "mode" for name in ("mode", "uid", "gid", "size", "atime", "mtime", "ctime")}
    )
    wanted = pyfuse3.EntryAttributes()
    wanted.st_mode = 0o600
    async with stops.at("set_attributes", lambda: operations.setattr(first, wanted, fields, None, CALLER)):  # type: ignore[arg-type]
        await operations.release(info.fh)
        info = await operations.open(second, os.O_RDONLY, CALLER)
    await operations.release(info.fh)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "b").stat().st_mode & 0o777 == 0o644


@pytest.mark.trio
async def test_a_directory_moved_while_a_file_is_made_in_it(
    operations: PassThrough, stops: Stops, recorder: Recorder, tmp_path: Path
) -> None:
    (tmp_path / "d").mkdir()
    directory = await _number(operations, b"d")
    async with stops.at("make_name", lambda: operations.mkdir(directory, b"new", 0o755, CALLER)):
        await operations.rename(ROOT, b"d", ROOT, b"e", 0, CALLER)
    assert (tmp_path / "e/new").is_dir()
    assert recorder.events == [("renamed", b"d", b"e", 0), ("created", b"e/new")]


@pytest.mark.trio
async def test_the_last_writer_goes_while_its_file_is_renamed(
    operations: PassThrough, stops: Stops, recorder: Recorder
) -> None:
    """Whoever is heard last must leave the new name known as final."""
    info, _ = await operations.create(ROOT, b"a", 0o644, os.O_WRONLY, CALLER)
    async with stops.at("renameat2", lambda: operations.rename(ROOT, b"a", ROOT, b"b", 0, CALLER), after=True):
        await operations.release(info.fh)
    assert recorder.events == [("closed", b"a", 0), ("renamed", b"a", b"b", 0)]


@pytest.mark.trio
async def test_a_listing_that_asks_the_disk_for_everything(
    operations: PassThrough, stops: Stops, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {f"f{number}" for number in range(100)}
    for name in names:
        (tmp_path / name).touch()
    listed: list[str] = []
    limit = 2

    def reply(token: object, name: bytes, entry: pyfuse3.EntryAttributes, position: int) -> bool:
        if len(listed) == limit:
            return False
        listed.append(os.fsdecode(name))
        return True

    monkeypatch.setattr(pyfuse3, "readdir_reply", reply)
    monkeypatch.setattr(listing, "status_in_memory", lambda *_: None)
    handle = await operations.opendir(ROOT, CALLER)
    await operations.readdir(handle, 0, SimpleNamespace())  # type: ignore[arg-type]
    limit = -1
    os.unlink(tmp_path / "f7")
    await operations.readdir(handle, 2, SimpleNamespace())  # type: ignore[arg-type]
    await operations.releasedir(handle)
    assert sorted(listed) == sorted({".", "..", *names} - {"f7"})
