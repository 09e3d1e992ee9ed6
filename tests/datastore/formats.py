"""Index and manifest bytes for tests, put together by hand from the format description."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Mapping, Sequence

FIXED = bytes((47, 127, 65, 237, 145, 253, 15, 205))
DYNAMIC = bytes((28, 145, 78, 165, 25, 186, 179, 205))
PLAIN = bytes((66, 171, 56, 7, 190, 131, 112, 161))
ENCRYPTED = bytes((123, 103, 133, 190, 34, 45, 76, 240))
ENCRYPTED_ZSTD = bytes((230, 89, 27, 191, 11, 191, 216, 11))


def fixed_index(digests: Sequence[bytes], size: int, chunk_size: int) -> bytes:
    """A whole .fidx file."""
    entries = b"".join(digests)
    header = FIXED + bytes(range(16)) + struct.pack("<q", 1_700_000_000) + hashlib.sha256(entries).digest()
    return (header + struct.pack("<QQ", size, chunk_size)).ljust(4096, b"\0") + entries


def dynamic_index(chunks: Sequence[tuple[int, bytes]]) -> bytes:
    """A whole .didx file of (end offset, digest) entries."""
    entries = b"".join(struct.pack("<Q", end) + digest for end, digest in chunks)
    header = DYNAMIC + bytes(range(16)) + struct.pack("<q", 1_700_000_000) + hashlib.sha256(entries).digest()
    return header.ljust(4096, b"\0") + entries


def plain_blob(content: bytes) -> bytes:
    """A whole uncompressed DataBlob."""
    return PLAIN + struct.pack("<I", zlib.crc32(content)) + content


def encrypted_blob(payload: bytes, magic: bytes = ENCRYPTED) -> bytes:
    """A whole DataBlob that looks encrypted."""
    return magic + struct.pack("<I", zlib.crc32(payload)) + bytes(16) + bytes(range(16)) + payload


def listed(filename: str, size: int, checksum: bytes, encryption: str = "none") -> dict[str, object]:
    """One entry of a manifest's file list."""
    return {"filename": filename, "size": size, "csum": checksum.hex(), "crypt-mode": encryption}


def manifest_blob(files: object, /, **changes: object) -> bytes:
    """A whole index.json.blob of vm/100 at 2026-11-22T10:00:00Z, with top-level fields changed."""
    value: Mapping[str, object] = {
        "backup-type": "vm",
        "backup-id": "100",
        "backup-time": 1795341600,
        "files": files,
        "unprotected": {"verify_state": {"state": "ok", "upid": "UPID:"}, "notes": "weekly"},
        "signature": None,
    } | {name.replace("_", "-"): change for name, change in changes.items()}
    return plain_blob(json.dumps(value).encode())
