"""Which calls become records, which renames wait, and what happens when the journal cannot be written."""

from __future__ import annotations

import errno
import os
import signal
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from mirrorfs.database.environment import Environment
from mirrorfs.database.errors import DatabaseError
from mirrorfs.filesystem.interception import Durability, Interception
from mirrorfs.journal.journal import JournalReader, JournalWriter

pytestmark = pytest.mark.trio

SNAPSHOT = b"ns/a/vm/100/2026-01-01T00:00:00Z"
MANIFEST = SNAPSHOT + b"/index.json.blob"
INDEX = SNAPSHOT + b"/drive.img.fidx"
DIGEST = b"ab12" + b"0" * 60
CHUNK = b".chunks/ab12/" + DIGEST
TEMPORARY = (
    INDEX[:-4] + b"tmp_fidx",
    MANIFEST + b".tmp_aB3dE6",
    CHUNK + b".tmp",
    b".lock",
    b".gc-status",
    b"vm/100/.x.lck",
)
FILE, DIRECTORY = stat.S_IFREG | 0o644, stat.S_IFDIR | 0o755


class SpiedDurability(Durability):
    """Counts instead of syncing."""

    def __init__(self) -> None:
        self.reached = 0

    async def reach(self) -> None:
        await trio.lowlevel.checkpoint()
        self.reached += 1


class Scene:
    """An interception with a real journal."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.journal = JournalWriter(str(directory))
        self.durability = SpiedDurability()
        self.wakes = 0
        self.conditions: list[float | None] = []
        self.healed = trio.Event()
        self.interception = Interception(self.journal, self.durability, self._wake, self._hear)

    def _wake(self) -> None:
        self.wakes += 1

    async def rename(self, old: bytes, new: bytes, *, is_directory: bool = False, writers: int = 0) -> None:
        await self.interception.renamed(old, new, is_directory=is_directory, writers=writers, exchanged=False)

    def _hear(self, broken_since: float | None) -> None:
        self.conditions.append(broken_since)
        if broken_since is None:
            self.healed.set()

    async def repaired(self) -> None:
        """Returns when the repair has been done."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.interception.keep_repairing)
            with trio.fail_after(20):
                await self.healed.wait()
            nursery.cancel_scope.cancel()

    def records(self) -> list[bytes]:
        """The names in the journal, which ends with this."""
        self.journal.close()
        reader = JournalReader(str(self.directory))
        try:
            return [record.path for record in reader.read(0, 1000)]
        finally:
            reader.close()

    def journal_size(self) -> int:
        """In bytes, on the disk."""
        return os.stat(self.directory / "data.mdb").st_blocks * 512


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


async def test_a_chunk_is_recorded_when_its_last_writer_has_gone(scene: Scene) -> None:
    temporary = b".chunks/ab12/" + DIGEST + b".tmp_XyZ123"
    await scene.interception.writer_opened(7)
    await scene.rename(temporary, CHUNK, writers=1)
    assert scene.journal.sequence == 0
    await scene.interception.writer_closed(7, [CHUNK], 1)
    assert scene.journal.sequence == 0
    await scene.interception.writer_closed(7, [CHUNK], 0)
    assert scene.records() == [CHUNK]
    assert scene.wakes == 1
    assert scene.durability.reached == 0


async def test_a_chunk_renamed_without_a_writer_is_recorded_at_once(scene: Scene) -> None:
    await scene.rename(CHUNK + b".tmp_XyZ123", CHUNK)
    assert scene.records() == [CHUNK]


@pytest.mark.parametrize(
    "path",
    [INDEX[:-4] + b"tmp_fidx", MANIFEST + b".tmp_aB3dE6", b".lock", b".gc-status", b"vm/100/.x.lck", CHUNK + b".tmp"],
)
async def test_temporary_names_leave_no_trace(scene: Scene, path: bytes) -> None:
    await scene.interception.writer_closed(7, [path], 0)
    await scene.interception.truncated(path)
    await scene.interception.created(path, FILE)
    await scene.interception.removed(path, False)
    await scene.rename(path, path + b".tmp")
    assert scene.records() == []
    assert scene.wakes == 0


async def test_directories(scene: Scene) -> None:
    for path in (b".chunks", b".chunks/ab12", b"ns", b"ns/a/ns"):
        await scene.interception.created(path, DIRECTORY)
        await scene.interception.removed(path, True)
    for path in (b"ns/a", b"ns/a/vm", b"ns/a/vm/100", SNAPSHOT):
        await scene.interception.created(path, DIRECTORY)
    await scene.interception.removed(SNAPSHOT, True)
    assert scene.records() == [b"ns/a", b"ns/a/vm", b"ns/a/vm/100", SNAPSHOT]


async def test_a_directory_that_moves_is_recorded_under_both_names(scene: Scene) -> None:
    await scene.rename(b"vm/100", b"ns/a/vm/100", is_directory=True)
    await scene.rename(b"ns/a", b"ns/b", is_directory=True, writers=0)
    await scene.rename(b"ns/b/ns", b"ns/c/ns", is_directory=True)
    await scene.rename(b".chunks/ab12", b".chunks/ab13", is_directory=True)
    assert scene.records() == [b"vm/100", b"ns/a/vm/100", b"ns/a", b"ns/b", b"ns/b/ns", b"ns/c/ns"]


async def test_files_made_under_their_final_name(scene: Scene) -> None:
    await scene.interception.writer_closed(1, [b"vm/100/owner"], 0)
    await scene.interception.created(SNAPSHOT + b"/.protected", FILE)
    await scene.interception.removed(SNAPSHOT + b"/.protected", False)
    await scene.interception.truncated(INDEX)
    await scene.interception.writer_closed(2, [], 0)
    await scene.interception.writer_closed(3, [b"lost+found"], 0)
    assert scene.records() == [b"vm/100/owner", SNAPSHOT + b"/.protected", INDEX, b"lost+found"]


async def test_a_quarantined_chunk_and_a_file_that_is_hidden(scene: Scene) -> None:
    await scene.rename(CHUNK, CHUNK + b".0.bad")
    await scene.rename(INDEX, SNAPSHOT + b"/drive.img.tmp_fidx")
    await scene.interception.renamed(CHUNK + b"x", INDEX, is_directory=False, writers=2, exchanged=True)
    assert scene.records() == [CHUNK, CHUNK + b".0.bad", CHUNK + b"x", INDEX]


@pytest.mark.parametrize("writers", [0, 1])
async def test_the_rename_of_a_manifest_waits_for_the_disk(scene: Scene, writers: int) -> None:
    await scene.rename(SNAPSHOT + b"/index.json.tmp_aB3dE6", MANIFEST, writers=writers)
    assert scene.durability.reached == 1
    assert scene.records() == [MANIFEST]


async def test_no_other_rename_waits(scene: Scene) -> None:
    await scene.rename(SNAPSHOT + b"/drive.img.tmp_fidx", INDEX)
    await scene.rename(MANIFEST, SNAPSHOT + b"/index.json.tmp_aB3dE6")
    await scene.rename(b"lost", b"index.json.blob")
    assert scene.durability.reached == 0


async def test_a_journal_that_fails_fails_no_call_and_is_made_good(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "update", _disk_full)
        await scene.rename(CHUNK + b".tmp_XyZ123", CHUNK)
        assert len(scene.conditions) == 1
        assert scene.conditions[0] is not None, "it must be known before the call is answered"
        await scene.rename(SNAPSHOT + b"/index.json.tmp_aB3dE6", MANIFEST)
        assert scene.interception.broken
    assert scene.durability.reached == 1
    assert scene.wakes == 0
    await scene.repaired()
    await scene.interception.writer_closed(1, [b"vm/100/notes"], 0)
    assert scene.wakes == 2
    assert scene.conditions[1:] == [None]
    assert scene.records() == [b"", b"vm/100/notes"]


def _disk_full(*_: object) -> None:
    raise DatabaseError("no space left on device")


async def test_a_quiet_datastore_is_made_good_with_growing_patience(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    delays: list[float] = []

    async def sleep(seconds: float) -> None:
        delays.append(seconds)
        if len(delays) == 8:
            broken.undo()
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(trio, "sleep", sleep)
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(Environment, "update", _disk_full)
        await scene.interception.removed(MANIFEST, False)
        await scene.repaired()
    assert delays == [1, 2, 4, 8, 16, 30, 30, 30]
    assert caplog.text.count("still cannot be written") == 1
    assert scene.wakes == 1
    assert scene.records() == [b""]


async def test_what_is_missed_during_the_repair_is_covered_by_another_look(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(Environment, "update", _disk_full)
        await scene.interception.removed(MANIFEST, False)
    original = JournalWriter.append

    def append(journal: JournalWriter, path: bytes) -> int:
        sequence = original(journal, path)
        trio.from_thread.run(scene.interception.removed, INDEX, False)
        return sequence

    monkeypatch.setattr(JournalWriter, "append", append)
    await scene.repaired()
    assert scene.journal.sequence == 2, "the uploader may have begun to look before"
    assert scene.records() == [b""]


async def test_a_journal_that_lmdb_gave_up_is_opened_anew(scene: Scene) -> None:
    await scene.interception.removed(INDEX, False)
    scene.journal._environment._environment.close()
    await scene.interception.removed(MANIFEST, False)
    assert scene.interception.broken
    await scene.repaired()
    await scene.interception.removed(CHUNK, False)
    assert scene.records() == [INDEX, b"", CHUNK]


_KILLED_IN_REPAIR = """
import sys
from pathlib import Path
import trio
from tests.journal.test_interception import INDEX, MANIFEST, Scene

async def main():
    scene = Scene(Path(sys.argv[1]))
    await scene.interception.removed(INDEX, False)
    scene.journal._environment._environment.close()
    await scene.interception.removed(MANIFEST, False)
    await scene.repaired()

trio.run(main)
"""


@pytest.mark.parametrize(
    "step", ["repair.before-record", "repair.before-reopen", "repair.after-reopen", "repair.recorded"]
)
async def test_killed_while_the_journal_is_repaired(tmp_path: Path, step: str) -> None:
    """What was recorded before is there, and the next mount, which looks at everything anyway, goes on with it."""
    directory, armed = tmp_path / "journal", tmp_path / "step"
    armed.write_text(f"{step} 1")
    killed = await trio.run_process(
        [sys.executable, "-c", _KILLED_IN_REPAIR, str(directory)],
        env={**os.environ, "MIRRORFS_STEP_FILE": str(armed), "PYTHONPATH": str(Path(__file__).parents[2])},
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    scene = Scene(directory)
    await scene.interception.removed(CHUNK, False)
    assert scene.records() == [INDEX, *([b""] if step == "repair.recorded" else []), CHUNK]


class Disk:
    """Stands in for syncfs: counts rounds, and has the first ones wait or fail."""

    def __init__(self) -> None:
        self.rounds = 0
        self.begun = threading.Event()
        self.go_on = threading.Event()
        self.fails_first = False

    def sync(self, _: int) -> None:
        self.rounds += 1
        number = self.rounds
        self.begun.set()
        assert self.go_on.wait(10)
        if self.fails_first and number == 1:
            raise OSError(errno.EIO, "Input/output error")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr("mirrorfs.filesystem.interception.syncfs", disk.sync)
    return disk


@pytest.fixture
def durability(tmp_path: Path) -> Iterator[Durability]:
    journal = JournalWriter(str(tmp_path))
    yield Durability(-1, journal)
    journal.close()


async def test_all_who_wait_share_the_next_round(disk: Disk, durability: Durability) -> None:
    ended: list[int] = []

    async def reach(name: int) -> None:
        await durability.reach()
        ended.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reach, 0)
        await trio.to_thread.run_sync(disk.begun.wait)
        for name in range(1, 8):
            nursery.start_soon(reach, name)
        await trio.testing.wait_all_tasks_blocked()
        assert ended == []
        disk.go_on.set()
    # The round under way may have missed what the later ones had written.
    assert disk.rounds == 2
    assert sorted(ended) == list(range(8))
    await durability.reach()
    assert disk.rounds == 3


async def test_all_file_systems_of_the_datastore_are_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr("mirrorfs.filesystem.interception.syncfs", synced.append)
    journal = JournalWriter(str(tmp_path))
    await Durability(3, journal, [4, 5]).reach()
    journal.close()
    assert synced == [3, 4, 5]


async def test_a_failed_disk_is_told_to_all_who_wait(disk: Disk, durability: Durability) -> None:
    disk.fails_first = True
    failed = 0

    async def reach() -> None:
        nonlocal failed
        with pytest.raises(OSError, match="Input/output error") as failure:
            await durability.reach()
        assert failure.value.errno == errno.EIO
        failed += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(reach)
        await trio.to_thread.run_sync(disk.begun.wait)
        nursery.start_soon(reach)
        nursery.start_soon(reach)
        await trio.testing.wait_all_tasks_blocked()
        disk.go_on.set()
    assert failed == 3
    await durability.reach()


async def test_the_journal_is_on_the_disk_too(
    disk: Disk, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    disk.go_on.set()
    monkeypatch.setattr("mirrorfs.filesystem.interception.syncfs", lambda _: order.append("data"))
    monkeypatch.setattr(JournalWriter, "sync", journal_sync(order))
    await durability.reach()
    assert order == ["data", "journal"]


def journal_sync(order: list[str]) -> Callable[[JournalWriter], None]:
    def sync(_: JournalWriter) -> None:
        order.append("journal")
        raise DatabaseError("the journal's disk is full")

    return sync


async def test_a_foreign_tree_is_one_record_however_deep_and_large(scene: Scene) -> None:
    deep = b"mine/" + b"d" * 250 + b"/" + b"x/" * 2000
    for number in range(500):
        await scene.interception.created(deep + b"%0250d" % number, DIRECTORY)
        await scene.interception.writer_closed(number, [deep + b"file %d" % number], 0)
    await scene.rename(deep + b"file 1", deep + b"file 2")
    await scene.interception.removed(deep + b"file 3", False)
    # Each that lies in a directory of the datastore itself counts.
    await scene.interception.writer_closed(1, [b"vm/100/mine/a"], 0)
    await scene.interception.writer_closed(2, [b"vm/100/b c"], 0)
    assert scene.records() == [b"mine", b"vm/100/mine", b"vm/100/b c"]
    assert scene.journal_size() < 2**20


async def test_what_leaves_a_foreign_directory_is_recorded_under_its_new_name(scene: Scene) -> None:
    await scene.rename(b"mine/a/b", INDEX)
    await scene.rename(CHUNK, b"other/a/c")
    assert scene.records() == [b"mine", INDEX, CHUNK, b"other"]


async def test_what_lies_in_a_temporary_directory_is_not_recorded(scene: Scene) -> None:
    await scene.interception.writer_closed(1, [b"vm/100/x.tmp/a/b"], 0)
    assert scene.records() == []
