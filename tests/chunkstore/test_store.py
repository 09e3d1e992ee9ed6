"""How a chunk store goes back to FUSE by itself: what it says, what it records, and in which order."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs.chunkstore import attachment, store, watch
from mirrorfs.chunkstore.place import Choice, InUse
from mirrorfs.chunkstore.possibility import NativeImpossible
from mirrorfs.chunkstore.store import ChunkStore
from mirrorfs.chunkstore.watch import CHUNKS

pytestmark = pytest.mark.trio

NATIVE = InUse(True, "")


class Scene:
    """A datastore whose chunk store is attached by a stub; `happened` tells in which order."""

    def __init__(self, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.datastore = base
        (base / ".chunks" / "ab12").mkdir(parents=True)
        self.root = os.open(base, os.O_RDONLY | os.O_DIRECTORY)
        self.happened: list[object] = []
        self.refusal: str | None = None
        self.news = trio.Event()
        monkeypatch.setattr(attachment, "attach", self._attach)
        monkeypatch.setattr(attachment, "detach", self._detach)

    async def _attach(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusal is not None:
            raise NativeImpossible(self.refusal)
        self.happened.append("attached")

    async def _detach(self, *_: object) -> None:
        await trio.lowlevel.checkpoint()
        self.happened.append("detached")

    def record(self, paths: Sequence[bytes]) -> None:
        self.happened += paths

    def changed(self, in_use: InUse) -> None:
        self.happened.append(in_use)
        self.news.set()
        self.news = trio.Event()

    @asynccontextmanager
    async def running(self, choice: Choice = Choice.AUTO) -> AsyncIterator[ChunkStore]:
        """A chunk store that is attached, if it can be."""
        chunk_store = ChunkStore(choice, "/mnt/datastore", self.root)
        chunk_store.prepare()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(chunk_store.run, self.record, self.changed)
            await trio.testing.wait_all_tasks_blocked()
            await chunk_store.attach()
            self.happened.clear()
            yield chunk_store
            nursery.cancel_scope.cancel()
        await chunk_store.finish()


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    """A scene with one directory of chunks, on a file system of its own: events of all of one are heard."""
    place = tmp_path / "datastore"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "scene", str(place)], check=True, timeout=20)
    try:
        made = Scene(place, monkeypatch)
        before = len(os.listdir("/proc/self/fd"))
        yield made
        after = len(os.listdir("/proc/self/fd"))
        os.close(made.root)
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=20)
    assert after == before, "descriptors stay open"


def fail(*_: object) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


async def test_a_collection_has_names_compared_while_it_is_watched(scene: Scene) -> None:
    async with scene.running() as chunk_store:
        assert chunk_store.in_use == NATIVE
        chunk_store.appeared(b".gc-status.tmp_aB3dE6")
        chunk_store.appeared(b"vm/100")
        assert scene.happened == []
        chunk_store.appeared(b".gc-status")
        assert scene.happened == [CHUNKS]
    async with scene.running(Choice.FUSE) as chunk_store:
        chunk_store.appeared(b".gc-status")
        assert scene.happened == []


async def test_a_watch_that_is_lost_is_made_anew_and_names_are_compared(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with scene.running() as chunk_store:
        (scene.datastore / ".chunks" / "ab12" / ("ab12" + "0" * 60)).touch()
        await chunk_store.catch_up()
        scene.happened.clear()
        with monkeypatch.context() as patch:
            patch.setattr(watch, "queued_events", fail)
            await chunk_store.catch_up()
        assert scene.happened == [CHUNKS]
        assert chunk_store.in_use == NATIVE
        assert "not heard of any more" in caplog.text
        # The new one works.
        (scene.datastore / ".chunks" / "ab12" / ("ab12" + "1" * 60)).touch()
        await chunk_store.catch_up()
        assert scene.happened == [CHUNKS, b".chunks/ab12/ab12" + b"1" * 60]


async def test_a_watch_that_never_worked_is_not_made_again_and_again(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene.running() as chunk_store:
        monkeypatch.setattr(watch, "queued_events", fail)
        await chunk_store.catch_up()
        # Compared last: what is changed through FUSE from then on is recorded by itself.
        *_, detached, in_use, compared = scene.happened
        assert (detached, compared) == ("detached", CHUNKS)
        assert isinstance(in_use, InUse)
        assert not in_use.is_native
        assert "not heard of" in in_use.reason
        chunk_store.appeared(b".gc-status")
        assert scene.happened[-1] == CHUNKS
        assert len(scene.happened) == 3


async def test_a_watch_that_cannot_be_made_anew_ends_with_fuse(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene.running() as chunk_store:
        (scene.datastore / ".chunks" / "ab12" / ("ab12" + "0" * 60)).touch()
        await chunk_store.catch_up()
        scene.happened.clear()
        monkeypatch.setattr(watch, "queued_events", fail)
        monkeypatch.setattr(watch, "fanotify_group", fail)
        await chunk_store.catch_up()
        assert scene.happened[0] == "detached"
        assert scene.happened[-1] == CHUNKS
        assert "fanotify_init" in chunk_store.in_use.reason


@pytest.mark.parametrize("choice", [Choice.AUTO, Choice.NATIVE])
async def test_what_cannot_be_watched_is_refused_only_if_native_is_demanded(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, choice: Choice
) -> None:
    monkeypatch.setattr(watch, "fanotify_group", fail)
    chunk_store = ChunkStore(choice, "/mnt/datastore", scene.root)
    if choice is Choice.NATIVE:
        with pytest.raises(NativeImpossible, match="fanotify_init"):
            chunk_store.prepare()
        return
    chunk_store.prepare()
    assert not chunk_store.may_be_native
    assert "fanotify_init" in chunk_store.in_use.reason
    assert caplog.text.count("chunks pass through FUSE") == 1


async def test_what_cannot_be_attached_passes_through_fuse(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.refusal = "it cannot be attached (move_mount): no"
    async with scene.running() as chunk_store:
        assert chunk_store.in_use == InUse(False, scene.refusal)
        assert caplog.text.count("chunks pass through FUSE") == 1
        assert not chunk_store.may_be_native


async def test_a_directory_that_goes_gives_it_back_and_a_new_one_is_attached(scene: Scene) -> None:
    async with scene.running() as chunk_store:
        (scene.datastore / ".chunks" / "ab12").rmdir()
        with trio.fail_after(20):
            while chunk_store.in_use == NATIVE:
                await scene.news.wait()
            await trio.testing.wait_all_tasks_blocked()
        assert scene.happened == [CHUNKS, InUse(False, "a directory of it was removed"), "detached"]
        (scene.datastore / ".chunks").rmdir()
        (scene.datastore / ".chunks").mkdir()
        scene.happened.clear()
        chunk_store.appeared(CHUNKS)
        with trio.fail_after(20):
            while chunk_store.in_use != NATIVE:
                await scene.news.wait()
        assert scene.happened == [CHUNKS, "attached", NATIVE]


async def test_it_waits_for_a_datastore_that_has_no_chunks_yet(scene: Scene) -> None:
    (scene.datastore / ".chunks" / "ab12").rmdir()
    (scene.datastore / ".chunks").rmdir()
    async with scene.running() as chunk_store:
        assert chunk_store.in_use == store._NO_CHUNKS_YET
        assert chunk_store.may_be_native
        # It may have gone again before anybody looks.
        chunk_store.appeared(CHUNKS)
        await trio.testing.wait_all_tasks_blocked()
        assert chunk_store.in_use == store._NO_CHUNKS_YET
        (scene.datastore / ".chunks").mkdir()
        chunk_store.appeared(CHUNKS)
        with trio.fail_after(20):
            while chunk_store.in_use != NATIVE:
                await scene.news.wait()


async def test_what_is_queued_at_the_end_is_recorded(scene: Scene) -> None:
    async with scene.running():
        pass
    async with scene.running() as chunk_store:
        # Its reader has ended by the time it happens.
        assert chunk_store.in_use == NATIVE
    name = "ab12" + "0" * 60
    chunk_store = ChunkStore(Choice.AUTO, "/mnt/datastore", scene.root)
    chunk_store.prepare()
    with trio.CancelScope() as scope:
        scope.cancel()
        await chunk_store.run(scene.record, scene.changed)
    scene.happened.clear()
    (scene.datastore / ".chunks" / "ab12" / name).touch()
    await chunk_store.finish()
    assert scene.happened == [f".chunks/ab12/{name}".encode()]
