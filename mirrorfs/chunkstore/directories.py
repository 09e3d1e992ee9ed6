"""Which directories are those of this chunk store, by the handles that the kernel calls them by."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from enum import Enum

from mirrorfs.chunkstore.system_calls import open_by_handle

# A datastore has 65,536; a file system may hold many, and other directories with such names. About 25 MB.
_MOST_KNOWN = 150_000
_name = re.compile(rb"[0-9a-f]{4}")


class Place(Enum):
    """What a directory is to this chunk store."""

    ROOT = "`.chunks` itself"
    CHUNKS = "a directory in it, which holds chunks"
    ELSEWHERE = "none of it, or gone"


class Directories:
    """Remembers what was found out about handles, which are never given to another directory."""

    def __init__(self, root: int) -> None:
        """`root` is `.chunks`, opened; it stays the caller's to close."""
        self._root = root
        status = os.fstat(root)
        self._identity = (status.st_dev, status.st_ino)
        self._known: dict[bytes, Place] = {}

    def unknown(self, handles: Iterable[bytes]) -> list[bytes]:
        """Return those of the handles that `find_out` has to be called for."""
        return [handle for handle in handles if handle not in self._known]

    def find_out(self, handles: Iterable[bytes]) -> None:
        """Look at these directories. May wait for the disk.

        Raises:
            OSError: it cannot be told, such as when the disk fails or the right is missing.
        """
        if len(self._known) > _MOST_KNOWN:
            self._known.clear()
        root_path = _path(self._root)
        for handle in handles:
            self._known[handle] = self._look(handle, root_path)

    def place(self, handle: bytes) -> Place:
        """Tell what is known of a directory."""
        return self._known.get(handle, Place.ELSEWHERE)

    def _look(self, handle: bytes, root_path: bytes) -> Place:
        try:
            descriptor = open_by_handle(self._root, handle)
        except OSError as error:
            # What stood in a directory that is gone is told by the end of the directory.
            if error.errno in (errno.ESTALE, errno.ENOENT):
                return Place.ELSEWHERE
            raise
        try:
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) == self._identity:
                return Place.ROOT
            # Not by "..", which may lead into the mount that this process serves.
            parent, _, name = _path(descriptor).rpartition(b"/")
            is_inside = parent == root_path and _name.fullmatch(name) is not None
            return Place.CHUNKS if is_inside else Place.ELSEWHERE
        finally:
            os.close(descriptor)


def _path(descriptor: int) -> bytes:
    """Tell where something that is open stands now, without asking its file system."""
    return os.readlink(f"/proc/self/fd/{descriptor}".encode())
