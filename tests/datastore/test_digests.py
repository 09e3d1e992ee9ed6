"""Sets of digests are what Python's would be, whatever is in memory and whatever in a file."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore import content, digests
from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.errors import TooMuch

MIB = 1024 * 1024
SOME = st.lists(st.integers(0, 40).map(lambda number: bytes([number]) * 32), max_size=60)


@pytest.fixture(autouse=True, params=["in memory", "in files"])
def _where(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "in files":
        monkeypatch.setattr(digests, "_FEW", 2)
        monkeypatch.setattr(digests, "_DIGESTS_IN_A_RUN", 3)
        monkeypatch.setattr(digests, "_PIECE_OF_A_RUN", 64)
        monkeypatch.setattr(digests, "_LARGEST_IN_MEMORY", 100)
        monkeypatch.setattr(content.content_of, "__defaults__", (100,))


@given(SOME, SOME, st.integers(0, 41).map(lambda number: bytes([number]) * 32))
def test_they_are_a_set(found: list[bytes], others: list[bytes], one: bytes) -> None:
    made, expected = Digests.of(found), sorted(set(found))
    assert list(made) == expected
    assert len(made) == len(expected)
    assert (one in made) == (one in expected)
    assert list(made.up_to(one)) == [digest for digest in expected if digest <= one]
    assert list(made.beyond(one)) == [digest for digest in expected if digest > one]
    assert made.among(others) == set(others) & set(found)
    assert list(made.where(lambda digest: digest > one)) == [digest for digest in expected if digest > one]
    assert list(Digests.union(made, Digests.of(others))) == sorted({*found, *others})
    assert [digest for part in made.parts(7) for digest in part] == expected
    assert [made[position] for position in range(-len(made), len(made))] == expected * 2


@given(SOME, st.one_of(st.none(), st.integers(-70, 70)), st.one_of(st.none(), st.integers(-70, 70)))
def test_slices(found: list[bytes], start: int | None, stop: int | None) -> None:
    assert list(Digests.of(found)[start:stop]) == sorted(set(found))[start:stop]


def test_nothing() -> None:
    assert list(Digests.union()) == []
    assert not Digests()
    with pytest.raises(IndexError):
        Digests()[0]


def test_no_file_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    made = Digests.of(number.to_bytes(32, "big") for number in range(100))
    assert len(made) == 100
    del made
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_without_room_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        spool = content.Spool(largest_in_memory=10)
        with pytest.raises(TooMuch, match=f"cannot be held in a file in {tmp_path}: File too large"):
            spool.add(bytes(2 * MIB))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert os.listdir(tmp_path) == []


_LARGE = """
import hashlib, resource
from mirrorfs.datastore.digests import Digests
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
made = Digests.of(hashlib.sha256(b"%d" % (number % 3_000_000)).digest() for number in range(4_000_000))
last = None
for digest in made:
    assert last is None or last < digest
    last = digest
assert len(made) == 3_000_000
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def test_millions_take_little_memory() -> None:
    if digests._FEW == 2:
        pytest.skip("of this size it is what the other case does")
    done = subprocess.run([sys.executable, "-c", _LARGE], capture_output=True, text=True, check=True, timeout=300)
    assert int(done.stdout) < 150, done.stdout


@given(st.binary(max_size=300), st.integers(1, 50))
def test_a_content_is_what_was_added(data: bytes, size: int) -> None:
    made = content.content_of(data[start : start + size] for start in range(0, len(data), size))
    assert bytes(made) == data
    assert isinstance(made, memoryview) == (len(data) > 100 and digests._FEW == 2)
    assert b"".join(content.pieces_of(made, size)) == data
    assert content.are_equal(made, data)
    assert not content.are_equal(made, data + b"x")
    assert hashlib.sha256(made).digest() == hashlib.sha256(data).digest()
