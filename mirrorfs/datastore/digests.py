"""Sets of digests as large as a backup may need: millions, in little memory."""

from __future__ import annotations

import heapq
import itertools
import operator
import os
import struct
import threading
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, overload

from mirrorfs.datastore.content import Content, Spool, content_of, nameless_file, no_room, pieces_of

DIGEST_SIZE = 32
_DIGEST = struct.Struct("32s")
_first = operator.itemgetter(0)
_LARGEST_IN_MEMORY = 4 * 1024 * 1024
_FEW = 32 * 1024
# As a set of Python's they take 20 MB, so only one at a time is made.
_DIGESTS_IN_A_RUN = 128 * 1024
_making_a_run = threading.Lock()
# While runs are merged, so much of each is in memory.
_PIECE_OF_A_RUN = 16 * 1024
_JOINED_AT_ONCE = 1024


class Digests(Sequence[bytes]):
    """Different digests in ascending order, 32 bytes each; what is large is in a file without a name."""

    def __init__(self, content: Content = b"") -> None:
        """Use `of` or `in_order`: the content must be what they make."""
        self._content = memoryview(content)

    @classmethod
    def of(cls, digests: Iterable[bytes]) -> Digests:
        """Those, each once. Raises TooMuch where they need a file, and the disk has no room for it."""
        remaining = iter(digests)
        first = set(itertools.islice(remaining, _FEW))
        following = next(remaining, None)
        if following is None:
            return cls.in_order(sorted(first))
        with _making_a_run:
            return cls._of_many(itertools.chain(first, [following], remaining))

    @classmethod
    def _of_many(cls, digests: Iterator[bytes]) -> Digests:
        run = sorted(set(itertools.islice(digests, _DIGESTS_IN_A_RUN)))
        following = next(digests, None)
        if following is None:
            return cls.in_order(run)
        with nameless_file() as file:
            runs = _Runs(file)
            runs.add(run)
            digests = itertools.chain([following], digests)
            while run := sorted(set(itertools.islice(digests, _DIGESTS_IN_A_RUN))):
                runs.add(run)
            return cls._merged(runs.all())

    @classmethod
    def in_order(cls, digests: Iterable[bytes]) -> Digests:
        """Those, which are different and ascending. Raises as `of` does."""
        return cls(content_of(_joined(digests), _LARGEST_IN_MEMORY))

    @classmethod
    def union(cls, *sets: Digests) -> Digests:
        """What is in any of the sets. Raises as `of` does."""
        return sets[0] if len(sets) == 1 else cls._merged(sets)

    @classmethod
    def _merged(cls, runs: Iterable[Iterable[bytes]]) -> Digests:
        return cls.in_order(map(_first, itertools.groupby(heapq.merge(*runs))))

    def __len__(self) -> int:
        return len(self._content) // DIGEST_SIZE

    def __iter__(self) -> Iterator[bytes]:
        pieces = map(_DIGEST.iter_unpack, pieces_of(self._content))
        return map(_first, itertools.chain.from_iterable(pieces))

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> Digests: ...

    def __getitem__(self, index: int | slice) -> bytes | Digests:
        """One digest, or those of a slice without a step, which share the memory."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            return Digests(self._content[start * DIGEST_SIZE : max(start, stop) * DIGEST_SIZE])
        start = range(len(self))[index] * DIGEST_SIZE
        return bytes(self._content[start : start + DIGEST_SIZE])

    def __contains__(self, digest: object) -> bool:
        if not isinstance(digest, bytes):
            return False
        found = bisect_left(self, digest)
        return found < len(self) and self[found] == digest

    def up_to(self, digest: bytes) -> Digests:
        """Those that are not greater."""
        return self[: bisect_right(self, digest)]

    def beyond(self, digest: bytes) -> Digests:
        """Those that are greater."""
        return self[bisect_right(self, digest) :]

    def among(self, digests: Iterable[bytes]) -> set[bytes]:
        """Which of some others are among these."""
        return {digest for digest in digests if digest in self}

    def parts(self, count: int) -> Iterator[Digests]:
        """All of them, `count` at a time."""
        return map(self._part, range(0, len(self), count), itertools.repeat(count))

    def _part(self, start: int, count: int) -> Digests:
        return self[start : start + count]

    def where(self, is_wanted: Callable[[bytes], bool]) -> Digests:
        """Those for which the answer is yes."""
        spool = Spool(_LARGEST_IN_MEMORY)
        for part in self.parts(_JOINED_AT_ONCE):
            # A list: an exception would keep a generator alive, of whose frames Python 3.11.2 does not dispose well.
            spool.add(b"".join([digest for digest in list(part) if is_wanted(digest)]))
        return Digests(spool.content())


class _Runs:
    """Digests in a file, in runs that are each ascending."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ends = [0]

    def add(self, digests: Iterable[bytes]) -> None:
        try:
            self._file.writelines(_joined(digests))
            self._file.flush()
        except OSError as error:
            raise no_room(self._file.tell(), error) from error
        self._ends.append(self._file.tell())

    def all(self) -> Iterator[Iterator[bytes]]:
        return (self._run(start, end) for start, end in itertools.pairwise(self._ends))

    def _run(self, start: int, end: int) -> Iterator[bytes]:
        for position in range(start, end, _PIECE_OF_A_RUN):
            piece = os.pread(self._file.fileno(), min(_PIECE_OF_A_RUN, end - position), position)
            yield from map(_first, _DIGEST.iter_unpack(piece))


def _joined(digests: Iterable[bytes]) -> Iterator[bytes]:
    remaining = iter(digests)
    while joined := b"".join(itertools.islice(remaining, _JOINED_AT_ONCE)):
        yield joined
