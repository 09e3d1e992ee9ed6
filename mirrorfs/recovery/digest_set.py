"""A set of digests that grows to ten millions in little memory."""

from __future__ import annotations

_DIRECTORY_BYTES = 2
_KEPT_BYTES = 8


class DigestSet:
    """Digests by their first ten bytes: about nine bytes of memory for each, and four million at the beginning.

    That of ten million different ones two are taken for the same has a chance of one in ten thousand million.
    """

    def __init__(self) -> None:
        self._buckets: dict[bytes, bytearray] = {}

    def add(self, digest: bytes) -> None:
        """Put a digest in, unless it is there."""
        if digest not in self:
            bucket = self._buckets.setdefault(digest[:_DIRECTORY_BYTES], bytearray())
            bucket += digest[_DIRECTORY_BYTES : _DIRECTORY_BYTES + _KEPT_BYTES]

    def __contains__(self, digest: bytes) -> bool:
        bucket = self._buckets.get(digest[:_DIRECTORY_BYTES])
        if bucket is None:
            return False
        kept = digest[_DIRECTORY_BYTES : _DIRECTORY_BYTES + _KEPT_BYTES]
        place = bucket.find(kept)
        while place >= 0 and place % _KEPT_BYTES:
            place = bucket.find(kept, place + 1)
        return place >= 0
