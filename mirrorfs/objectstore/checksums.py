"""The checksum by which mirrorfs and a store agree on what an object holds: CRC32C (Castagnoli), as S3 has it."""

from __future__ import annotations

import crc32c


def calculate_crc32c(data: bytes) -> int:
    """Calculate the CRC32C of an object's content."""
    return crc32c.crc32c(data)
