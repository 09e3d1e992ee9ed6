"""With which retention a world's mirror is mounted, and how a round's seed chooses it."""

from __future__ import annotations

import random
from dataclasses import dataclass

_SHORTEST_GRACE, _LONGEST_SHORT_GRACE = 5, 20
_LONG_GRACE = 3600
_LOCK = 86400


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """What `mirrorfs mount` is told. `delete_after` and `lock_for` are in seconds, `max_delete_fraction` is a share of
    the snapshots; 0 and None stand for the option left out."""

    delete_after: int = 0
    max_delete_fraction: float | None = None
    lock_for: int | None = None

    @property
    def ends_soon(self) -> bool:
        """Whether what is kept will be over before anybody loses patience."""
        return self.delete_after <= _LONGEST_SHORT_GRACE

    @property
    def mount_options(self) -> tuple[str, ...]:
        """The options for the command line."""
        options: list[str] = []
        if self.delete_after:
            options += ["--retention-delete-after", f"{self.delete_after}s"]
        if self.max_delete_fraction is not None:
            options += ["--retention-max-delete-fraction", str(self.max_delete_fraction)]
        if self.lock_for is not None:
            options += ["--retention-lock-for", f"{self.lock_for}s"]
        return tuple(options)

    def __str__(self) -> str:
        return " ".join(self.mount_options) or "no retention options"


FOR_A_SWEEP = RetentionSettings(delete_after=_SHORTEST_GRACE, max_delete_fraction=0.9, lock_for=_LOCK)
"""What makes a mirror reach every step that there is, if its bucket has Object Lock."""


def choose_retention(seed: int) -> RetentionSettings:
    """Half of all rounds keep nothing; some hold large removals; where a bucket can lock, some lock."""
    # A source of its own: what is chosen here changes nothing else in the round.
    choice = random.Random(f"retention {seed}")
    short = choice.randint(_SHORTEST_GRACE, _LONGEST_SHORT_GRACE)
    return RetentionSettings(
        delete_after=choice.choice((0, 0, short, _LONG_GRACE)),
        max_delete_fraction=choice.choice((None, None, None, 0.1, 0.3, 0.6)),
        lock_for=choice.choice((None, None, _LOCK)),
    )


def chooses_versions(seed: int) -> bool:
    """Whether a round's mirror goes to the bucket that keeps versions, if there is one."""
    return random.Random(f"versions {seed}").random() < 0.25
