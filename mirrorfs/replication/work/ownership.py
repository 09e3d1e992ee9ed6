"""What whoever publishes or removes asks before: is the bucket still this mirror's, and as the state says?"""

from __future__ import annotations

from typing import Protocol


class Ownership(Protocol):
    """The answer is given by looking at the bucket. Where it is no, whoever asked is cancelled."""

    async def confirm(self) -> None:
        """Return when the bucket has been seen to be this mirror's, by a look that began after the call."""

    async def confirm_for_removal(self) -> None:
        """Return when that has been seen, and a state from before is known to be an older one."""

    async def doubt(self, evidence: str) -> None:
        """Say that the bucket is not as the state has it: it is compared before anything else is done. Never returns.

        `evidence` is what was found, as a sentence without its end.
        """
