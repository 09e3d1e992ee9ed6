"""When a store that refused to delete something is asked again."""

from __future__ import annotations

_REFUSED_SECONDS = 3600.0


def asked_again_at(now: float, locked_until: float) -> float:
    """Return the Unix time of the next try: in an hour, or when the lock ends, if that is later.

    `locked_until` is 0 where no lock is known.
    """
    return max(now + _REFUSED_SECONDS, locked_until)
