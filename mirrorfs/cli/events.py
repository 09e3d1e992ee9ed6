"""Reading the record of events: what is there, and what comes, without asking again and again."""

from __future__ import annotations

import ctypes
import json
import os
import struct
from collections.abc import Iterator
from typing import Any

from mirrorfs import own_files
from mirrorfs.events import older

_IN_CLOEXEC = os.O_CLOEXEC
# inotify(7): a file was written to, has come, or was renamed to.
_CHANGES = 0x0000_0002 | 0x0000_0100 | 0x0000_0080
_NOTE = struct.Struct("@iIII")
_NOTES_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class EventReader:
    """Reads the events of one record, oldest first; each once."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None
        self._rest = b""
        self._has_read_older = False
        self.unreadable = 0
        """How many lines were none of ours, or were cut off."""

    def read(self) -> Iterator[dict[str, Any]]:
        """Give what has come since the last call. Raises NotOwn, OSError."""
        if self._file is None:
            if not self._has_read_older:
                self._has_read_older = True
                yield from self._open_and_read(older(self._path))
                self._close()
            yield from self._open_and_read(self._path)
            return
        yield from self._read()
        if self._is_another():
            # What was written before it became the older one has been read.
            self._close()
            yield from self._open_and_read(self._path)

    def _open_and_read(self, path: str) -> Iterator[dict[str, Any]]:
        try:
            self._file = own_files.open_file(path)
        except FileNotFoundError:
            return
        yield from self._read()

    def _read(self) -> Iterator[dict[str, Any]]:
        assert self._file is not None
        while data := os.read(self._file, 1 << 20):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in filter(None, lines):
                event = _parsed(line)
                if event is None:
                    self.unreadable += 1
                else:
                    yield event

    def _is_another(self) -> bool:
        assert self._file is not None
        try:
            now = os.stat(self._path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return not os.path.samestat(now, os.fstat(self._file))

    def _close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file, self._rest = None, b""


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    wanted = ("time", "event", "message")
    return value if isinstance(value, dict) and all(isinstance(value.get(name), str) for name in wanted) else None


class Changes:
    """Tells when something in a directory has changed, by inotify."""

    def __init__(self, directory: str) -> None:
        """Raises OSError."""
        self._descriptor = _checked(_libc.inotify_init1(_IN_CLOEXEC), directory)
        _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(directory), _CHANGES), directory)

    def wait(self) -> None:
        """Return when something has changed since the last call, or since this was made."""
        assert len(os.read(self._descriptor, _NOTES_BYTES)) >= _NOTE.size


def _checked(result: int, path: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result
