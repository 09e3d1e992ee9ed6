"""Whether the clocks of this machine and of the store agree, before anything is decided by an age."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import trio

from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.store import ObjectStore

log = logging.getLogger(__name__)

_LARGEST_DIFFERENCE = 300.0
_CHECK_SECONDS = 600.0


def utc(moment: float) -> str:
    """Write a Unix time as PBS writes times: 2026-11-22T10:00:00Z."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


class StoreClock:
    """The store's clock as a witness: a clock that is wrong must not make anything old."""

    def __init__(self, store: ObjectStore, prefix: str, now: Callable[[], float] = time.time) -> None:
        """`prefix` is one below which the bucket may be listed; `now` tells our own time."""
        self._store = store
        self._prefix = prefix
        self._now = now
        self.difference: float | None = None
        """By how many seconds the store's clock was ahead of ours when it was asked last; None if it does not tell."""

    @property
    def is_trusted(self) -> bool:
        """Whether an age may be relied upon, as far as was seen. A store that tells no time contradicts nothing."""
        return self.difference is None or abs(self.difference) <= _LARGEST_DIFFERENCE

    async def keep_checking(self) -> None:
        """Ask the store for its time again and again, so that a difference is reported before an age matters."""
        while True:
            try:
                await self.check()
            except StoreError as error:
                # Whether the store can be reached is told elsewhere.
                log.debug("the store's time is not known: %s", error)
            await trio.sleep(_CHECK_SECONDS)

    async def time(self) -> float:
        """Ask the store for its time; ours, if it tells none. Raises StoreError."""
        await self.check()
        return self._now() + (self.difference or 0.0)

    async def check(self) -> bool:
        """Ask the store for its time, and tell whether an age may be relied upon. Raises StoreError."""
        was_trusted = self.is_trusted
        self.difference = await self._store.clock_difference(self._prefix)
        if was_trusted and not self.is_trusted:
            log.error(
                "the store's clock and this machine's differ by %.0f s: nothing is removed because of its age until "
                "one of them is set right (timedatectl)",
                abs(self.difference or 0.0),
            )
        elif not was_trusted and self.is_trusted:
            log.info("the clocks of the store and of this machine agree again")
        return self.is_trusted
