"""DataBlobs, the container of every chunk and every ``.blob`` file.

Format (all integers little-endian): ``magic[8] crc32[4] payload``, or, encrypted, ``magic[8] crc32[4] iv[16]
tag[16] payload``; the CRC-32 (IEEE) covers the payload alone. Source: Proxmox Backup Server,
``pbs-datastore/src/file_formats.rs``.
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib

import zstandard

from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import BlobError, contained
from mirrorfs.datastore.limits import LONGEST_CHUNK, LONGEST_CHUNK_CONTENT

_HEADER = struct.Struct("<8sI")
_MAGIC_SIZE = 8
_ENCRYPTED_HEADER_SIZE = _HEADER.size + 32
# How far back what is compressed may refer: memory that a frame of a few bytes can ask for. zstd's own tools stay
# below 8 MiB unless told otherwise (--ultra, --long).
_LARGEST_WINDOW = 32 * 1024 * 1024


class BlobKind(enum.Enum):
    """The four kinds of DataBlob; each value is the magic of its kind."""

    PLAIN = bytes((66, 171, 56, 7, 190, 131, 112, 161))
    ZSTD = bytes((49, 185, 88, 66, 111, 182, 163, 127))
    ENCRYPTED = bytes((123, 103, 133, 190, 34, 45, 76, 240))
    ENCRYPTED_ZSTD = bytes((230, 89, 27, 191, 11, 191, 216, 11))

    @property
    def is_encrypted(self) -> bool:
        """Whether the content can only be read with a key, which mirrorfs never has."""
        return self in (BlobKind.ENCRYPTED, BlobKind.ENCRYPTED_ZSTD)

    @property
    def header_size(self) -> int:
        """Bytes before the payload."""
        return _ENCRYPTED_HEADER_SIZE if self.is_encrypted else _HEADER.size


_KINDS = {kind.value: kind for kind in BlobKind}


def check_blob(data: Content) -> BlobKind:
    """Check length, magic and CRC of a whole DataBlob and say its kind; raises BlobError."""
    if len(data) < _HEADER.size:
        raise BlobError(f"the blob is truncated: {len(data)} bytes are less than a header")
    magic, checksum = _HEADER.unpack_from(data)
    kind = _KINDS.get(magic)
    if kind is None:
        raise BlobError(f"the blob begins with an unknown magic ({magic.hex()})")
    if len(data) < kind.header_size:
        raise BlobError(f"the encrypted blob is truncated: {len(data)} bytes are less than a header")
    if zlib.crc32(memoryview(data)[kind.header_size :]) != checksum:
        raise BlobError("the blob's content does not match its CRC-32")
    return kind


def decode_blob(data: bytes, *, maximum_size: int) -> bytes:
    """Check a DataBlob and return its plain content of at most ``maximum_size`` bytes.

    Raises BlobError for a damaged or encrypted blob, and for one that would decompress to more.
    """
    kind = check_blob(data)
    return bytes(_payload(kind, data, maximum_size))


def check_chunk(data: Content, digest: bytes, *, content: bool) -> None:
    """Check a chunk: its length and CRC always, and with ``content`` that the plain content has the SHA-256 ``digest``.

    The digest of an encrypted chunk includes key material, so there only length and CRC are checked: whoever knows
    whether the chunk is to be encrypted asks `check_encryption`. Raises BlobError.
    """
    try:
        if len(data) > LONGEST_CHUNK:
            raise BlobError(f"its {len(data)} bytes are more than any chunk has")
        kind = check_blob(data)
        if not content or kind.is_encrypted:
            return
        found = hashlib.sha256(_payload(kind, data, LONGEST_CHUNK_CONTENT)).digest()
    except BlobError as error:
        raise BlobError(f"chunk {digest.hex()} is damaged: {error}") from error
    if found != digest:
        raise BlobError(f"chunk {digest.hex()} is damaged: the content has the SHA-256 {found.hex()}")


def check_encryption(beginning: Content, digest: bytes, *, is_encrypted: bool) -> None:
    """Check that a chunk, of which `beginning` has the first bytes, is encrypted if its backup is, and only then.

    PBS's own verification asks the same (``does not match index CryptMode``). It matters because nobody without the key
    can tell whether what an encrypted chunk holds is what its name says. Raises BlobError.
    """
    kind = _KINDS.get(bytes(beginning[:_MAGIC_SIZE]))
    if kind is None:
        raise BlobError(f"chunk {digest.hex()} is damaged: it begins with an unknown magic")
    if kind.is_encrypted != is_encrypted:
        found, backup = ("is", "is not") if kind.is_encrypted else ("is not", "is")
        raise BlobError(f"chunk {digest.hex()} is damaged: it {found} encrypted, and its backup {backup}")


def encode_blob(content: bytes, *, compress: bool = False) -> bytes:
    """Make a DataBlob of plain content; compressed with zstd where asked for and worth it, as PBS does."""
    kind, payload = BlobKind.PLAIN, content
    if compress:
        compressed = zstandard.ZstdCompressor(level=1).compress(content)
        if len(compressed) < len(content):
            kind, payload = BlobKind.ZSTD, compressed
    return _HEADER.pack(kind.value, zlib.crc32(payload)) + payload


def _payload(kind: BlobKind, data: Content, maximum_size: int) -> bytes | memoryview:
    """The plain content, not copied where it stands in `data` as it is."""
    if kind.is_encrypted:
        raise BlobError("the blob is encrypted")
    payload = memoryview(data)[kind.header_size :]
    if kind is BlobKind.ZSTD:
        return _decompress(payload, maximum_size)
    if len(payload) > maximum_size:
        raise BlobError(f"the blob's content is larger than {maximum_size} bytes")
    return payload


def _decompress(payload: memoryview, maximum_size: int) -> bytes:
    try:
        declared = zstandard.get_frame_parameters(payload).content_size
        if declared != zstandard.CONTENTSIZE_UNKNOWN and declared > maximum_size:
            raise BlobError(f"the blob's content is larger than {maximum_size} bytes")
        # A frame that does not declare its size is stopped by the size of the output buffer.
        with contained("the blob's content takes more memory than there is"):
            return zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).decompress(
                payload, max_output_size=maximum_size, allow_extra_data=False
            )
    except zstandard.ZstdError as error:
        raise BlobError(
            f"the blob's content cannot be decompressed to at most {maximum_size} bytes: {error}"
        ) from error
