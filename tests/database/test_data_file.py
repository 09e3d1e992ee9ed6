"""The data file read without LMDB: as LMDB reads it, while it is written, and however it is damaged."""

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

from mirrorfs.database.data_file import Belongs, DataFile, PageDamage
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError, UnfinishedDatabase

_PAGE = 4096
_KEYS = st.binary(min_size=1, max_size=60)
_VALUES = st.one_of(st.binary(max_size=40), st.integers(1900, 13000).map(lambda size: b"v" * size))


def write(directory: Path, batches: list[dict[bytes, bytes | None]], database: bytes = b"numbers") -> None:
    """Commit each batch on its own; None deletes."""
    environment = lmdb.open(str(directory), max_dbs=4, map_size=1 << 28)
    handle = environment.open_db(database)
    for batch in batches:
        with environment.begin(write=True, db=handle) as transaction:
            for key, value in batch.items():
                if value is None:
                    transaction.delete(key)
                else:
                    transaction.put(key, value)
    environment.close()


def read(
    directory: Path, first: bytes = b"", belongs: Belongs | None = None
) -> tuple[dict[bytes, bytes], list[PageDamage]]:
    found: list[PageDamage] = []
    with opened(directory) as file:
        items = list(file.items(b"numbers", found.append, first=first, belongs=belongs))
    assert [key for key, _ in items] == sorted({key for key, _ in items})
    return dict(items), found


def fail(damage: PageDamage) -> None:
    pytest.fail(str(damage))


def is_number(key: bytes, value: bytes) -> bool:
    return len(key) == 8 and value == b"value of %d" % int.from_bytes(key, "big")


@contextmanager
def opened(directory: Path) -> Iterator[DataFile]:
    file = DataFile(str(directory / "data.mdb"))
    try:
        yield file
    finally:
        file.close()


def numbers(count: int) -> dict[bytes, bytes | None]:
    return {number.to_bytes(8, "big"): b"value of %d" % number for number in range(count)}


def overwrite(directory: Path, offset: int, data: bytes) -> None:
    with open(directory / "data.mdb", "r+b") as file:
        file.seek(offset)
        file.write(data)


def leaves(directory: Path) -> list[int]:
    """The pages of the current tree that hold entries, in order, found by what becomes unreadable with them."""
    whole, _ = read(directory)
    size, pages = len(whole), []
    for page in range(2, os.path.getsize(directory / "data.mdb") // _PAGE):
        original = (directory / "data.mdb").read_bytes()[page * _PAGE : (page + 1) * _PAGE]
        overwrite(directory, page * _PAGE, b"\xaa" * _PAGE)
        rest = read(directory)[0]
        overwrite(directory, page * _PAGE, original)
        if 0 < len(rest) < size and size - len(rest) < 200:
            pages.append(page)
    return pages


@settings(deadline=None, max_examples=60)
@given(st.lists(st.dictionaries(_KEYS, st.one_of(st.none(), _VALUES), max_size=40), min_size=1, max_size=5), _KEYS)
def test_it_reads_what_lmdb_reads(
    tmp_path_factory: pytest.TempPathFactory, batches: list[dict[bytes, bytes | None]], first: bytes
) -> None:
    directory = tmp_path_factory.mktemp("lmdb")
    write(directory, batches)
    expected: dict[bytes, bytes | None] = {}
    for batch in batches:
        expected.update(batch)
    present = {key: value for key, value in expected.items() if value is not None}
    assert read(directory) == (present, [])
    assert read(directory, first) == ({key: value for key, value in present.items() if key >= first}, [])
    with opened(directory) as file:
        assert file.names(fail) == [b"numbers"]
        assert file.entries(b"numbers", fail) == len(present)
        assert file.get(b"numbers", first, fail) == present.get(first)


def test_a_large_tree_is_read_from_any_key_on(tmp_path: Path) -> None:
    write(tmp_path, [numbers(50_000)])
    for first in (0, 1, 49_999, 31_415, 50_000):
        found, faults = read(tmp_path, first.to_bytes(8, "big"))
        assert not faults
        assert len(found) == 50_000 - first


def test_a_damaged_page_costs_only_what_it_holds(tmp_path: Path) -> None:
    write(tmp_path, [numbers(2_000)])
    whole, _ = read(tmp_path)
    page = leaves(tmp_path)[3]
    overwrite(tmp_path, page * _PAGE, bytes(_PAGE))
    found, faults = read(tmp_path)
    assert found.items() < whole.items()
    assert len(whole) - len(found) < 200
    (fault,) = faults
    lost = min(set(whole) - set(found))
    assert (fault.page, fault.offset) == (page, page * _PAGE)
    assert fault.file_length == os.path.getsize(tmp_path / "data.mdb")
    assert fault.after == max(key for key in whole if key < lost)
    assert str(fault) == f"page {page} (at byte {page * _PAGE} of {fault.file_length}) is empty"


@pytest.mark.parametrize("commits", [1, 40])
def test_a_file_that_was_cut_off_is_read_as_far_as_it_goes(tmp_path: Path, commits: int) -> None:
    entries = list(numbers(2_000).items())
    write(tmp_path, [dict(entries[begin::commits]) for begin in range(commits)])
    whole, _ = read(tmp_path)
    path = tmp_path / "data.mdb"
    content = path.read_bytes()
    for cut in (0.99, 0.9, 0.7, 0.5, 0.3):
        path.write_bytes(content[: int(len(content) * cut)])
        found, faults = read(tmp_path, belongs=is_number)
        assert found.items() <= whole.items()
        assert len(found) > (cut - 0.2) * len(whole)
        assert found == whole or faults
        assert all(fault.offset + _PAGE > fault.file_length for fault in faults)


def test_what_stands_on_no_unreadable_page_is_found_whatever_page_is_unreadable(tmp_path: Path) -> None:
    write(tmp_path, [numbers(9_000), {b"\0" * 7 + b"\x01": b"value of 1"}])
    whole, _ = read(tmp_path)
    path = tmp_path / "data.mdb"
    for page in range(2, os.path.getsize(path) // _PAGE, 7):
        original = path.read_bytes()[page * _PAGE : (page + 1) * _PAGE]
        overwrite(tmp_path, page * _PAGE, b"\x55" * _PAGE)
        found, _ = read(tmp_path, belongs=is_number)
        overwrite(tmp_path, page * _PAGE, original)
        assert found.items() <= whole.items()
        assert len(whole) - len(found) < 200


def test_the_commit_before_is_read_where_the_newest_has_lost_its_root(tmp_path: Path) -> None:
    write(tmp_path, [numbers(1_000), {b"\xff" * 8: b"last"}])
    before = set(range(2, os.path.getsize(tmp_path / "data.mdb") // _PAGE))
    kept = 0
    for page in before:
        original = (tmp_path / "data.mdb").read_bytes()[page * _PAGE : (page + 1) * _PAGE]
        overwrite(tmp_path, page * _PAGE, b"\x55" * _PAGE)
        kept += len(read(tmp_path)[0]) >= 800
        overwrite(tmp_path, page * _PAGE, original)
    assert kept == len(before)


def test_either_meta_page_is_enough(tmp_path: Path) -> None:
    write(tmp_path, [numbers(100), {b"\xff": b"newest"}])
    both = (tmp_path / "data.mdb").read_bytes()[: 2 * _PAGE]
    for page in (0, 1):
        overwrite(tmp_path, page * _PAGE, bytes(_PAGE))
        found, faults = read(tmp_path)
        assert len(found) in (100, 101)
        assert not faults
        overwrite(tmp_path, 0, both)
    overwrite(tmp_path, 0, bytes(2 * _PAGE))
    with pytest.raises(DatabaseCorrupt, match="nothing of it can be read"):
        read(tmp_path)


def test_what_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").touch()
    with pytest.raises(UnfinishedDatabase):
        read(tmp_path)
    (tmp_path / "data.mdb").write_bytes(b"no database " * 5000)
    with pytest.raises(DatabaseCorrupt):
        read(tmp_path)
    with pytest.raises(DatabaseError, match="cannot open"):
        read(tmp_path / "elsewhere")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_damage_makes_it_fail_or_run_for_ever(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    directory = tmp_path_factory.mktemp("lmdb")
    write(directory, [numbers(600), {b"large": b"v" * 9000}])
    length = os.path.getsize(directory / "data.mdb")
    for _ in range(data.draw(st.integers(1, 6))):
        # Headers and pointers are where damage does most.
        page = data.draw(st.integers(0, length // _PAGE - 1))
        within = data.draw(st.one_of(st.integers(0, 200), st.integers(0, _PAGE - 9)))
        overwrite(directory, page * _PAGE + within, data.draw(st.binary(min_size=1, max_size=8)))
    try:
        found, faults = read(directory, belongs=data.draw(st.sampled_from([None, is_number])))
    except DatabaseCorrupt:
        return
    assert len(found) <= 700
    assert all(fault.reason for fault in faults)


_BUSY_WRITER = """
import sys, time, lmdb
environment = lmdb.open(sys.argv[1], max_dbs=4, map_size=1 << 26, sync=False)
database = environment.open_db(b"numbers")
print("ready", flush=True)
number = 0
while True:
    with environment.begin(write=True, db=database) as transaction:
        for _ in range(7):
            key = number.to_bytes(8, "big")
            transaction.put(key, key * 5)
            transaction.delete((number - 3000).to_bytes(8, "big") if number >= 3000 else b"none")
            number += 1
    time.sleep(0.0002)
"""


def test_a_file_that_is_being_written_is_never_read_wrongly(tmp_path: Path) -> None:
    """The writer gives pages back and uses them again, faster than any mount: no reader keeps it from doing so."""
    writer = subprocess.Popen([sys.executable, "-c", _BUSY_WRITER, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"ready\n"
        last = -1
        with opened(tmp_path) as file:
            while last < 20_000:
                for key, value in file.items(b"numbers", fail):
                    assert value == key * 5
                    last = int.from_bytes(key, "big")
        assert writer.poll() is None
    finally:
        writer.kill()
        writer.communicate()
    # Nothing was kept from the writer: its file holds little more than its newest entries.
    assert os.path.getsize(tmp_path / "data.mdb") < 1 << 21
