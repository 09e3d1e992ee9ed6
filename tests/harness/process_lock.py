"""The record lock on a datastore's .lock file: shared while a process writes indexes, exclusive while it collects
garbage. One per process and datastore, because closing any descriptor of the file drops all locks of the process."""

from __future__ import annotations

import fcntl
import os
import threading
import time
from typing import ClassVar

from tests.harness.system_calls import Guard, SystemCalls

# The clock that the kernel stamps atime with: a finer one would be ahead of a time just set.
_CLOCK_REALTIME_COARSE = 5


class DatastoreBusy(Exception):
    """Another process or another garbage collection has the lock."""


def stamp_now() -> int:
    """Now, in nanoseconds, by the clock of file times."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class ProcessLock:
    """The lock of this process on one datastore. Get it with attach() and give it back with detach()."""

    _instances: ClassVar[dict[tuple[int, str], ProcessLock]] = {}
    _instances_mutex: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, key: tuple[int, str], descriptor: int) -> None:
        self._key = key
        self._descriptor = descriptor
        self._attached = 0
        self._mutex = threading.Lock()
        self._writer_starts: list[int] = []
        self._is_exclusive = False

    @classmethod
    def attach(cls, datastore: str, calls: SystemCalls) -> ProcessLock:
        """Open DS/.lock, as the server does on its first access, or take the one that is open already."""
        key = (os.getpid(), os.path.realpath(datastore))
        with cls._instances_mutex:
            if key not in cls._instances:
                flags = os.O_RDWR | os.O_CREAT
                cls._instances[key] = cls(key, calls.open("process-lock", f"{datastore}/.lock", flags))
            lock = cls._instances[key]
            lock._attached += 1
            return lock

    def detach(self) -> None:
        """Close DS/.lock when nobody in this process uses it any more."""
        with self._instances_mutex:
            self._attached -= 1
            if self._attached == 0:
                del self._instances[self._key]
                os.close(self._descriptor)

    def shared(self, calls: SystemCalls) -> Guard:
        """For an index writer. Raises DatastoreBusy while another process collects garbage."""
        start = stamp_now()
        with self._mutex:
            if not self._writer_starts and not self._is_exclusive:
                self._set(calls, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._writer_starts.append(start)
        return Guard(lambda: self._release_shared(start))

    def exclusive(self, calls: SystemCalls) -> Guard:
        """For a garbage collection; writers of this process do not hinder it. Raises DatastoreBusy."""
        with self._mutex:
            if self._is_exclusive:
                raise DatastoreBusy("a garbage collection is running")
            self._set(calls, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._is_exclusive = True
        return Guard(self._release_exclusive)

    def oldest_writer_start(self) -> int | None:
        """When the oldest index writer of this process began (nanoseconds), or None."""
        with self._mutex:
            return min(self._writer_starts, default=None)

    def _set(self, calls: SystemCalls, operation: int) -> None:
        calls.step("process-lock", "setlk")
        try:
            fcntl.lockf(self._descriptor, operation)
        except (BlockingIOError, PermissionError) as error:
            raise DatastoreBusy("another process has the datastore's .lock") from error

    def _release_shared(self, start: int) -> None:
        with self._mutex:
            self._writer_starts.remove(start)
            if not self._writer_starts and not self._is_exclusive:
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN)

    def _release_exclusive(self) -> None:
        with self._mutex:
            self._is_exclusive = False
            fcntl.lockf(self._descriptor, fcntl.LOCK_SH if self._writer_starts else fcntl.LOCK_UN)
