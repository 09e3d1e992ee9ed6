"""A damaged state is set aside and begun anew; a state on a sick or full disk never is."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import lmdb
import pytest

from mirrorfs import own_files
from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.database.environment import examine
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError
from mirrorfs.state.damage import open_state, set_state_aside, stored_identity
from mirrorfs.state.identity import Identity
from mirrorfs.state.problems import Problem
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import State, StateTransaction

IDENTITY = Identity("/mnt/datastore", "bucket", "name")
PATH = "vm/100/2026-01-01T00:00:00Z"
PAGE = 4096


@pytest.fixture
def directory(tmp_path: Path) -> StateDirectory:
    """A state directory with a state of several pages."""
    made = StateDirectory(str(tmp_path / "directory"))
    made.create()
    state = State(made.state)
    state.update(_fill)
    state.close()
    return made


def _fill(transaction: StateTransaction) -> None:
    transaction.identity.set(IDENTITY)
    transaction.chunks.intend(number.to_bytes(32, "big") for number in range(2000))
    transaction.contents.confirm(f"{PATH}/index.json.blob", 5, 6)
    transaction.snapshots.set(PATH, SnapshotState(SnapshotPhase.PUBLISHED, {}, 1.0))
    transaction.problems.set(Problem("name", "reason", 1.0))


def aside(directory: StateDirectory) -> list[str]:
    return sorted(name for name in os.listdir(directory.path) if ".damaged-" in name)


def overwrite(directory: StateDirectory, start: int) -> None:
    path = Path(directory.state, "data.mdb")
    path.write_bytes(path.read_bytes()[:start] + b"\xa5" * (path.stat().st_size - start))


@pytest.mark.parametrize("start", [0, 2 * PAGE, 5 * PAGE])
def test_a_damaged_state_is_set_aside_and_a_new_one_begins(directory: StateDirectory, start: int) -> None:
    overwrite(directory, start)
    state = open_state(directory, doubtful=True)
    assert state.view(lambda transaction: transaction.identity.get()) is None
    state.close()
    assert len(aside(directory)) == 1
    assert Path(directory.path, aside(directory)[0], "data.mdb").read_bytes().endswith(b"\xa5" * PAGE)


def test_damage_that_ends_whoever_reads_it_ends_another_process(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], -11, b"", b"")

    monkeypatch.setattr("mirrorfs.database.environment.subprocess.run", run)
    with pytest.raises(DatabaseCorrupt, match="ended the process"):
        examine(directory.state)


@pytest.mark.parametrize("code", [1, -9, 137])
def test_an_examination_that_came_to_nothing_is_no_damage(
    directory: StateDirectory, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess([], code, b"", b"")

    monkeypatch.setattr("mirrorfs.database.environment.subprocess.run", run)
    with pytest.raises(DatabaseError, match="could not be examined") as caught:
        open_state(directory, doubtful=True)
    assert not isinstance(caught.value, DatabaseCorrupt)
    assert aside(directory) == []


def test_a_sound_state_passes(directory: StateDirectory) -> None:
    assert stored_identity(directory) == IDENTITY
    state = open_state(directory, doubtful=True)
    assert state.view(lambda transaction: transaction.identity.get()) == IDENTITY
    state.close()
    assert aside(directory) == []


def test_a_disk_that_cannot_be_read_costs_no_state(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def sick(*_: object, **__: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(own_files, "open_file", sick)
    with pytest.raises(DatabaseError, match=r"Input/output error.*not given up"):
        set_state_aside(directory, "the database is damaged")
    assert aside(directory) == []
    monkeypatch.undo()
    assert stored_identity(directory) == IDENTITY


def test_a_full_disk_costs_no_state(directory: StateDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> object:
        raise lmdb.DiskError("No space left on device")

    monkeypatch.setattr("mirrorfs.database.environment.lmdb.open", full)
    with pytest.raises(DatabaseError, match="No space left"):
        open_state(directory, doubtful=False)
    assert aside(directory) == []


def test_only_the_newest_are_kept(directory: StateDirectory) -> None:
    for _ in range(5):
        set_state_aside(directory, "the database is damaged")
        State(directory.state).close()
    kept = aside(directory)
    assert len(kept) == 3
    assert Path(directory.state).is_dir()


def _put(database: bytes, key: bytes, value: bytes) -> Callable[[StateDirectory], None]:
    def spoil(directory: StateDirectory) -> None:
        with lmdb.open(directory.state, max_dbs=16) as opened:
            handle = opened.open_db(database)
            with opened.begin(write=True, db=handle) as transaction:
                transaction.put(key, value)

    return spoil


@pytest.mark.parametrize(
    ("spoil", "read"),
    [
        (_put(b"meta", b"identity", b"{"), lambda transaction: transaction.identity.get()),
        (_put(b"meta", b"epochs", b"[]"), lambda transaction: transaction.identity.epochs()),
        (_put(b"meta", b"position", b'{"x": 1}'), lambda transaction: transaction.progress.position()),
        (_put(b"chunks", bytes(32), b"short"), lambda transaction: transaction.chunks.get(bytes(32))),
        (_put(b"chunks", bytes(32), b"short"), lambda transaction: transaction.chunks.after(b"", 1)),
        (_put(b"chunks", bytes(32), b"short"), lambda transaction: transaction.chunks.in_directory(0)),
        (_put(b"contents", b"x", b"\xff\xfe"), lambda transaction: transaction.contents.get("x")),
        (_put(b"contents", b"x", b"null"), lambda transaction: transaction.contents.after("w", 1)),
        (_put(b"snapshots", b"x", b"{}"), lambda transaction: list(transaction.snapshots.all())),
        (_put(b"problems", b"x", struct.pack("<d", 1)), lambda transaction: list(transaction.problems.all())),
    ],
)
def test_an_entry_that_makes_no_sense_is_damage_of_that_state(
    directory: StateDirectory, spoil: Callable[[StateDirectory], None], read: Callable[[StateTransaction], object]
) -> None:
    spoil(directory)
    state = State(directory.state)
    with pytest.raises(DatabaseCorrupt) as caught:
        state.view(read)
    assert caught.value.directory == directory.state
    state.close()


def test_a_lock_tells_how_its_holder_ended(directory: StateDirectory) -> None:
    first = DirectoryLock(directory, "uploader")
    first.acquire()
    assert not first.abandoned
    first.release()
    program = (
        "import os, sys\n"
        "from mirrorfs.database.directory import DirectoryLock, StateDirectory\n"
        "lock = DirectoryLock(StateDirectory(sys.argv[1]), 'uploader')\n"
        "lock.acquire()\n"
        "print(lock.abandoned)\n"
        "os._exit(0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, directory.path], capture_output=True, text=True, check=True, timeout=20
    )
    assert ended.stdout == "False\n"
    second = DirectoryLock(directory, "uploader")
    second.acquire()
    assert second.abandoned
    second.release()
    second.acquire()
    assert not second.abandoned
    second.release()
