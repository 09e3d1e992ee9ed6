"""The content of a file or object: in memory, or, where it is large, in a file without a name, of which the kernel
takes out of memory what nobody reads.

Only indexes are that large: one of a disk of 128 TiB has 1 GiB.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from typing import IO

from mirrorfs.datastore.errors import TooMuch

Content = bytes | memoryview
"""A memoryview is of such a file; its memory is given back with the last view of it."""

LARGEST_IN_MEMORY = 20 * 1024 * 1024
"""In bytes: more than any chunk has."""
# As many whole entries of both kinds of index as there are whole pages.
PIECE_SIZE = 200 * 20480


class Spool:
    """Takes a content piece by piece, and holds up to `largest_in_memory` bytes of it in memory.

    Nothing at all of what is `announced` to be larger.
    """

    def __init__(self, largest_in_memory: int = LARGEST_IN_MEMORY, announced: int | None = None) -> None:
        self.length = 0
        self._largest_in_memory = 0 if announced is not None and announced > largest_in_memory else largest_in_memory
        self._pieces: list[bytes] = []
        self._file: IO[bytes] | None = None

    def add(self, piece: bytes) -> None:
        """Append a piece. Raises TooMuch where a file is needed, and the disk has no room for it."""
        self.length += len(piece)
        try:
            if self._file is None and self.length > self._largest_in_memory:
                self._file = nameless_file()
                self._file.writelines(self._pieces)
                self._pieces.clear()
            if self._file is None:
                self._pieces.append(piece)
            else:
                self._file.write(piece)
        except OSError as error:
            raise no_room(self.length, error) from error

    def content(self) -> Content:
        """All that was added; nothing can be added after that. Raises TooMuch as `add` does."""
        if self._file is None:
            return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        try:
            with self._file as file:
                file.flush()
                # The mapping has a descriptor of its own.
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except OSError as error:
            raise no_room(self.length, error) from error


def content_of(pieces: Iterable[bytes], largest_in_memory: int = LARGEST_IN_MEMORY) -> Content:
    """All pieces together. Raises TooMuch where they need a file, and the disk has no room for it."""
    spool = Spool(largest_in_memory)
    for piece in pieces:
        spool.add(piece)
    return spool.content()


def pieces_of(content: Content, size: int = PIECE_SIZE) -> Iterator[memoryview]:
    """Parts of `size` bytes each but the last; of what is in a file, one of them is in memory at a time."""
    return _Pieces(content, size)


class _Pieces(Iterator[memoryview]):
    # No generator: one that an exception leaves half done is a frame more for Python 3.11.2 to dispose of badly.
    def __init__(self, content: Content, size: int) -> None:
        self._view = memoryview(content)
        self._size = size
        self._position = 0

    def __next__(self) -> memoryview:
        _let_go(self._view)
        if self._position >= len(self._view):
            raise StopIteration
        piece = self._view[self._position : self._position + self._size]
        self._position += self._size
        return piece


def copy_of(content: Content, start: int, end: int) -> bytes:
    """A part of it; nothing else is in memory for that."""
    if isinstance(content, bytes):
        return content[start:end]
    copy = bytes(content[start:end])
    _let_go(content)
    return copy


def are_equal(content: Content, other: Content) -> bool:
    """Whether both have the same bytes."""
    return len(content) == len(other) and all(
        one == another for one, another in zip(pieces_of(content), pieces_of(other), strict=True)
    )


def _let_go(view: memoryview) -> None:
    if isinstance(view.obj, mmap.mmap):
        view.obj.madvise(mmap.MADV_DONTNEED)


def nameless_file() -> IO[bytes]:
    """A file that nobody else sees, and that is gone when it is closed. Raises TooMuch where there can be none."""
    try:
        return tempfile.TemporaryFile(dir=_directory())
    except OSError as error:
        raise no_room(0, error) from error


def no_room(size: int, error: OSError) -> TooMuch:
    """What to raise when so many bytes do not fit there."""
    return TooMuch(f"{size} bytes of it cannot be held in a file in {_directory()}: {error.strerror}")


def _directory() -> str:
    # /tmp is memory on many machines.
    return os.environ.get("TMPDIR") or "/var/tmp"  # noqa: S108 - the file has no name there
