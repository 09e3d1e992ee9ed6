"""Requests from trio: in threads, a bounded number at once, repeated while the store cannot be used."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import trio

from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.retry import Condition, Patience, Persistence

Result = TypeVar("Result")
Observer = Callable[[str, str], None]
"""Called with a step ("before-put", "after-put", "before-delete", "after-delete") and a key.

A copy is a PUT of the key that it is made for.
"""


class PatientRequests:
    """What all operations on one bucket are made of. To be used in one trio run."""

    def __init__(
        self,
        client: S3Client,
        *,
        parallelism: int,
        patience: Patience,
        observer: Observer | None,
        condition: Condition | None,
    ) -> None:
        """`parallelism` bounds the requests under way; see `ObjectStore`."""
        self.client = client
        self._observer = observer
        self._limiter = trio.CapacityLimiter(parallelism)
        self._persistence = Persistence(patience, condition or Condition())

    @property
    def condition(self) -> Condition:
        """Whether the store serves."""
        return self._persistence.condition

    @property
    def place(self) -> str:
        """Bucket and endpoint, for messages."""
        return self.client.place

    async def read(self, request: Callable[[], Result]) -> Result:
        """Makes a request that changes nothing, and that may be abandoned."""
        return await self._persistence.repeat(lambda: self.in_thread(request, may_abandon=True))

    async def change(self, request: Callable[[], Result]) -> Result:
        """Makes a request that changes something else than what is stored."""
        return await self._persistence.repeat(lambda: self.in_thread(request, may_abandon=False))

    async def repeat_write(self, operation: Callable[[], Awaitable[Result]]) -> Result:
        """Repeats what puts an object."""
        return await self._persistence.repeat(operation, writes=True)

    async def repeat(self, operation: Callable[[], Awaitable[Result]]) -> Result:
        """Repeats anything else."""
        return await self._persistence.repeat(operation)

    async def pause(self, tries: int) -> None:
        """Waits as after so many tries of an operation that has no use for the success of others."""
        await self._persistence.pause(tries)

    async def in_thread(self, request: Callable[[], Result], *, may_abandon: bool) -> Result:
        """Runs one try; a request that may not be abandoned is brought to its end when it is cancelled."""
        return await trio.to_thread.run_sync(request, limiter=self._limiter, abandon_on_cancel=may_abandon)

    def observe(self, step: str, keys: Sequence[str]) -> None:
        """Tells the observer."""
        if self._observer is not None:
            for key in keys:
                self._observer(step, key)
