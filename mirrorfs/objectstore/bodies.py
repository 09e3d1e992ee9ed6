"""The content of an object as the body of a request: as boto3 takes it, as urllib3 sends it."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import IO, Any, cast

from mirrorfs.datastore.content import Content, copy_of


class ContentReader(io.BufferedIOBase):
    """A content as a file, which boto3 takes and urllib3 sends.

    `allowed` is called for each piece that is to be read, and tells how many bytes of it may be.
    """

    def __init__(self, content: Content, allowed: Callable[[int], int] = lambda size: size) -> None:
        super().__init__()
        self.content = content
        self._allowed = allowed
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        start, length = self._position, len(self.content)
        end = length if size is None or size < 0 else min(length, start + size)
        self._position = start + self._allowed(end - start)
        return copy_of(self.content, start, self._position)

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self.content)}[whence]
        self._position = min(len(self.content), max(0, base + offset))
        return self._position

    def tell(self) -> int:
        return self._position


def body_of(content: Content) -> bytes | IO[bytes]:
    """What to give boto3 as the body of a request."""
    return content if isinstance(content, bytes) else cast(IO[bytes], ContentReader(content))


def content_of(body: Any) -> Content:  # noqa: ANN401
    """What boto3 was given as the body of a request, or has made of it."""
    if body is None:
        return b""
    if isinstance(body, ContentReader):
        return body.content
    if isinstance(body, str):
        return body.encode()
    return body if isinstance(body, (bytes, memoryview)) else bytes(body.read())
