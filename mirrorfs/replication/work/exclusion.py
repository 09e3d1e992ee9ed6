"""Mutual exclusion per key: two tasks never work on the same chunk or group at once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
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

    @contextmanager
    def hold_free(self, keys: Iterable[Key]) -> Iterator[list[Key]]:
        """Hold those of `keys` that nobody holds, which it gives, without waiting for the others."""
        free = [key for key in dict.fromkeys(keys) if key not in self._held]
        self._held.update((key, trio.Event()) for key in free)
        try:
            yield free
        finally:
            for key in free:
                self._held.pop(key).set()

    def held(self) -> set[Key]:
        """Return the keys that somebody holds."""
        return set(self._held)
