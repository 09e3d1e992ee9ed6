"""The root's access control list, which the kernel asks for again and again, remembered here instead.

The kernel remembers the lists of directories, also that there is none. But the root's inode it makes before it knows
that we have lists, and remembers nothing of it for as long as the mount stands. So each path that leads through the
mount, also to a native chunk, makes a request of its own, unless the root is its caller's: PBS's API, which makes
datastores, is root.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

_NAMES = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))


class RootAttributes:
    """What the root's lists are, or that it has none, until they change. To be used in one trio thread."""

    def __init__(self) -> None:
        self._known: dict[bytes, bytes | None] = {}
        self._changes = 0

    async def get(self, name: bytes, read: Callable[[], Awaitable[bytes]]) -> bytes:
        """Return the attribute, which `read` gets from the backing directory. Raises what `read` does."""
        if name in self._known:
            value = self._known[name]
            if value is None:
                raise _no_attribute()
            return value
        changes = self._changes
        try:
            value = await read()
        except OSError as error:
            if error.errno != errno.ENODATA:
                raise
            value = None
        if name in _NAMES and changes == self._changes:
            self._known[name] = value
        if value is None:
            raise _no_attribute()
        return value

    @contextmanager
    def changing(self, is_root: bool) -> Iterator[None]:
        """Forget all when the root's attributes are changed, if they are; what is read meanwhile may be out of date."""
        if not is_root:
            yield
            return
        self._forget()
        try:
            yield
        finally:
            self._forget()

    def _forget(self) -> None:
        self._changes += 1
        self._known.clear()


def _no_attribute() -> OSError:
    return OSError(errno.ENODATA, os.strerror(errno.ENODATA))
