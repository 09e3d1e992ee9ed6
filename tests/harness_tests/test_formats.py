"""The harness' own formats against facts from outside of it: magic numbers, zlib, hashlib, offsets in the files."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib

import pytest
import zstandard

from tests.harness import formats
from tests.harness.content import Encoder
from tests.harness.formats import FormatError, ManifestFile

DIGESTS = tuple(hashlib.sha256(bytes([number])).digest() for number in range(5))


def test_plain_blob_is_magic_crc_of_the_payload_and_payload() -> None:
    raw = formats.encode_blob(b"some log\n", compress=False)
    # The first 21 bytes of a client log as recorded from a real server: magic, CRC, text.
    assert raw == b"B\2538\7\276\203p\241\271\25g\255some log\n"
    assert formats.decode_blob(raw).content == b"some log\n"


def test_compressed_blob_is_zstd_behind_a_crc_of_the_compressed_bytes() -> None:
    raw = formats.encode_blob(bytes(100_000))
    assert list(raw[:8]) == [49, 185, 88, 66, 111, 182, 163, 127]
    assert struct.unpack("<I", raw[8:12])[0] == zlib.crc32(raw[12:])
    assert zstandard.decompress(raw[12:]) == bytes(100_000)
    assert formats.decode_blob(raw).content == bytes(100_000)


def test_a_blob_that_does_not_shrink_is_stored_plain() -> None:
    assert formats.encode_blob(bytes(range(64)))[:8] == bytes([66, 171, 56, 7, 190, 131, 112, 161])


@pytest.mark.parametrize(
    ("content", "magic"),
    [
        (bytes(range(256)), [123, 103, 133, 190, 34, 45, 76, 240]),
        (bytes(100_000), [230, 89, 27, 191, 11, 191, 216, 11]),
    ],
)
def test_encrypted_looking_blob_has_its_crc_over_what_follows_the_44_byte_header(
    content: bytes, magic: list[int]
) -> None:
    raw = Encoder(key=b"key").encode(content)
    assert list(raw[:8]) == magic
    assert struct.unpack("<I", raw[8:12])[0] == zlib.crc32(raw[44:])
    assert formats.decode_blob(raw).content is None
    assert Encoder(key=b"key").digest(content) != hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("at", [0, 8, 12, 30])
def test_a_flipped_bit_anywhere_in_a_blob_is_noticed(at: int) -> None:
    raw = bytearray(formats.encode_blob(bytes(range(64))))
    raw[at] ^= 1
    with pytest.raises(FormatError):
        formats.decode_blob(bytes(raw))


@pytest.mark.parametrize("length", [0, 11, 12])
def test_a_truncated_blob_is_noticed(length: int) -> None:
    with pytest.raises(FormatError):
        formats.decode_blob(formats.encode_blob(b"0123456789", compress=False)[:length])


def test_a_chunk_of_other_content_than_its_name_says_is_noticed() -> None:
    raw = formats.encode_blob(b"content")
    formats.check_chunk(raw, hashlib.sha256(b"content").hexdigest())
    with pytest.raises(FormatError):
        formats.check_chunk(raw, hashlib.sha256(b"other").hexdigest())


def fixed_index(size: int = 4 * 65536 + 1) -> bytes:
    return formats.with_index_csum(formats.fixed_index_header(b"u" * 16, 77, size, 65536), b"".join(DIGESTS))


def dynamic_index() -> bytes:
    body = formats.dynamic_index_entries((1000 * (slot + 1), digest) for slot, digest in enumerate(DIGESTS))
    return formats.with_index_csum(formats.dynamic_index_header(b"u" * 16, 77), body)


def test_fixed_index_has_its_fields_at_the_documented_offsets() -> None:
    raw = fixed_index()
    assert list(raw[:8]) == [47, 127, 65, 237, 145, 253, 15, 205]
    assert raw[8:24] == b"u" * 16
    assert struct.unpack_from("<q", raw, 24)[0] == 77
    assert raw[32:64] == hashlib.sha256(b"".join(DIGESTS)).digest()
    assert struct.unpack_from("<QQ", raw, 64) == (4 * 65536 + 1, 65536)
    assert raw[80:4096] == bytes(4016)
    assert raw[4096:] == b"".join(DIGESTS)
    decoded = formats.decode_index("disk.img.fidx", raw)
    assert decoded.digests == tuple(digest.hex() for digest in DIGESTS)
    assert decoded.size == 4 * 65536 + 1


def test_dynamic_index_has_its_fields_at_the_documented_offsets() -> None:
    raw = dynamic_index()
    assert list(raw[:8]) == [28, 145, 78, 165, 25, 186, 179, 205]
    assert raw[32:64] == hashlib.sha256(raw[4096:]).digest()
    assert raw[64:4096] == bytes(4032)
    assert struct.unpack_from("<Q", raw, 4096 + 40)[0] == 2000
    assert raw[4096 + 48 : 4096 + 80] == DIGESTS[1]
    decoded = formats.decode_index("root.pxar.didx", raw)
    assert (decoded.size, decoded.digests) == (5000, tuple(digest.hex() for digest in DIGESTS))


@pytest.mark.parametrize("name", ["disk.img.fidx", "root.pxar.didx"])
@pytest.mark.parametrize("damage", ["magic", "csum", "entry", "truncated", "longer", "no header"])
def test_a_damaged_index_is_noticed(name: str, damage: str) -> None:
    raw = bytearray(fixed_index() if name.endswith(".fidx") else dynamic_index())
    if damage == "truncated":
        raw = raw[:-32]
    elif damage == "longer":
        raw += bytes(32)
    elif damage == "no header":
        raw = raw[:100]
    else:
        raw[{"magic": 0, "csum": 40, "entry": 4100}[damage]] ^= 1
    with pytest.raises(FormatError):
        formats.decode_index(name, bytes(raw))


def test_a_fixed_index_whose_length_and_size_disagree_is_noticed() -> None:
    with pytest.raises(FormatError, match="digests"):
        formats.decode_index("disk.img.fidx", fixed_index(size=65536))


def test_manifest_is_pretty_printed_json_with_a_null_signature() -> None:
    listed = ManifestFile("disk.img.fidx", 10, "ab" * 32, "none")
    document = formats.make_manifest("vm", "100", 77, [listed], signature=None, unprotected={"notes": "x"})
    raw = formats.encode_manifest(document)
    content = formats.decode_blob(raw).content
    assert content is not None
    assert b'\n  "signature": null,' in content
    assert json.loads(content) == {
        "backup-type": "vm",
        "backup-id": "100",
        "backup-time": 77,
        "files": [{"filename": "disk.img.fidx", "size": 10, "csum": "ab" * 32, "crypt-mode": "none"}],
        "signature": None,
        "unprotected": {"notes": "x"},
    }
    assert formats.manifest_files(raw) == (listed,)


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", '{"files": [1]}', '{"files": [{"filename": "../x.blob", "size": 1, "csum": "a"}]}']
)
def test_a_malformed_manifest_is_noticed(text: str) -> None:
    with pytest.raises(FormatError):
        formats.manifest_files(formats.encode_blob(text.encode()))
