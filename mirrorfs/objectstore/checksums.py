"""The checksums by which mirrorfs and a store agree on what an object holds, as S3 has them."""

from __future__ import annotations

import hashlib

import crc32c

from mirrorfs.datastore.content import Content, pieces_of


def calculate_crc32c(data: Content) -> int:
    """Calculate the CRC32C (Castagnoli) of an object's content."""
    found = 0
    for piece in pieces_of(data):
        found = crc32c.crc32c(piece, found)
    return found


def calculate_md5(data: Content) -> bytes:
    """Calculate the MD5 digest of an object's content: an ETag, and nothing that anybody's safety rests on."""
    found = hashlib.md5(usedforsecurity=False)
    for piece in pieces_of(data):
        found.update(piece)
    return found.digest()
