"""What a probe finds of a store that does everything, as SeaweedFS does."""

from __future__ import annotations

from mirrorfs.objectstore.capabilities import StoreCapabilities

HONEST = StoreCapabilities(
    rejects_wrong_crc32c=True,
    rejects_wrong_md5=True,
    put_returns_crc32c=True,
    head_returns_crc32c=True,
    etag_is_md5=True,
    copies=True,
    conditional_puts=True,
)

ENOUGH = 2**25
"""In bytes: more than any object of these tests has."""
