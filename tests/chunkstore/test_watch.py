"""Hearing what changes: a real kernel, a real file system, and what happens when either fails."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import trio

from mirrorfs.chunkstore import directories, possibility, watch
from mirrorfs.chunkstore.directories import Directories, Place
from mirrorfs.chunkstore.possibility import NativeImpossible, check_file_system, prepare_mount
from mirrorfs.chunkstore.system_calls import handle_of
from mirrorfs.chunkstore.watch import CHUNKS, Watch, WatchLost
from mirrorfs.filesystem.mount_table import file_system_type_of

pytestmark = pytest.mark.trio

NAME = "ab12" + "0" * 60
CHUNK = f".chunks/ab12/{NAME}".encode()


class Scene:
    """A chunk store that is watched."""

    def __init__(self, base: Path) -> None:
        self.chunks = base / ".chunks"
        self.directory = self.chunks / "ab12"
        self.directory.mkdir(parents=True)
        self.descriptor = os.open(self.chunks, os.O_RDONLY | os.O_DIRECTORY)
        self.recorded: list[bytes] = []
        self.gone = 0
        self.watch = self.new_watch()

    def new_watch(self) -> Watch:
        return Watch(self.descriptor, record=self.record, directory_gone=self.directory_gone)

    def record(self, paths: Sequence[bytes]) -> None:
        self.recorded += paths

    def directory_gone(self) -> None:
        self.gone += 1

    async def told(self) -> list[bytes]:
        """What is recorded of all that has happened since the last call."""
        await self.watch.catch_up()
        recorded, self.recorded = self.recorded, []
        return recorded


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    """A watched chunk store with one directory."""
    made = Scene(tmp_path)
    yield made
    made.watch.close()
    os.close(made.descriptor)


def insert(path: Path) -> None:
    with open(f"{path}.tmp_aB3dE6", "wb") as file:
        file.write(b"chunk")
        os.rename(file.name, path)


def append(path: str) -> None:
    with open(path, "ab") as file:
        file.write(b"more")


def read(path: str) -> bytes:
    return Path(path).read_bytes()


def fail_with(number: int) -> Callable[..., int]:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    return fail


async def test_each_change_of_a_chunk_is_told(scene: Scene) -> None:
    path = scene.directory / NAME
    insert(path)
    assert await scene.told() == [CHUNK]
    path.rename(f"{path}.0.bad")
    assert await scene.told() == [CHUNK, CHUNK + b".0.bad"]
    os.link(f"{path}.0.bad", path)
    assert await scene.told() == [CHUNK]
    path.unlink()
    assert await scene.told() == [CHUNK]
    append(f"{path}.0.bad")
    assert await scene.told() == [CHUNK + b".0.bad"]
    path.with_name(f"{NAME}.tmp_aB3dE6").touch()
    os.utime(f"{path}.0.bad")
    assert read(f"{path}.0.bad") == b"chunkmore"
    assert await scene.told() == []
    assert scene.gone == 0


async def test_what_waits_in_the_kernel_is_counted(scene: Scene) -> None:
    # There are others on this file system, whose events wait too.
    insert(scene.directory / NAME)
    assert scene.watch.queued() > 0


async def test_what_lies_elsewhere_is_not_told(scene: Scene, tmp_path: Path) -> None:
    for directory in (tmp_path / "ab12", scene.chunks / "not-a-chunk-directory", scene.directory / "ab12"):
        directory.mkdir()
        insert(directory / NAME)
    insert(scene.chunks / NAME)
    assert await scene.told() == []


async def test_a_directory_that_goes_is_told_and_has_names_compared(scene: Scene) -> None:
    insert(scene.directory / NAME)
    (scene.directory / NAME).unlink()
    scene.directory.rmdir()
    (scene.chunks / "vm").mkdir()
    (scene.chunks / "vm").rmdir()
    assert (await scene.told())[-1] == CHUNKS
    assert scene.gone == 1


async def test_a_following_watch_records_by_itself(scene: Scene) -> None:
    heard = trio.Event()

    def record(paths: Sequence[bytes]) -> None:
        scene.record(paths)
        if paths:
            heard.set()

    own = Watch(scene.descriptor, record=record, directory_gone=scene.directory_gone)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own.follow)
        insert(scene.directory / NAME)
        with trio.fail_after(20):
            await heard.wait()
        nursery.cancel_scope.cancel()
    own.close()
    assert scene.recorded == [CHUNK]


async def test_catching_up_ends_though_changes_do_not(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is about what has happened before; who never stops changing chunks must not hold it up."""
    insert(scene.directory / NAME)
    read = os.read

    def read_and_change(descriptor: int, length: int) -> bytes:
        data = read(descriptor, length)
        insert(scene.directory / NAME)
        return data

    monkeypatch.setattr(os, "read", read_and_change)
    with trio.fail_after(20):
        assert await scene.told() == [CHUNK]


async def test_a_failed_read_loses_the_watch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(scene.directory / NAME)
    monkeypatch.setattr(os, "read", fail_with(errno.EIO))
    with pytest.raises(WatchLost, match="cannot be read"):
        await scene.told()


async def test_events_that_are_not_understood_lose_the_watch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(scene.directory / NAME)
    monkeypatch.setattr(os, "read", lambda *_: bytes(100))
    with pytest.raises(WatchLost, match="not understood"):
        await scene.told()


async def test_a_lost_mark_loses_the_watch(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "fanotify_mark_file_system", lambda *_: None)
    unmarked = scene.new_watch()
    with pytest.raises(WatchLost, match="any more"):
        await unmarked.catch_up()
    unmarked.close()


async def test_where_it_cannot_be_told_where_names_are_compared(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    insert(scene.directory / NAME)
    with monkeypatch.context() as patch:
        patch.setattr(directories, "open_by_handle", fail_with(errno.EIO))
        assert await scene.told() == [CHUNKS]
    insert(scene.directory / NAME)
    assert await scene.told() == [CHUNK]


# -- whether it can be -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "number", "words"),
    [
        ("fanotify_group", errno.ENOSYS, "does not have the system call"),
        ("fanotify_group", errno.EINVAL, "too old"),
        ("fanotify_group", errno.EPERM, "CAP_SYS_ADMIN"),
        ("fanotify_group", errno.EMFILE, "limit"),
        ("fanotify_mark_file_system", errno.EPERM, "CAP_SYS_ADMIN"),
        ("fanotify_mark_file_system", errno.ENODEV, "the file system cannot"),
        ("fanotify_mark_file_system", errno.EXDEV, "the file system cannot"),
        ("fanotify_mark_file_system", errno.EOPNOTSUPP, "the file system cannot"),
        ("handle_of", errno.EOPNOTSUPP, "the file system cannot"),
    ],
)
async def test_what_is_missing_is_said_and_nothing_stays_open(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, call: str, number: int, words: str
) -> None:
    monkeypatch.setattr(watch, call, fail_with(number))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NativeImpossible, match=words):
        scene.new_watch()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(("call", "name"), [("clone_mount", "open_tree"), ("set_mount_attributes", "mount_setattr")])
async def test_a_kernel_without_the_calls_for_mounts_is_named(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, call: str, name: str
) -> None:
    monkeypatch.setattr(possibility, call, fail_with(errno.ENOSYS))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(NativeImpossible, match=f"{name}.*does not have the system call"):
        prepare_mount(scene.descriptor, 0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "ceph", "9p"])
async def test_a_file_system_that_others_change_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    check_file_system(scene.descriptor)
    monkeypatch.setattr(possibility, "file_system_type_of", lambda _: kind)
    with pytest.raises(NativeImpossible, match=f"it is on {kind}"):
        check_file_system(scene.descriptor)


async def test_the_type_of_a_file_system_is_found(scene: Scene) -> None:
    memory = os.open("/dev/shm", os.O_RDONLY | os.O_DIRECTORY)
    process = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        assert file_system_type_of(memory) == "tmpfs"
        assert file_system_type_of(process) == "proc"
    finally:
        os.close(memory)
        os.close(process)


async def test_directories_are_known_by_their_handles(scene: Scene, tmp_path: Path) -> None:
    found = Directories(scene.descriptor)
    handles = []
    for path in (scene.chunks, scene.directory, tmp_path):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        handles.append(handle_of(descriptor))
        os.close(descriptor)
    assert found.unknown(handles) == handles
    found.find_out(handles)
    assert [found.place(handle) for handle in handles] == [Place.ROOT, Place.CHUNKS, Place.ELSEWHERE]
    assert found.unknown(handles) == []
