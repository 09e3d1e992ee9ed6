"""Mutual exclusion per key: two tasks never work on the same chunk or group at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

import trio

Key = TypeVar("Key", bound=Hashable)


class Exclusion(Generic[Key]):
    """A lock for each key that is in use, and nothing for the others."""

    def __init__(self) -> None:
        self._held: dict[Key, trio.Event] = {}

    @asynccontextmanager
    async def hold(self, key: Key) -> AsyncIterator[None]:
        """Hold `key`, after whoever holds it now."""
        while key in self._held:
            await self._held[key].wait()
        self._held[key] = trio.Event()
        try:
            yield
        finally:
            self._held.pop(key).set()

    def held(self) -> set[Key]:
        """Return the keys that somebody holds."""
        return set(self._held)
