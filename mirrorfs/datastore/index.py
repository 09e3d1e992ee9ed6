"""Fixed (``.fidx``, disk images) and dynamic (``.didx``, archives) indexes: the chunk lists of archives.

Formats: a 4,096-byte header ``magic[8] uuid[16] ctime i64 index_csum[32]``, for fixed ones followed by ``size
u64 chunk_size u64``; then digests of 32 bytes (fixed) or ``end_offset u64, digest[32]`` (dynamic).
``index_csum`` is the SHA-256 of all entries. Source: Proxmox Backup Server,
``pbs-datastore/src/{fixed,dynamic}_index.rs``.
"""

from __future__ import annotations

import hashlib
import itertools
import operator
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mirrorfs.datastore.errors import IndexFormatError

HEADER_SIZE = 4096
FIXED_MAGIC = bytes((47, 127, 65, 237, 145, 253, 15, 205))
DYNAMIC_MAGIC = bytes((28, 145, 78, 165, 25, 186, 179, 205))
DIGEST_SIZE = 32
_HEADER = struct.Struct("<8s16sq32s")
_FIXED_SIZES = struct.Struct("<QQ")
_DIGEST = struct.Struct("32s")
_DYNAMIC_OFFSET = struct.Struct("<Q32x")
_DYNAMIC_DIGEST = struct.Struct("<8x32s")
_first = operator.itemgetter(0)


@dataclass(frozen=True, slots=True)
class Index:
    """A checked index. ``size`` is the plain size of the archive in bytes, ``entries`` the digests,
    concatenated.
    """

    kind: Literal["fixed", "dynamic"]
    checksum: bytes
    size: int
    entries: bytes

    @property
    def count(self) -> int:
        """How many chunks the archive consists of, repeated ones counted each time."""
        return len(self.entries) // DIGEST_SIZE

    def __iter__(self) -> Iterator[bytes]:
        """The digests in the order of the archive."""
        return map(_first, _DIGEST.iter_unpack(self.entries))

    def unique_digests(self) -> set[bytes]:
        """Each digest once."""
        return set(self)


def is_index_name(filename: str) -> bool:
    """Tell whether a listed file is an index by its name; otherwise it is a blob."""
    return filename.endswith((".fidx", ".didx"))


def parse_index(filename: str, data: bytes) -> Index:
    """Check a whole index file, whose kind is told by the extension of ``filename``, and read it.

    Raises IndexFormatError for a wrong extension, magic, length or checksum.
    """
    try:
        if filename.endswith(".fidx"):
            return _parse_fixed(data)
        if filename.endswith(".didx"):
            return _parse_dynamic(data)
    except IndexFormatError as error:
        raise IndexFormatError(f"index {filename} is damaged: {error}") from error
    raise IndexFormatError(f"{filename!r} is not the name of an index")


def _parse_fixed(data: bytes) -> Index:
    checksum = _check_header(data, FIXED_MAGIC)
    size, chunk_size = _FIXED_SIZES.unpack_from(data, _HEADER.size)
    if chunk_size.bit_count() != 1:
        raise IndexFormatError(f"its chunk size {chunk_size} is not a power of two")
    expected = HEADER_SIZE + DIGEST_SIZE * (-(-size // chunk_size))
    if len(data) != expected:
        raise IndexFormatError(f"it is {len(data)} bytes long where its header asks for {expected}")
    return Index("fixed", checksum, size, data[HEADER_SIZE:])


def _parse_dynamic(data: bytes) -> Index:
    checksum = _check_header(data, DYNAMIC_MAGIC)
    entries = memoryview(data)[HEADER_SIZE:]
    if len(entries) % _DYNAMIC_DIGEST.size:
        raise IndexFormatError(f"its {len(data)} bytes do not end at an entry")
    offsets = list(map(_first, _DYNAMIC_OFFSET.iter_unpack(entries)))
    if any(start > end for start, end in itertools.pairwise(offsets)):
        raise IndexFormatError("its offsets are not ascending")
    digests = b"".join(map(_first, _DYNAMIC_DIGEST.iter_unpack(entries)))
    return Index("dynamic", checksum, offsets[-1] if offsets else 0, digests)


def _check_header(data: bytes, magic: bytes) -> bytes:
    if len(data) < HEADER_SIZE:
        raise IndexFormatError(f"its {len(data)} bytes are less than a header")
    found, _uuid, _created, checksum = _HEADER.unpack_from(data)
    if found != magic:
        raise IndexFormatError(f"it begins with a wrong magic ({found.hex()})")
    if hashlib.sha256(memoryview(data)[HEADER_SIZE:]).digest() != checksum:
        raise IndexFormatError("its entries do not match its checksum")
    return bytes(checksum)
