"""Keeps what goes to and comes from the store within rates, for all threads of all processes that share a throttle.

Its state is a few numbers in memory without a name (memfd_create), which another process gets as a descriptor. So one
process says which rates hold, all keep them together, and a process that is killed leaves nothing that others wait for.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import struct
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

LEAST_BYTES = 64 * 1024.0
"""The lowest limit for bytes a second: at a lower one so many connections would be silent for too long."""
LEAST_REQUESTS = 1.0
# What was not used just before may be made up for, since a thread wakes late; a sixtieth of a minute at most.
_CREDIT_SECONDS = 1.0
# No piece costs longer, so that a connection is never silent for long, and a new rate holds soon.
_PIECE_SECONDS = 0.25
_SMALLEST_PIECE = 1024
_ENTRY = struct.Struct("dd")


class Flow(IntEnum):
    """What is limited; the values are places in the shared memory."""

    UP = 0
    DOWN = 1
    REQUESTS = 2


class Throttle:
    """Rates, and how far what was done is paid for by time. Without a rate, nothing waits."""

    def __init__(
        self,
        descriptor: int | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """`descriptor` is that of a throttle of another process, to be shared; it belongs to this one from now on.

        `clock` gives seconds, the same in all processes.
        """
        size = _ENTRY.size * len(Flow)
        if descriptor is None:
            descriptor = os.memfd_create("mirrorfs-throttle")
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        """What another process is to be given."""
        weakref.finalize(self, os.close, descriptor)
        self._memory = mmap.mmap(descriptor, size)
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()

    def set_rate(self, flow: Flow, rate: float | None) -> bool:
        """Say how much of it may be done in a second, None without limit; tells whether that is another rate."""
        with self._locked():
            before, _ = self._entry(flow)
            if before == (rate or 0.0):
                return False
            # What was paid for at the old rate is forgotten: the new one holds from now on.
            _ENTRY.pack_into(self._memory, flow * _ENTRY.size, rate or 0.0, self._clock())
            return True

    def rate(self, flow: Flow) -> float | None:
        """Return what holds now."""
        return self._entry(flow)[0] or None

    def piece(self, flow: Flow, size: int) -> int:
        """Return how many of `size` bytes to take at once."""
        rate, _ = self._entry(flow)
        return min(size, max(_SMALLEST_PIECE, int(rate * _PIECE_SECONDS))) if rate else size

    def take(self, flow: Flow, amount: float = 1.0) -> float:
        """Wait until so much more may be done; returns for how many seconds that was. Blocks its thread."""
        if not self._entry(flow)[0]:
            return 0.0
        with self._locked():
            rate, due = self._entry(flow)
            if not rate:
                return 0.0
            now = self._clock()
            begin = max(due, now - _CREDIT_SECONDS)
            _ENTRY.pack_into(self._memory, flow * _ENTRY.size, rate, begin + amount / rate)
        wait = begin - now
        if wait > 0:
            self._sleep(wait)
        return max(0.0, wait)

    def _entry(self, flow: Flow) -> tuple[float, float]:
        rate, due = _ENTRY.unpack_from(self._memory, flow * _ENTRY.size)
        return rate, due

    @contextmanager
    def _locked(self) -> Iterator[None]:
        # The kernel's lock is one of processes, and goes with one that is killed.
        with self._lock:
            fcntl.lockf(self.descriptor, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.lockf(self.descriptor, fcntl.LOCK_UN)
