"""DataBlobs: what is damaged is detected, what is huge is not unpacked."""

from __future__ import annotations

import hashlib
import struct
import tracemalloc
import zlib

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.blob import BlobKind, check_blob, check_chunk, decode_blob, encode_blob
from mirrorfs.datastore.errors import BlobError
from tests.datastore.formats import ENCRYPTED_ZSTD, encrypted_blob, plain_blob

ZSTD = bytes((49, 185, 88, 66, 111, 182, 163, 127))

ENOUGH = 1_000_000


def zstd_blob(payload: bytes) -> bytes:
    return ZSTD + struct.pack("<I", zlib.crc32(payload)) + payload


@given(st.binary(max_size=4096), st.booleans())
def test_round_trip(content: bytes, compress: bool) -> None:
    data = encode_blob(content, compress=compress)
    assert decode_blob(data, maximum_size=ENOUGH) == content
    check_chunk(data, hashlib.sha256(content).digest(), content=True)


def test_plain_blob_is_byte_exact() -> None:
    assert encode_blob(b"hello") == plain_blob(b"hello")
    assert check_blob(plain_blob(b"hello")) is BlobKind.PLAIN


def test_compresses_only_what_shrinks() -> None:
    assert check_blob(encode_blob(bytes(10_000), compress=True)) is BlobKind.ZSTD
    assert check_blob(encode_blob(b"abc", compress=True)) is BlobKind.PLAIN


@given(st.binary(min_size=1, max_size=300), st.booleans(), st.data())
def test_any_flipped_byte_is_detected(content: bytes, compress: bool, data: st.DataObject) -> None:
    blob = bytearray(encode_blob(content * 10, compress=compress))
    position = data.draw(st.integers(0, len(blob) - 1))
    blob[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BlobError):
        check_blob(bytes(blob))


@given(st.binary(min_size=1, max_size=300), st.data())
def test_any_flipped_payload_byte_of_an_encrypted_blob_is_detected(payload: bytes, data: st.DataObject) -> None:
    blob = bytearray(encrypted_blob(payload))
    position = data.draw(st.integers(44, len(blob) - 1))
    blob[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(BlobError, match="CRC-32"):
        check_blob(bytes(blob))


@given(st.binary(min_size=1, max_size=200), st.data())
def test_truncation_is_detected(content: bytes, data: st.DataObject) -> None:
    blob = encode_blob(content)
    with pytest.raises(BlobError):
        # A CRC-32 of a shorter payload can agree by chance once in four thousand million.
        check_blob(blob[: data.draw(st.integers(0, len(blob) - 1))])


def test_encrypted_blobs_are_checked_but_never_decoded() -> None:
    for data, kind in (
        (encrypted_blob(b"secret"), BlobKind.ENCRYPTED),
        (encrypted_blob(b"secret", ENCRYPTED_ZSTD), BlobKind.ENCRYPTED_ZSTD),
    ):
        assert check_blob(data) is kind
        assert kind.is_encrypted
        check_chunk(data, bytes(32), content=True)
        with pytest.raises(BlobError, match="encrypted"):
            decode_blob(data, maximum_size=ENOUGH)
    with pytest.raises(BlobError, match="truncated"):
        check_blob(encrypted_blob(b"")[:43])


def test_chunk_content_is_compared_with_its_name() -> None:
    data = encode_blob(b"content", compress=True)
    check_chunk(data, bytes(32), content=False)
    with pytest.raises(BlobError, match=r"0000.*is damaged"):
        check_chunk(data, bytes(32), content=True)


@pytest.mark.parametrize("declares_size", [True, False])
def test_decompression_is_bounded(declares_size: bool) -> None:
    bomb = zstd_blob(zstandard.ZstdCompressor(write_content_size=declares_size).compress(bytes(200_000_000)))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(BlobError, match="1000000 bytes"):
            decode_blob(bomb, maximum_size=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_plain_content_is_bounded_too() -> None:
    with pytest.raises(BlobError, match="larger than 9 bytes"):
        decode_blob(encode_blob(bytes(10)), maximum_size=9)


def test_size_need_not_be_declared() -> None:
    payload = zstandard.ZstdCompressor(write_content_size=False).compress(b"content" * 100)
    assert decode_blob(zstd_blob(payload), maximum_size=ENOUGH) == b"content" * 100


@pytest.mark.parametrize("spoil", [lambda frame: frame[:-1], lambda frame: frame + b"x", lambda frame: b"junk"])
def test_a_bad_zstd_frame_under_a_right_crc_is_an_error(spoil: object) -> None:
    assert callable(spoil)
    frame = zstandard.ZstdCompressor().compress(b"content" * 100)
    with pytest.raises(BlobError, match="decompressed"):
        decode_blob(zstd_blob(spoil(frame)), maximum_size=ENOUGH)
