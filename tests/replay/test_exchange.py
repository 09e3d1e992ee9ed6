"""Export and import: the same journal again, or none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorfs.database.errors import DatabaseError, NewerFormat
from mirrorfs.journal.journal import JournalWriter, Position, Record
from mirrorfs.journal.recreation import JournalHead, UnusableRecords, recreate_journal
from mirrorfs.journal.view import JournalView
from mirrorfs.replay.exchange import Export, MalformedExport, head_value, last_value, record_value
from tests.harness.steps import StepFile

_COMPONENTS = st.binary(min_size=1, max_size=200).filter(
    lambda name: not {b"/"[0], 0} & set(name) and name not in (b".", b"..")
)
_PATHS = st.one_of(
    st.lists(_COMPONENTS, max_size=4).map(b"/".join),
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=40)
    .map(str.encode)
    .filter(lambda name: name not in (b".", b"..")),
    st.integers(501, 4000).map(lambda size: b"p" * size),
)


@st.composite
def journals(draw: st.DrawFn) -> tuple[JournalHead, list[Record]]:
    paths = draw(st.lists(_PATHS, unique=True, max_size=30))
    sequences = sorted(draw(st.sets(st.integers(1, 1 << 40), min_size=len(paths), max_size=len(paths))))
    records = [
        Record(sequence, path, draw(st.integers(0, (1 << 64) - 1)))
        for sequence, path in zip(sequences, paths, strict=True)
    ]
    newest = sequences[-1] if sequences else 0
    return JournalHead(
        draw(st.text("0123456789abcdef", min_size=1, max_size=40)),
        newest + draw(st.integers(0, 1000)),
        draw(st.one_of(st.none(), st.just("/mnt/datastore/store1"))),
    ), records


def exported(directory: Path) -> bytes:
    view = JournalView(str(directory / "data.mdb"))
    records = list(view.records())
    head = JournalHead(view.generation, view.last_sequence(), view.datastore)
    view.close()
    return text_of(head, records)


def text_of(head: JournalHead, records: list[Record], complete: bool = True) -> bytes:
    values = [head_value(head), *map(record_value, records), last_value(len(records), complete=complete)]
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def read(text: bytes) -> tuple[JournalHead, list[Record]]:
    export = Export(io.BytesIO(text), "the file")
    return export.head, list(export.records())


@settings(deadline=None, max_examples=60)
@given(journals())
def test_the_round_trip_is_exact(
    tmp_path_factory: pytest.TempPathFactory, journal: tuple[JournalHead, list[Record]]
) -> None:
    head, records = journal
    text = text_of(head, records)
    assert read(text) == journal
    directory = tmp_path_factory.mktemp("journal") / "journal"
    assert recreate_journal(str(directory), *read(text)) == len(records)
    assert exported(directory) == text


@settings(deadline=None, max_examples=25)
@given(journals())
def test_a_mount_accepts_what_was_imported(
    tmp_path_factory: pytest.TempPathFactory, journal: tuple[JournalHead, list[Record]]
) -> None:
    head, records = journal
    directory = tmp_path_factory.mktemp("journal") / "journal"
    recreate_journal(str(directory), head, records)
    writer = JournalWriter(str(directory))
    assert writer.distrusted is None
    assert (writer.generation, writer.sequence) == (head.generation, head.sequence)
    names = [record.path for record in records]
    # A new record of a name takes the place of the imported one.
    assert writer.append_all([*names[:1], b"new"]) == head.sequence + len(names[:1]) + 1
    view = JournalView(str(directory / "data.mdb"))
    assert [record.path for record in view.records()] == [*names[1:], *names[:1], b"new"]
    view.close()
    writer.trim(Position(writer.generation, writer.sequence))
    writer.close()
    assert (directory / "data.mdb").stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == 0o700


@settings(deadline=None, max_examples=100)
@given(journals(), st.data())
def test_a_file_that_was_cut_off_is_refused(journal: tuple[JournalHead, list[Record]], data: st.DataObject) -> None:
    text = text_of(*journal)
    # Without its last line end it is whole.
    cut = data.draw(st.integers(0, len(text) - 2))
    with pytest.raises(MalformedExport, match=r"cut off|cannot be used|is not a journal"):
        read(text[:cut])


_HEAD = JournalHead("abc", 10)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("no JSON", "not JSON"),
        ("[1]", "no JSON object"),
        ('{"sequence": 1, "time_ns": 1}', "no record"),
        ('{"sequence": 1, "time_ns": 1, "path": "a", "path_base64": "YQ=="}', "no record"),
        ('{"sequence": true, "time_ns": 1, "path": "a"}', "no record"),
        ('{"sequence": 1.5, "time_ns": 1, "path": "a"}', "no record"),
        ('{"sequence": 1, "time_ns": 1, "path": 7}', "no text"),
        ('{"sequence": 1, "time_ns": 1, "path": "\\ud800"}', "cannot be read"),
        ('{"sequence": 1, "time_ns": 1, "path_base64": "?"}', "cannot be read"),
        ('{"records": 3, "complete": true}', "3 records, but there are 0"),
        ("[" * 30_000, "not JSON"),
        ('{"sequence": 1, "time_ns": 1, "path": "' + "a" * 100_000 + '"}', "not JSON"),
        ('{"sequence": ' + "1" * 5000 + ', "time_ns": 1, "path": "a"}', "not JSON"),
    ],
)
def test_a_bad_line_is_named(line: str, why: str) -> None:
    with pytest.raises(MalformedExport, match=f"line 2 of the file cannot be used.*{why}"):
        read(json.dumps(head_value(_HEAD)).encode() + b"\n" + line.encode() + b"\n")


def test_what_is_no_export_and_what_is_newer_are_refused() -> None:
    with pytest.raises(MalformedExport, match="is not a journal"):
        read(b"")
    with pytest.raises(MalformedExport, match="is not a journal"):
        read(b'{"snapshots": []}\n')
    with pytest.raises(NewerFormat, match="has version 2 of the format, this mirrorfs knows up to 1"):
        read(json.dumps({**head_value(_HEAD), "version": 2}).encode())
    with pytest.raises(MalformedExport, match="something follows"):
        read(text_of(_HEAD, []) + b"{}\n")


@pytest.mark.parametrize(
    ("records", "why"),
    [
        ([Record(2, b"a", 0), Record(2, b"b", 0)], "comes after record 2"),
        ([Record(2, b"a", 0), Record(1, b"b", 0)], "comes after record 2"),
        ([Record(0, b"a", 0)], "comes after record 0"),
        ([Record(11, b"a", 0)], "ends with 10"),
        ([Record(1, b"a", 0), Record(2, b"a", 0)], "an earlier one has"),
        ([Record(1, b"a", -1)], "which is none"),
        ([Record(1, b"a", 1 << 64)], "which is none"),
        ([Record(1, b"../../etc/passwd", 0)], "no path"),
        ([Record(1, b"/etc/passwd", 0)], "no path"),
        ([Record(1, b"a/./b", 0)], "no path"),
        ([Record(1, b"a//b", 0)], "no path"),
        ([Record(1, b"a\0b", 0)], "no path"),
    ],
)
def test_records_that_no_journal_has_make_none(tmp_path: Path, records: list[Record], why: str) -> None:
    with pytest.raises(UnusableRecords, match=why):
        recreate_journal(str(tmp_path / "journal"), _HEAD, records)
    assert os.listdir(tmp_path) == []


def test_a_journal_that_is_there_stays(tmp_path: Path) -> None:
    recreate_journal(str(tmp_path / "journal"), _HEAD, [Record(1, b"a", 5)])
    before = exported(tmp_path / "journal")
    with pytest.raises(DatabaseError, match="already"):
        recreate_journal(str(tmp_path / "journal"), JournalHead("other", 1), [])
    assert exported(tmp_path / "journal") == before


_IMPORT = """
import sys
from mirrorfs.journal.journal import Record
from mirrorfs.journal.recreation import JournalHead, recreate_journal
recreate_journal(sys.argv[1], JournalHead("abc", 20000), [Record(n, b"vm/%d" % n, n) for n in range(1, 15000)])
"""


@pytest.mark.parametrize(
    "step", ["recreation.records-written", "session.after-rename", "recreation.before-rename", "recreation.renamed"]
)
def test_an_import_that_is_killed_leaves_all_or_nothing(tmp_path: Path, step: str) -> None:
    steps = StepFile(tmp_path / "step")
    steps.arm(step)
    directory = tmp_path / "state" / "journal"
    directory.parent.mkdir()
    command = [sys.executable, "-c", _IMPORT, str(directory)]
    killed = subprocess.run(command, env={**os.environ, **steps.environment}, check=False, timeout=60)
    assert killed.returncode == -9
    assert directory.exists() is (step == "recreation.renamed")
    if not directory.exists():
        subprocess.run(command, check=True, timeout=60)
    assert exported(directory).count(b"\n") == 15001
    assert os.listdir(directory.parent) == ["journal"]
