"""The events of a mirror that matter to its administrator: named in the log, and kept in a short record of their own.

A record of the log that is one of them carries its name and what it is about: `log.info("…", extra=about(…))`. The log
may go to a file or to the journal of systemd, and has much else in it; `mirrorfs log` reads the record.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import Enum
from typing import Any

from mirrorfs import own_files

_MOST_BYTES = 2 * 1024 * 1024
_MOST_WAITING = 10_000
_END_SECONDS = 1.0
_NAME = "mirrorfs_event"
_ABOUT = "mirrorfs_about"


class EventName(Enum):
    """What has happened; the values are for programs and do not change."""

    MOUNTED = "mounted"
    UNMOUNTED = "unmounted"
    PUBLISHED = "published"
    REMOVED = "removed"
    HELD = "held"
    APPROVED = "approved"
    PROBLEM = "problem"
    PROBLEM_ENDED = "problem-ended"
    STORE_DOWN = "store-down"
    STORE_UP = "store-up"
    REFUSED = "refused"
    UPLOADER_RESTARTED = "uploader-restarted"
    WORKER_RESTARTED = "worker-restarted"
    SCRUB_FOUND = "scrub-found"
    COLLECTED = "collected"
    TOLD = "told"


def about(name: EventName, /, **about: str) -> dict[str, Any]:
    """Return what makes a record of the log an event, for `extra`; `about` names what it is about, such as snapshot."""
    return {_NAME: name.value, _ABOUT: about}


def event_of(record: logging.LogRecord) -> tuple[str, Mapping[str, str]] | None:
    """Return the name of the event that a record of the log is, and what it is about; None if it is none."""
    name = getattr(record, _NAME, None)
    return None if name is None else (str(name), getattr(record, _ABOUT, {}))


class EventRecord(logging.Handler):
    """Writes the events among the records of the log to a file, one object of JSON a line.

    Several processes may write to one file. When it is full it becomes the older one, in whose place it comes. A thread
    of its own writes: a disk that hangs holds up nobody, and what it does not take is missing there, not in the log.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path
        self._waiting: queue.Queue[str | None] = queue.Queue(_MOST_WAITING)
        self._writer: threading.Thread | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Have a record written if it is an event."""
        if (event := event_of(record)) is None:
            return
        told = {
            **event[1],
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "event": event[0],
            "level": record.levelname,
            "message": record.getMessage(),
        }
        try:
            self._waiting.put_nowait(json.dumps(told))
            if self._writer is None:
                self._writer = threading.Thread(target=self._write_all, name="events", daemon=True)
                self._writer.start()
        except (queue.Full, RuntimeError):
            # The disk hangs, or no thread is to be had. The log has it.
            return

    def close(self) -> None:
        """Write what waits, unless the disk hangs."""
        if self._writer is not None:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return
            self._writer.join(_END_SECONDS)
            self._writer = None
        super().close()

    def _write_all(self) -> None:
        while (line := self._waiting.get()) is not None:
            try:
                self._write(line.encode() + b"\n")
            except OSError:
                # The log, which may lie elsewhere, has it.
                continue

    def _write(self, line: bytes) -> None:
        descriptor = own_files.open_file(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        try:
            size = os.fstat(descriptor).st_size
            # What was cut off by a full disk does not take the next line with it.
            amid = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
            os.write(descriptor, b"\n" + line if amid else line)
            if size > _MOST_BYTES:
                self._begin_another(descriptor)
        finally:
            os.close(descriptor)

    def _begin_another(self, descriptor: int) -> None:
        """Make the open file, which is full, the older one, unless another process has just done so."""
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.path.samestat(os.fstat(descriptor), os.stat(self._path, follow_symlinks=False)):
            os.replace(self._path, older(self._path))


def older(path: str) -> str:
    """Tell where the events are that came before those of a record."""
    return f"{path}.1"
