"""An owner of the bucket who is never asked twice: for tests and measurements that are about something else."""

from __future__ import annotations

import trio


class Unwatched:
    """The bucket is the mirror's, and as the state says. Stands in for OwnershipWatch."""

    async def confirm(self) -> None:
        await trio.lowlevel.checkpoint()

    async def confirm_for_removal(self) -> None:
        await trio.lowlevel.checkpoint()

    async def doubt(self, evidence: str) -> None:
        raise AssertionError(f"the bucket is not as the state says: {evidence}")
