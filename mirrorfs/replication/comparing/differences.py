"""A difference between datastore, state and bucket, as `mirrorfs reconcile` tells it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum


class Remedy(Enum):
    """What is done about a difference."""

    SEND = "send"
    """From the datastore to the bucket."""
    COMPARE = "compare"
    """Datastore with bucket, checksum with checksum; what turns out to be the same is not sent again."""
    DELETE = "delete"
    """From the bucket."""
    NONE = "none"
    """It cannot be mended from here: `status` names it as a problem."""
    LEAVE = "leave"
    """A foreign object: never touched, and no difference in the sense of the exit code."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What is wrong with the object `key` (a full key in the bucket; a prefix that ends with "/" for a snapshot)."""

    key: str
    found: str
    remedy: Remedy


Report = Callable[[Difference], Awaitable[None]]
"""Called with each difference, in the order in which they are found."""
