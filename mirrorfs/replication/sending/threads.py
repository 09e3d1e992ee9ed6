"""Hands of this process: threads."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.replication.sending.attempt import Attempt, Way


class ThreadHand:
    """Sends in a thread."""

    is_ready = True

    def __init__(self, way: Way, in_memory: trio.CapacityLimiter) -> None:
        """`in_memory` bounds the chunks that this process has in memory."""
        self._way = way
        self._in_memory = in_memory

    async def ready(self) -> None:
        """See Hand."""
        await trio.lowlevel.checkpoint()

    async def send(self, digests: Sequence[bytes], capabilities: StoreCapabilities) -> Sequence[Attempt]:
        """See Hand."""
        return await trio.to_thread.run_sync(self._way.send_some, digests, capabilities, limiter=self._in_memory)
