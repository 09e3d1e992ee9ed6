"""The journal: nothing that was appended is lost, one record a name, and distrust where it is due."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import lmdb
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from mirrorfs.database.environment import Environment
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError, NewerFormat
from mirrorfs.journal.journal import JournalReader, JournalWriter, Position, Record
from tests.database.processes import reader_of, run_and_kill

LONG = b"vm/100/" + b"x" * 600
NAMES = (
    b"",
    b"vm/100",
    b"vm/1",
    LONG,
    LONG + b"y",
    b"z" * 4096,
    b"z" * 4095 + b"\xff",
    bytes(range(1, 47)),
    b"n" * 500,
)
DAMAGES = ("garbage", "one page", "two pages", "third", "two thirds", "zeros at the end", "format")


def all_records(directory: Path) -> list[Record]:
    reader = JournalReader(str(directory))
    try:
        return reader.read(0, 1_000_000)
    finally:
        reader.close()


def pairs(directory: Path) -> list[tuple[int, bytes]]:
    return [(record.sequence, record.path) for record in all_records(directory)]


class JournalModel(RuleBasedStateMachine):
    """A journal against a dictionary: name to the sequence of its latest record."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="mirrorfs-journal-"))
        self.journal = JournalWriter(str(self.directory))
        self.generation = self.journal.generation
        self.latest: dict[bytes, int] = {}
        self.sequence = 0

    @rule(names=st.lists(st.sampled_from(NAMES), max_size=6))
    def append(self, names: list[bytes]) -> None:
        last = self.journal.append_all(names)
        for name in names:
            self.sequence += 1
            self.latest[name] = self.sequence
        assert last == self.sequence

    @rule(distance=st.integers(0, 8))
    def trim(self, distance: int) -> None:
        limit = self.sequence - distance
        self.journal.trim(Position(self.generation, max(0, limit)))
        self.latest = {name: sequence for name, sequence in self.latest.items() if sequence > limit}

    @rule()
    def trim_of_another_generation(self) -> None:
        self.journal.trim(Position("another", self.sequence))

    @rule(after=st.integers(0, 12), maximum=st.integers(1, 4))
    def close_look_and_open(self, after: int, maximum: int) -> None:
        self.journal.close()
        expected = sorted((sequence, name) for name, sequence in self.latest.items())
        reader = JournalReader(str(self.directory))
        found = [(record.sequence, record.path) for record in reader.read(0, 1_000_000)]
        part = [(record.sequence, record.path) for record in reader.read(after, maximum)]
        beyond = [pair for pair in expected if pair[0] > after]
        position = Position(self.generation, after)
        assert found == expected
        assert part == beyond[:maximum]
        assert reader.pending(position) == len(beyond)
        assert reader.pending(Position("another", after)) == len(expected)
        assert (reader.oldest_time(position) is None) == (not beyond)
        assert reader.last_sequence() == self.sequence
        assert reader.generation == self.generation
        reader.close()
        self.journal = JournalWriter(str(self.directory))

    @invariant()
    def counts_on(self) -> None:
        assert self.journal.sequence == self.sequence
        assert self.journal.generation == self.generation
        assert self.journal.distrusted is None

    def teardown(self) -> None:
        self.journal.close()
        shutil.rmtree(self.directory)


TestJournalModel = JournalModel.TestCase
TestJournalModel.settings = settings(
    max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


def test_trimming_goes_through_any_number_of_records(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path))
    journal.append_all([b"vm/%d" % number for number in range(5000)])
    journal.trim(Position(journal.generation, 4998))
    journal.close()
    assert pairs(tmp_path) == [(4999, b"vm/4998"), (5000, b"vm/4999")]


def test_a_name_appended_again_is_not_lost_by_trimming_its_first_record(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path))
    journal.append(b"vm/1")
    journal.append(b"vm/2")
    journal.append(b"vm/1")
    journal.trim(Position(journal.generation, 2))
    journal.append(b"vm/1")
    journal.close()
    assert pairs(tmp_path) == [(4, b"vm/1")]


def test_appending_nothing_changes_nothing(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path))
    journal.append(b"vm/1")
    assert journal.append_all([]) == 1
    journal.close()
    journal = JournalWriter(str(tmp_path))
    assert journal.append(b"vm/2") == 2
    journal.close()


def test_another_process_sees_each_commit_without_a_sync(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path))
    with reader_of(tmp_path) as reader:
        assert reader.generation == journal.generation
        assert reader.read() == []
        for number in range(1, 20):
            journal.append(b"vm/%d" % number)
            assert reader.ask("last") == number
        assert reader.read(17, 10) == [(18, b"vm/18"), (19, b"vm/19")]
        assert reader.ask("pending", journal.generation, 10) == 9
    journal.close()


def test_the_journal_outgrows_the_map_of_its_reader(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path))
    names = [b"%05d" % number + b"x" * 4000 for number in range(6000)]
    with reader_of(tmp_path) as reader:
        journal.append(names[0])
        assert len(reader.read()) == 1
        for start in range(1, len(names), 1000):
            journal.append_all(names[start : start + 1000])
        assert os.stat(tmp_path / "data.mdb").st_size > 16 * 1024 * 1024
        assert reader.read(5998, 5) == [(5999, names[5998]), (6000, names[5999])]
    journal.close()


def test_a_killed_writer_loses_no_record(tmp_path: Path) -> None:
    program = """
import os, signal, sys
from mirrorfs.journal.journal import JournalWriter
journal = JournalWriter(sys.argv[1])
for number in range(300):
    journal.append(b"vm/%d" % number)
os.kill(os.getpid(), signal.SIGKILL)
"""
    run_and_kill(program, tmp_path)
    journal = JournalWriter(str(tmp_path))
    assert journal.distrusted is None
    assert journal.sequence == 300
    journal.close()
    assert pairs(tmp_path) == [(number + 1, b"vm/%d" % number) for number in range(300)]


@pytest.fixture
def boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "boot_id"
    path.write_text("first\n")
    monkeypatch.setattr("mirrorfs.journal.journal._BOOT_ID", str(path))
    return path


def abandon(journal: JournalWriter) -> None:
    """What is left by the end of a process that could not close its journal."""
    journal._environment.close()


def test_after_a_power_cut_the_journal_is_set_aside(tmp_path: Path, boot_id: Path) -> None:
    directory = tmp_path / "journal"
    journal = JournalWriter(str(directory))
    journal.append(b"vm/1")
    abandon(journal)
    boot_id.write_text("second\n")
    after = JournalWriter(str(directory))
    assert after.distrusted is not None
    assert after.generation != journal.generation
    assert after.sequence == 0
    after.append(b"vm/2")
    after.close()
    assert pairs(directory) == [(1, b"vm/2")]
    assert (directory / "data.mdb.distrusted").exists()


def test_within_one_boot_an_unclosed_journal_is_trusted(tmp_path: Path, boot_id: Path) -> None:
    journal = JournalWriter(str(tmp_path / "journal"))
    journal.append(b"vm/1")
    abandon(journal)
    after = JournalWriter(str(tmp_path / "journal"))
    assert (after.distrusted, after.generation, after.sequence) == (None, journal.generation, 1)
    after.close()


def test_a_journal_that_was_closed_is_trusted_after_a_boot(tmp_path: Path, boot_id: Path) -> None:
    journal = JournalWriter(str(tmp_path / "journal"))
    journal.append(b"vm/1")
    journal.close()
    boot_id.write_text("second\n")
    after = JournalWriter(str(tmp_path / "journal"))
    assert (after.distrusted, after.generation, after.sequence) == (None, journal.generation, 1)
    abandon(after)
    # The second one was not closed, and has made the note of the first one's clean end invalid.
    boot_id.write_text("third\n")
    last = JournalWriter(str(tmp_path / "journal"))
    assert last.distrusted is not None
    last.close()


@pytest.mark.parametrize("note", [None, "", "[]", "{", '{"clean": true}'])
def test_without_a_readable_session_note_the_journal_is_set_aside(tmp_path: Path, note: str | None) -> None:
    journal = JournalWriter(str(tmp_path))
    journal.append(b"vm/1")
    journal.close()
    (tmp_path / "session.json").unlink()
    if note is not None:
        (tmp_path / "session.json").write_text(note)
    after = JournalWriter(str(tmp_path))
    assert after.distrusted is not None
    assert after.sequence == 0
    after.close()


def test_a_newer_format_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    Environment(str(tmp_path), databases=(b"future",), format_version=2).close()
    (tmp_path / "session.json").write_text(json.dumps({"clean": True, "boot_id": "any"}))
    with pytest.raises(NewerFormat, match="format 2"):
        JournalWriter(str(tmp_path))
    with pytest.raises(NewerFormat):
        JournalReader(str(tmp_path))
    with lmdb.open(str(tmp_path), readonly=True, max_dbs=8) as environment, environment.begin() as transaction:
        assert list(transaction.cursor().iternext(values=False)) == [b"format", b"future"]


def test_a_missing_journal_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match="cannot open"):
        JournalReader(str(tmp_path / "nowhere"))


def filled_journal(directory: Path, records: int = 500) -> str:
    journal = JournalWriter(str(directory))
    for number in range(records):
        journal.append(b"vm/100/%05d" % number + b"y" * 60)
    journal.close()
    return journal.generation


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_journal_is_set_aside(tmp_path: Path, damage: str) -> None:
    generation = filled_journal(tmp_path)
    data = tmp_path / "data.mdb"
    size = data.stat().st_size
    match damage:
        case "garbage":
            data.write_bytes(os.urandom(size))
        case "one page":
            os.truncate(data, 4096)
        case "two pages":
            os.truncate(data, 8192)
        case "third":
            os.truncate(data, size // 3 // 4096 * 4096)
        case "two thirds":
            os.truncate(data, size * 2 // 3 // 4096 * 4096)
        case "zeros at the end":
            os.truncate(data, size // 2 // 4096 * 4096)
            os.truncate(data, size)
        case "format":
            with lmdb.open(str(tmp_path), max_dbs=8) as environment:
                database = environment.open_db(b"format")
                with environment.begin(write=True, db=database) as transaction:
                    transaction.put(b"format", b"one")
    # In a process of its own: reading behind the end of a mapped file would kill it.
    program = """
import sys
from mirrorfs.journal.journal import JournalWriter
journal = JournalWriter(sys.argv[1])
assert journal.distrusted is not None
assert journal.sequence == 0
assert journal.generation != sys.argv[2]
journal.append(b"vm/1")
journal.close()
"""
    finished = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), generation], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, (finished.returncode, finished.stderr)
    assert pairs(tmp_path) == [(1, b"vm/1")]


def test_a_truncated_journal_cannot_be_read(tmp_path: Path) -> None:
    filled_journal(tmp_path)
    os.truncate(tmp_path / "data.mdb", (tmp_path / "data.mdb").stat().st_size // 2 // 4096 * 4096)
    for _ in range(2):
        with pytest.raises(DatabaseCorrupt, match="cut off"):
            JournalReader(str(tmp_path))


def test_what_could_not_be_trimmed_goes_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalWriter(str(tmp_path))
    journal.append(b"vm/1")
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "update", _disk_full)
        with pytest.raises(DatabaseError):
            journal.trim(Position(journal.generation, 1))
    journal.append(b"vm/2")
    journal.trim(Position(journal.generation, 1))
    journal.close()
    assert pairs(tmp_path) == [(2, b"vm/2")]


def _disk_full(*_: object) -> None:
    raise DatabaseError("cannot write the database: no space left on device")


def test_a_failed_append_takes_no_sequence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalWriter(str(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Environment, "update", _disk_full)
        with pytest.raises(DatabaseError):
            journal.append(b"vm/1")
    assert journal.append(b"vm/2") == 1
    journal.close()


def test_a_reopened_journal_goes_on_with_its_sequence(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path))
    journal.append(b"vm/1")
    journal._environment._environment.close()
    with pytest.raises(DatabaseError):
        journal.append(b"vm/2")
    journal.reopen()
    assert journal.append(b"vm/3") == 2
    journal.close()
    assert pairs(tmp_path) == [(1, b"vm/1"), (2, b"vm/3")]


def test_another_journal_in_its_place_is_not_taken_for_it(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path))
    for name in ("data.mdb", "lock.mdb"):
        (tmp_path / name).unlink()
    for _ in range(2):
        with pytest.raises(DatabaseError, match="replaced by another one"):
            journal.reopen()
    journal.close()


def test_everything_is_private(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    JournalWriter(str(directory)).close()
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in directory.iterdir()} == dict.fromkeys(
        ("data.mdb", "lock.mdb", "session.json"), "0o600"
    )
