"""The chunk objects that a bucket lists, ten millions of them in little memory, and which of them are needed."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from mirrorfs.datastore.limits import LONGEST_CHUNK

_PREFIX_BYTES = 8
_PLAIN, _ENCRYPTED, _LEFT = 1, 2, 4
_SMALLEST_CHUNK = 12
_LARGEST_NOTED_SIZE = 2**32 - 1


@dataclass(frozen=True, slots=True)
class BadChunks:
    """Chunks of an index that cannot be good, each with the reason; `left_out` references are to others like them."""

    named: tuple[tuple[bytes, str], ...] = ()
    left_out: int = 0


class ChunkInventory:
    """Which chunk objects there are, with their sizes, and what is referenced of them: 13 bytes for each.

    Of a digest only the first eight bytes are kept. That a chunk which is missing is taken for another one has, among
    ten million, a chance of one in 10¹².
    """

    def __init__(self) -> None:
        self._prefixes = array("Q")
        self._sizes = array("I")
        self._uses = bytearray()
        self._is_sorted = True
        self.bytes = 0
        """The sum of all sizes."""

    def __len__(self) -> int:
        return len(self._prefixes)

    @property
    def is_sorted(self) -> bool:
        """Whether they were added in the order of their digests, as S3 lists them."""
        return self._is_sorted

    def add(self, digest: bytes, size: int) -> None:
        """Add a chunk object of so many bytes; to be done before any question."""
        prefix = _prefix(digest)
        if self._prefixes and prefix < self._prefixes[-1]:
            self._is_sorted = False
        self._prefixes.append(prefix)
        self._sizes.append(min(size, _LARGEST_NOTED_SIZE))
        self._uses.append(0)
        self.bytes += size

    def complete(self) -> None:
        """Say that all have been added. Those that were not listed in order are put in order, which takes memory."""
        if self._is_sorted:
            return
        order = sorted(range(len(self._prefixes)), key=self._prefixes.__getitem__)
        self._prefixes = array(self._prefixes.typecode, (self._prefixes[number] for number in order))
        self._sizes = array(self._sizes.typecode, (self._sizes[number] for number in order))

    def use(self, digests: Iterable[bytes], *, are_encrypted: bool, most: int) -> BadChunks:
        """Note that chunks are referenced by an index; returns those that cannot be good, `most` of them by name."""
        bad: dict[bytes, str] = {}
        left_out = 0
        mark = _ENCRYPTED if are_encrypted else _PLAIN
        for digest in digests:
            reason = self._use(digest, mark)
            if reason is None or digest in bad:
                continue
            if len(bad) < most:
                bad[digest] = reason
            else:
                left_out += 1
        return BadChunks(tuple(sorted(bad.items())), left_out)

    def _use(self, digest: bytes, mark: int) -> str | None:
        """Note one reference; says why the chunk cannot be good."""
        number = self._find(digest)
        if number is None:
            return "it is missing in the bucket"
        self._uses[number] |= mark
        size = self._sizes[number]
        return None if _SMALLEST_CHUNK <= size <= LONGEST_CHUNK else f"its object has {size} bytes, which no chunk has"

    def uses_of(self, digest: bytes) -> tuple[bool, ...]:
        """Tell how a chunk is referenced: by nobody (), and else whether it has to be encrypted, or both."""
        number = self._find(digest)
        uses = 0 if number is None else self._uses[number]
        return tuple(encrypted for encrypted, mark in ((False, _PLAIN), (True, _ENCRYPTED)) if uses & mark)

    def leave(self, digests: Iterable[bytes]) -> None:
        """Say that chunks are not needed from the bucket, whatever references them."""
        for digest in digests:
            number = self._find(digest)
            if number is not None:
                self._uses[number] |= _LEFT

    @property
    def left(self) -> int:
        """How many chunk objects are not needed from the bucket."""
        return sum(1 for uses in self._uses if uses & _LEFT)

    def count_used(self) -> tuple[int, int]:
        """Count the chunk objects that are referenced, and not left, and their bytes."""
        count = total = 0
        for size, uses in zip(self._sizes, self._uses, strict=True):
            if uses and not uses & _LEFT:
                count += 1
                total += size
        return count, total

    def _find(self, digest: bytes) -> int | None:
        prefix = _prefix(digest)
        number = bisect_left(self._prefixes, prefix)
        return number if number < len(self._prefixes) and self._prefixes[number] == prefix else None


def _prefix(digest: bytes) -> int:
    return int.from_bytes(digest[:_PREFIX_BYTES], "big")
