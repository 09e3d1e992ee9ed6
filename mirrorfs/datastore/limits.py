"""How large each kind of file or object may be: what is larger is not what its name says, and is not read.

Whoever reads looks at the announced size first and counts while reading, so that what others can write costs no more
memory than the real thing. docs/semantics.md has the table.
"""

from __future__ import annotations

from mirrorfs.datastore.names import CLIENT_LOG_NAME, MANIFEST_NAME

_KIB = 1024
_MIB = 1024 * _KIB

# The header of an encrypted DataBlob: magic, CRC, initialization vector and tag.
LONGEST_BLOB_HEADER = 44
LONGEST_CHUNK_CONTENT = 17 * _MIB
"""PBS makes chunks of at most 16 MiB (``pbs-datastore/src/data_blob.rs``)."""
LONGEST_CHUNK = LONGEST_CHUNK_CONTENT + LONGEST_BLOB_HEADER
LONGEST_MANIFEST_CONTENT = 4 * _MIB
LONGEST_MANIFEST = LONGEST_MANIFEST_CONTENT + 64 * _KIB
"""As a whole file. What cannot be compressed is stored as it is, or grows by less than one part in 200."""
LONGEST_LISTED_BLOB = 128 * _MIB + LONGEST_BLOB_HEADER
"""PBS's own ``MAX_BLOB_SIZE``, and the header."""
LONGEST_CLIENT_LOG = 16 * _MIB
LONGEST_INDEX = 2048 * _MIB
"""An image of 256 TiB in chunks of 4 MiB."""
LONGEST_RECORD = 64 * _KIB
"""Owner and notes of a group, a protection marker, and the claims in the bucket. PBS's API takes no longer notes."""
LONGEST_DELETION = _MIB
"""The record of a deletion holds owner and notes, and JSON may need six bytes for one of theirs."""
LONGEST_NOTES = 4096
"""In characters: what is kept of the notes on a snapshot, to be shown."""

_INDEX_HEADER_SIZE = 4096
_LARGEST_INDEX_ENTRY = 40
# The average chunk of an archive is never smaller than this, but for a few at its seams.
_SMALLEST_AVERAGE_CHUNK = 512
_SPARE_CHUNKS = 1024


def longest_file(path: str) -> int:
    """The size in bytes that the file of this name, outside ``.chunks``, may have."""
    filename = path.rpartition("/")[2]
    if filename == MANIFEST_NAME:
        return LONGEST_MANIFEST
    if filename == CLIENT_LOG_NAME:
        return LONGEST_CLIENT_LOG
    if filename.endswith((".fidx", ".didx")):
        return LONGEST_INDEX
    return LONGEST_LISTED_BLOB if filename.endswith(".blob") else LONGEST_RECORD


def longest_index(size: int) -> int:
    """The size in bytes that an index may have whose archive has ``size`` bytes."""
    chunks = size // _SMALLEST_AVERAGE_CHUNK + _SPARE_CHUNKS
    return min(LONGEST_INDEX, _INDEX_HEADER_SIZE + chunks * _LARGEST_INDEX_ENTRY)
