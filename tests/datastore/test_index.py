"""Indexes: read exactly, and refused when anything in them is wrong."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.errors import IndexFormatError
from mirrorfs.datastore.index import parse_index
from tests.datastore.formats import dynamic_index, fixed_index

digests = st.lists(st.binary(min_size=32, max_size=32), max_size=20)


@given(digests, st.integers(0, 4095))
def test_fixed_round_trip(expected: list[bytes], missing: int) -> None:
    size = max(0, 4096 * len(expected) - missing)
    index = parse_index("drive.img.fidx", fixed_index(expected, size, 4096))
    assert (index.kind, index.size, index.count) == ("fixed", size, len(expected))
    assert list(index) == expected
    assert list(index.unique_digests()) == sorted(set(expected))
    assert index.checksum == hashlib.sha256(b"".join(expected)).digest()


@given(st.lists(st.tuples(st.integers(1, 2**40), st.binary(min_size=32, max_size=32)), max_size=20))
def test_dynamic_round_trip(chunks: list[tuple[int, bytes]]) -> None:
    ends = [sum(size for size, _ in chunks[: position + 1]) for position in range(len(chunks))]
    expected = [digest for _, digest in chunks]
    data = dynamic_index(list(zip(ends, expected, strict=True)))
    index = parse_index("root.pxar.didx", data)
    assert (index.kind, index.size) == ("dynamic", ends[-1] if ends else 0)
    assert list(index) == expected
    assert index.checksum == hashlib.sha256(data[4096:]).digest()


SOUND = {
    "a.fidx": fixed_index([bytes([n]) * 32 for n in range(5)], 5 * 65536, 65536),
    "a.didx": dynamic_index([((n + 1) * 1000, bytes([n]) * 32) for n in range(5)]),
}


@pytest.mark.parametrize("filename", SOUND)
@given(data=st.data())
def test_any_flipped_byte_of_magic_checksum_or_entries_is_detected(filename: str, data: st.DataObject) -> None:
    index = bytearray(SOUND[filename])
    guarded = [*range(8), *range(32, 64), *range(4096, len(index))]
    index[data.draw(st.sampled_from(guarded))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(IndexFormatError, match=filename):
        parse_index(filename, bytes(index))


@pytest.mark.parametrize("filename", SOUND)
@given(data=st.data())
def test_wrong_length_is_detected(filename: str, data: st.DataObject) -> None:
    index = SOUND[filename]
    shorter = index[: data.draw(st.integers(0, len(index) - 1))]
    for wrong in (shorter, index + bytes(1), index + bytes(32), index + bytes(40)):
        with pytest.raises(IndexFormatError):
            parse_index(filename, wrong)


@pytest.mark.parametrize(
    ("filename", "data", "reason"),
    [
        ("a.fidx", SOUND["a.didx"], "magic"),
        ("a.didx", SOUND["a.fidx"], "magic"),
        ("a.fidx", fixed_index([bytes(32)], 0, 65536), "4096"),
        ("a.fidx", fixed_index([bytes(32)], 65537, 65536), "asks for 4160"),
        ("a.fidx", fixed_index([bytes(32)], 2**64 - 1, 65536), "asks for"),
        ("a.fidx", fixed_index([], 0, 0), "power of two"),
        ("a.didx", dynamic_index([(9, bytes(32)), (8, bytes(32))]), "ascending"),
        ("a.blob", SOUND["a.fidx"], "not the name"),
    ],
)
def test_inconsistent_index(filename: str, data: bytes, reason: str) -> None:
    with pytest.raises(IndexFormatError, match=reason):
        parse_index(filename, data)


def test_an_index_of_a_tebibyte() -> None:
    data = fixed_index([number.to_bytes(32, "little") for number in range(262_144)], 262_144 << 22, 1 << 22)
    assert len(parse_index("a.fidx", data).unique_digests()) == 262_144
