"""The file formats of a Proxmox Backup Server datastore, written and read here on their own, so that the
harness can contradict the product: DataBlob, fixed and dynamic index, manifest. Integers are little-endian."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import zstandard

PLAIN_MAGIC = bytes([66, 171, 56, 7, 190, 131, 112, 161])
ZSTD_MAGIC = bytes([49, 185, 88, 66, 111, 182, 163, 127])
ENCRYPTED_MAGIC = bytes([123, 103, 133, 190, 34, 45, 76, 240])
ENCRYPTED_ZSTD_MAGIC = bytes([230, 89, 27, 191, 11, 191, 216, 11])
FIXED_INDEX_MAGIC = bytes([47, 127, 65, 237, 145, 253, 15, 205])
DYNAMIC_INDEX_MAGIC = bytes([28, 145, 78, 165, 25, 186, 179, 205])

INDEX_HEADER_SIZE = 4096
INDEX_CSUM_OFFSET = 32
DIGEST_SIZE = 32
DYNAMIC_ENTRY_SIZE = 8 + DIGEST_SIZE
MANIFEST_NAME = "index.json.blob"
LOG_NAME = "client.log.blob"
PLAIN_HEADER_SIZE = 12
ENCRYPTED_HEADER_SIZE = 44
# A chunk is at most 16 MiB of content, every other blob at most 128 MiB (the server's own limits).
LARGEST_CONTENT = 128 * 1024 * 1024
_LISTED_FILE = re.compile(r"(?=.{1,255}\Z)[A-Za-z0-9_][A-Za-z0-9._\-]*\.(fidx|didx|blob)\Z")


class FormatError(ValueError):
    """A file is not what its name says; the text tells what is wrong with it."""


def encode_blob(content: bytes, *, compress: bool = True) -> bytes:
    """A DataBlob holding content: zstd if that is wanted and smaller, else plain."""
    if compress:
        compressed = zstandard.ZstdCompressor(level=1).compress(content)
        if len(compressed) < len(content):
            return _plain_header(ZSTD_MAGIC, compressed) + compressed
    return _plain_header(PLAIN_MAGIC, content) + content


def encode_encrypted_looking_blob(
    payload: bytes, initialization_vector: bytes, tag: bytes, *, compressed: bool
) -> bytes:
    """A DataBlob that looks encrypted: its payload is whatever the caller gives (take random bytes)."""
    magic = ENCRYPTED_ZSTD_MAGIC if compressed else ENCRYPTED_MAGIC
    if len(initialization_vector) != 16 or len(tag) != 16:
        raise ValueError("initialization vector and tag are 16 bytes each")
    return _plain_header(magic, payload) + initialization_vector + tag + payload


def _plain_header(magic: bytes, payload: bytes) -> bytes:
    return magic + struct.pack("<I", zlib.crc32(payload))


@dataclass(frozen=True, slots=True)
class DecodedBlob:
    """What a DataBlob holds; content is None when it is encrypted."""

    content: bytes | None
    is_encrypted: bool


def decode_blob(raw: bytes) -> DecodedBlob:
    """Check magic and CRC of a DataBlob and decompress it. Raises FormatError."""
    if len(raw) < PLAIN_HEADER_SIZE:
        raise FormatError(f"a blob of {len(raw)} bytes has no room for its header")
    magic, expected_crc = raw[:8], struct.unpack_from("<I", raw, 8)[0]
    is_encrypted = magic in (ENCRYPTED_MAGIC, ENCRYPTED_ZSTD_MAGIC)
    if not is_encrypted and magic not in (PLAIN_MAGIC, ZSTD_MAGIC):
        raise FormatError(f"unknown blob magic {magic.hex()}")
    header_size = ENCRYPTED_HEADER_SIZE if is_encrypted else PLAIN_HEADER_SIZE
    if len(raw) < header_size:
        raise FormatError(f"an encrypted blob of {len(raw)} bytes has no room for its header")
    payload = memoryview(raw)[header_size:]
    if zlib.crc32(payload) != expected_crc:
        raise FormatError("the blob's CRC does not match its payload")
    if is_encrypted:
        return DecodedBlob(None, True)
    if magic == PLAIN_MAGIC:
        return DecodedBlob(bytes(payload), False)
    try:
        content = zstandard.ZstdDecompressor().decompress(bytes(payload), max_output_size=LARGEST_CONTENT)
    except zstandard.ZstdError as error:
        raise FormatError(f"the blob's payload is not zstd: {error}") from error
    return DecodedBlob(content, False)


def check_chunk(raw: bytes, digest: str) -> None:
    """Check a chunk file against its name (64 hex digits): CRC always, SHA-256 unless it is encrypted.

    Raises FormatError.
    """
    content = decode_blob(raw).content
    if content is not None and hashlib.sha256(content).hexdigest() != digest:
        raise FormatError("the chunk's content does not have the SHA-256 of its name")


def fixed_index_header(uuid: bytes, created: int, size: int, chunk_size: int) -> bytes:
    """The header as it is first written, with an index checksum of zeros. created is a Unix time."""
    head = FIXED_INDEX_MAGIC + uuid + struct.pack("<q", created) + bytes(32)
    return (head + struct.pack("<QQ", size, chunk_size)).ljust(INDEX_HEADER_SIZE, b"\0")


def dynamic_index_header(uuid: bytes, created: int) -> bytes:
    """The header as it is first written, with an index checksum of zeros. created is a Unix time."""
    return (DYNAMIC_INDEX_MAGIC + uuid + struct.pack("<q", created)).ljust(INDEX_HEADER_SIZE, b"\0")


def dynamic_index_entries(ends_and_digests: Iterable[tuple[int, bytes]]) -> bytes:
    """The body of a dynamic index: per chunk the offset of its end in the archive, and its digest."""
    return b"".join(struct.pack("<Q", end) + digest for end, digest in ends_and_digests)


def with_index_csum(header: bytes, body: bytes) -> bytes:
    """A whole index file of header and body, the header's checksum filled in."""
    csum = hashlib.sha256(body).digest()
    return header[:INDEX_CSUM_OFFSET] + csum + header[INDEX_CSUM_OFFSET + DIGEST_SIZE :] + body


@dataclass(frozen=True, slots=True)
class DecodedIndex:
    """An index that agrees with itself: plain size of the archive in bytes, csum in hex, chunk digests in hex."""

    size: int
    csum: str
    digests: tuple[str, ...]


def decode_index(name: str, raw: bytes) -> DecodedIndex:
    """Check and read an index by its file name (.fidx or .didx). Raises FormatError."""
    expected_magic = FIXED_INDEX_MAGIC if name.endswith(".fidx") else DYNAMIC_INDEX_MAGIC
    if len(raw) < INDEX_HEADER_SIZE:
        raise FormatError(f"an index of {len(raw)} bytes has no room for its header")
    if raw[:8] != expected_magic:
        raise FormatError(f"wrong index magic {raw[:8].hex()}")
    body = raw[INDEX_HEADER_SIZE:]
    csum = hashlib.sha256(body).digest()
    if raw[INDEX_CSUM_OFFSET : INDEX_CSUM_OFFSET + DIGEST_SIZE] != csum:
        raise FormatError("the index' checksum does not match its entries")
    if name.endswith(".fidx"):
        return _decode_fixed_index(raw, body, csum.hex())
    return _decode_dynamic_index(body, csum.hex())


def _decode_fixed_index(raw: bytes, body: bytes, csum: str) -> DecodedIndex:
    size, chunk_size = struct.unpack_from("<QQ", raw, 64)
    if chunk_size == 0:
        raise FormatError("the index has a chunk size of zero")
    expected_length = -(-size // chunk_size) * DIGEST_SIZE
    if len(body) != expected_length:
        raise FormatError(f"the index has {len(body)} bytes of digests where its size asks for {expected_length}")
    digests = tuple(body[at : at + DIGEST_SIZE].hex() for at in range(0, len(body), DIGEST_SIZE))
    return DecodedIndex(size, csum, digests)


def _decode_dynamic_index(body: bytes, csum: str) -> DecodedIndex:
    if len(body) % DYNAMIC_ENTRY_SIZE:
        raise FormatError(f"the index has {len(body)} bytes of entries, not a multiple of {DYNAMIC_ENTRY_SIZE}")
    previous_end = 0
    digests: list[str] = []
    for at in range(0, len(body), DYNAMIC_ENTRY_SIZE):
        (end,) = struct.unpack_from("<Q", body, at)
        if end <= previous_end:
            raise FormatError(f"the index' entry {len(digests)} ends at {end}, not after {previous_end}")
        previous_end = end
        digests.append(body[at + 8 : at + DYNAMIC_ENTRY_SIZE].hex())
    return DecodedIndex(previous_end, csum, tuple(digests))


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One line of a manifest's file list. csum: index checksum, or SHA-256 of the whole blob file; in hex."""

    name: str
    size: int
    csum: str
    crypt_mode: str

    @property
    def is_index(self) -> bool:
        return self.name.endswith((".fidx", ".didx"))


def encode_manifest(manifest: Mapping[str, object]) -> bytes:
    """The manifest file: pretty-printed JSON with sorted keys, as the server writes it, in a DataBlob."""
    return encode_blob(json.dumps(manifest, indent=2, sort_keys=True).encode())


def make_manifest(
    backup_type: str,
    backup_id: str,
    backup_time: int,
    files: Sequence[ManifestFile],
    *,
    signature: str | None,
    unprotected: Mapping[str, object],
) -> dict[str, object]:
    """The manifest's JSON as a client uploads it (pbs-api-types BackupManifest)."""
    return {
        "backup-type": backup_type,
        "backup-id": backup_id,
        "backup-time": backup_time,
        "files": [
            {"filename": file.name, "size": file.size, "csum": file.csum, "crypt-mode": file.crypt_mode}
            for file in files
        ],
        "signature": signature,
        "unprotected": dict(unprotected),
    }


def decode_manifest_document(raw: bytes) -> dict[str, object]:
    """The JSON object in a manifest file. Raises FormatError."""
    content = decode_blob(raw).content
    if content is None:
        raise FormatError("a manifest is never encrypted")
    try:
        document = json.loads(content)
    except ValueError as error:
        raise FormatError(f"the manifest is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise FormatError("the manifest is not a JSON object")
    return document


def manifest_files(raw: bytes) -> tuple[ManifestFile, ...]:
    """The files that a manifest lists. Raises FormatError."""
    files = decode_manifest_document(raw).get("files")
    if not isinstance(files, list):
        raise FormatError("the manifest has no list of files")
    return tuple(_manifest_file(entry) for entry in files)


def _manifest_file(entry: object) -> ManifestFile:
    if not isinstance(entry, dict):
        raise FormatError("the manifest lists something that is not an object")
    name, size, csum = entry.get("filename"), entry.get("size"), entry.get("csum")
    crypt_mode = entry.get("crypt-mode", "none")
    if not (
        isinstance(name, str)
        and isinstance(size, int)
        and isinstance(csum, str)
        and isinstance(crypt_mode, str)
        and name != MANIFEST_NAME
        and _LISTED_FILE.match(name)
    ):
        raise FormatError(f"the manifest lists a malformed file: {entry!r}")
    return ManifestFile(name, size, csum, crypt_mode)


def check_listed_file(listed: ManifestFile, raw: bytes) -> tuple[str, ...]:
    """Check a file against its line in the manifest; give the digests it references. Raises FormatError."""
    if listed.is_index:
        index = decode_index(listed.name, raw)
        if index.csum != listed.csum:
            raise FormatError(f"index checksum {index.csum} where the manifest says {listed.csum}")
        if index.size != listed.size:
            raise FormatError(f"plain size {index.size} where the manifest says {listed.size}")
        return index.digests
    if len(raw) != listed.size:
        raise FormatError(f"{len(raw)} bytes where the manifest says {listed.size}")
    if hashlib.sha256(raw).hexdigest() != listed.csum:
        raise FormatError(f"a SHA-256 other than the manifest's {listed.csum}")
    decode_blob(raw)
    return ()
