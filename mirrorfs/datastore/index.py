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
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from mirrorfs.datastore.content import Content, pieces_of
from mirrorfs.datastore.digests import DIGEST_SIZE, Digests
from mirrorfs.datastore.errors import IndexFormatError, contained
from mirrorfs.datastore.quoting import quoted

HEADER_SIZE = 4096
FIXED_MAGIC = bytes((47, 127, 65, 237, 145, 253, 15, 205))
DYNAMIC_MAGIC = bytes((28, 145, 78, 165, 25, 186, 179, 205))
_HEADER = struct.Struct("<8s16sq32s")
_FIXED_SIZES = struct.Struct("<QQ")
_DIGEST = struct.Struct("32s")
_DYNAMIC_OFFSET = struct.Struct("<Q32x")
_DYNAMIC_DIGEST = struct.Struct("<8x32s")
_first = operator.itemgetter(0)


@dataclass(frozen=True, slots=True)
class Index:
    """A checked index. ``size`` is the plain size of the archive in bytes; ``entries`` are a view of the file that was
    read, which may be large.
    """

    kind: Literal["fixed", "dynamic"]
    checksum: bytes
    size: int
    entries: memoryview

    @property
    def count(self) -> int:
        """How many chunks the archive consists of, repeated ones counted each time."""
        return len(self.entries) // self._entry.size

    def __iter__(self) -> Iterator[bytes]:
        """The digests in the order of the archive."""
        return map(_first, _unpacked(self._entry, self.entries))

    @property
    def _entry(self) -> struct.Struct:
        return _DIGEST if self.kind == "fixed" else _DYNAMIC_DIGEST

    def unique_digests(self) -> Digests:
        """Each digest once. Raises TooMuch where they need a file, and the disk has no room for it."""
        return Digests.of(self)


def is_index_name(filename: str) -> bool:
    """Tell whether a listed file is an index by its name; otherwise it is a blob."""
    return filename.endswith((".fidx", ".didx"))


def parse_index(filename: str, data: Content) -> Index:
    """Check a whole index file, whose kind is told by the extension of ``filename``, and read it.

    Raises IndexFormatError for a wrong extension, magic, length or checksum.
    """
    checksum, size = check_index_beginning(filename, bytes(data[:HEADER_SIZE]), len(data))
    with _explaining(filename), contained(f"index {filename} takes more memory than there is"):
        entries = memoryview(data)[HEADER_SIZE:]
        if _sha256(entries) != checksum:
            raise IndexFormatError("its entries do not match its checksum")
        if size is not None:
            return Index("fixed", checksum, size, entries)
        offsets = map(_first, _unpacked(_DYNAMIC_OFFSET, entries))
        if any(start > end for start, end in itertools.pairwise(offsets)):
            raise IndexFormatError("its offsets are not ascending")
        last = _DYNAMIC_OFFSET.unpack_from(entries, len(entries) - _DYNAMIC_OFFSET.size)[0] if entries else 0
        return Index("dynamic", checksum, last, entries)


def check_index_beginning(filename: str, beginning: bytes, length: int) -> tuple[bytes, int | None]:
    """Check what the first HEADER_SIZE bytes tell of an index file of ``length`` bytes, before the rest is read.

    Returns the checksum of its entries and the size of the archive, None where the header does not tell. Raises
    IndexFormatError for a wrong extension, magic or length.
    """
    with _explaining(filename):
        if filename.endswith(".fidx"):
            return _check_fixed_header(beginning, length)
        if filename.endswith(".didx"):
            return _check_dynamic_header(beginning, length), None
    raise IndexFormatError(f"{quoted(filename)} is not the name of an index")


def _check_fixed_header(beginning: bytes, length: int) -> tuple[bytes, int]:
    checksum = _check_header(beginning, FIXED_MAGIC)
    size, chunk_size = _FIXED_SIZES.unpack_from(beginning, _HEADER.size)
    if chunk_size.bit_count() != 1:
        raise IndexFormatError(f"its chunk size {chunk_size} is not a power of two")
    expected = HEADER_SIZE + DIGEST_SIZE * (-(-size // chunk_size))
    if length != expected:
        raise IndexFormatError(f"it is {length} bytes long where its header asks for {expected}")
    return checksum, size


def _check_dynamic_header(beginning: bytes, length: int) -> bytes:
    checksum = _check_header(beginning, DYNAMIC_MAGIC)
    if (length - HEADER_SIZE) % _DYNAMIC_DIGEST.size:
        raise IndexFormatError(f"its {length} bytes do not end at an entry")
    return checksum


def _check_header(beginning: bytes, magic: bytes) -> bytes:
    if len(beginning) < HEADER_SIZE:
        raise IndexFormatError(f"its {len(beginning)} bytes are less than a header")
    found, _uuid, _created, checksum = _HEADER.unpack_from(beginning)
    if found != magic:
        raise IndexFormatError(f"it begins with a wrong magic ({found.hex()})")
    return bytes(checksum)


def _unpacked(entry: struct.Struct, entries: memoryview) -> Iterator[tuple[Any, ...]]:
    return itertools.chain.from_iterable(map(entry.iter_unpack, pieces_of(entries)))


def _sha256(entries: memoryview) -> bytes:
    found = hashlib.sha256()
    for piece in pieces_of(entries):
        found.update(piece)
    return found.digest()


@contextmanager
def _explaining(filename: str) -> Iterator[None]:
    try:
        yield
    except IndexFormatError as error:
        raise IndexFormatError(f"index {filename} is damaged: {error}") from error
