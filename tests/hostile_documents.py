"""Documents and files that cost a reader who believes them more than they cost who made them."""

from __future__ import annotations

import struct
import zlib

import zstandard

from tests.datastore.formats import FIXED, plain_blob

MIB = 1024 * 1024
GIB = 1024 * MIB
_ZSTD = bytes((49, 185, 88, 66, 111, 182, 163, 127))

DOCUMENTS = {
    "deeply nested": b"[" * MIB,
    "deeply nested objects": b'{"files":' * 100_000,
    "millions of members": b"{" + b",".join(b'"%d":0' % number for number in range(250_000)) + b"}",
    "millions of empty lists": b"[" + b"[]," * 1_300_000 + b"0]",
    "an integer of a million digits": b'{"backup-time":' + b"9" * 1_000_000 + b"}",
    "a string of wide characters": b'["' + "\U0001f600".encode() + b"a" * (3 * MIB) + b'"]',
    "a string that does not end": b'["' + b'\\"' * MIB,
}
"""JSON of a few MiB."""


def bomb(declares_size: bool = False) -> bytes:
    """60 MB of JSON in 6 KB."""
    document = b'{"backup-type":"vm","files":[' + b"[]," * 20_000_000 + b"0]}"
    return zstd_blob(zstandard.ZstdCompressor(level=19, write_content_size=declares_size).compress(document))


def zstd_blob(payload: bytes) -> bytes:
    """A whole compressed DataBlob."""
    return _ZSTD + struct.pack("<I", zlib.crc32(payload)) + payload


def blobs() -> dict[str, bytes]:
    """DataBlobs that are hostile as manifests."""
    return {
        "a bomb": bomb(),
        "a bomb that says so": bomb(declares_size=True),
        **{kind: plain_blob(document) for kind, document in DOCUMENTS.items()},
    }


def index_header(checksum: bytes, size: int, chunk_size: int = 4 * MIB) -> bytes:
    """Of a fixed index."""
    return (FIXED + bytes(24) + checksum + struct.pack("<QQ", size, chunk_size)).ljust(4096, b"\0")
