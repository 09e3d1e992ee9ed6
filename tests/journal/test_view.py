"""The journal looked at: as its readers see it, without a trace, and of a damaged one all that can be read."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError, NewerFormat, UnfinishedDatabase
from mirrorfs.journal.journal import JournalReader, JournalWriter, Position
from mirrorfs.journal.view import JournalView
from mirrorfs.state.state import State

_PAGE = 4096


@contextmanager
def view_of(directory: Path) -> Iterator[JournalView]:
    view = JournalView(str(directory / "data.mdb"))
    try:
        yield view
    finally:
        view.close()


def make(directory: Path, count: int = 3000) -> None:
    journal = JournalWriter(str(directory))
    for number in range(count):
        journal.append(b"vm/%d" % number)
    journal.close()


def traces(directory: Path) -> dict[str, tuple[bytes, int, int]]:
    """Everything that looking could change."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_mode) for path in directory.iterdir()
    }


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.lists(st.binary(max_size=700), max_size=30), max_size=8), st.integers(0, 60), st.integers(0, 100))
def test_it_sees_what_a_reader_sees(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[bytes]], trimmed: int, after: int
) -> None:
    directory = tmp_path_factory.mktemp("journal")
    journal = JournalWriter(str(directory))
    for batch in batches:
        journal.append_all(batch)
    journal.trim(Position(journal.generation, trimmed))
    with view_of(directory) as view:
        live = list(view.records())
    journal.close()
    reader = JournalReader(str(directory))
    with view_of(directory) as view:
        assert view.generation == reader.generation
        assert view.last_sequence() == reader.last_sequence()
        assert view.read(after, 50) == reader.read(after, 50)
        assert list(view.records()) == live == reader.read(0, 10_000)
        for position in (None, Position(view.generation, after), Position("another", after)):
            assert view.pending(position) == reader.pending(position)
            assert view.oldest_time(position) == reader.oldest_time(position)
        assert view.damages == []
    reader.close()


def test_looking_leaves_no_trace(tmp_path: Path) -> None:
    make(tmp_path)
    os.unlink(tmp_path / "lock.mdb")
    os.chmod(tmp_path, 0o500)
    before = traces(tmp_path)
    with view_of(tmp_path) as view:
        assert sum(1 for _ in view.records()) == 3000
    assert traces(tmp_path) == before


_BUSY_MOUNT = """
import sys
from mirrorfs.journal.journal import JournalWriter, Position
journal = JournalWriter(sys.argv[1])
print("ready", flush=True)
while True:
    sequence = journal.append(b"vm/%d" % (journal.sequence % 5000))
    if sequence % 500 == 0:
        journal.trim(Position(journal.generation, sequence - 2000))
"""


def test_the_journal_of_a_busy_mount_is_read_without_holding_up_its_pages(tmp_path: Path) -> None:
    mount = subprocess.Popen([sys.executable, "-c", _BUSY_MOUNT, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert mount.stdout is not None
        assert mount.stdout.readline() == b"ready\n"
        last = 0
        with view_of(tmp_path) as view:
            while last < 20_000:
                records = list(view.records())
                sequences = [record.sequence for record in records]
                assert sequences == sorted(set(sequences))
                assert all(record.path == b"vm/%d" % ((record.sequence - 1) % 5000) for record in records)
                last = max(sequences, default=0)
            assert view.damages == []
        assert mount.poll() is None
    finally:
        mount.kill()
        mount.communicate()
    assert os.path.getsize(tmp_path / "data.mdb") < 1 << 22


def test_a_damaged_journal_says_where_and_goes_on(tmp_path: Path) -> None:
    make(tmp_path)
    file = tmp_path / "data.mdb"
    content = file.read_bytes()
    length, told = len(content), 0
    for page in range(2, length // _PAGE):
        file.write_bytes(content[: page * _PAGE] + bytes(_PAGE) + content[(page + 1) * _PAGE :])
        with view_of(tmp_path) as view:
            records = list(view.records())
            assert all(record.path == b"vm/%d" % (record.sequence - 1) for record in records)
            assert 3000 - len(records) < 200
            if len(records) < 3000:
                assert view.damages
            for damage in view.damages:
                told += 1
                assert (damage.page, damage.offset, damage.file_length) == (page, page * _PAGE, length)
                assert damage.what == f"page {page} is empty"
                assert 0 <= damage.after <= 3000
    assert told > 20


@pytest.mark.parametrize("share", [0.95, 0.6, 0.2])
def test_a_journal_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, share: float) -> None:
    make(tmp_path)
    file = tmp_path / "data.mdb"
    os.truncate(file, int(os.path.getsize(file) * share))
    with view_of(tmp_path) as view:
        records = list(view.records())
        assert len(records) > 3000 * (share - 0.15)
        assert all(record.path == b"vm/%d" % (record.sequence - 1) for record in records)
        assert view.damages
        assert all(damage.file_length == os.path.getsize(file) for damage in view.damages)


def test_a_newer_format_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path, 3)
    environment = lmdb.open(str(tmp_path), max_dbs=4)
    with environment.begin(write=True, db=environment.open_db(b"format")) as transaction:
        transaction.put(b"format", b"7")
    environment.close()
    with pytest.raises(NewerFormat, match="has format 7, this mirrorfs knows up to 1"):
        JournalView(str(tmp_path / "data.mdb"))


def test_what_is_no_journal_is_said_to_be_none(tmp_path: Path) -> None:
    State(str(tmp_path / "state")).close()
    with pytest.raises(DatabaseError, match="is not a journal"):
        JournalView(str(tmp_path / "state" / "data.mdb"))
    file = tmp_path / "data.mdb"
    file.write_bytes(b"text" * 10_000)
    with pytest.raises(DatabaseCorrupt, match="nothing of it can be read"):
        JournalView(str(file))
    lmdb.open(str(tmp_path / "new")).close()
    with pytest.raises(UnfinishedDatabase, match="never used"):
        JournalView(str(tmp_path / "new" / "data.mdb"))


def test_records_beyond_the_newest_are_told_and_read(tmp_path: Path) -> None:
    make(tmp_path, 5)
    environment = lmdb.open(str(tmp_path), max_dbs=4)
    with environment.begin(write=True, db=environment.open_db(b"meta")) as transaction:
        transaction.put(b"sequence", (3).to_bytes(8, "big"))
    environment.close()
    with view_of(tmp_path) as view:
        assert [record.sequence for record in view.records()] == [1, 2, 3, 4, 5]
        assert [(damage.after, damage.page) for damage in view.damages] == [(3, None)]
