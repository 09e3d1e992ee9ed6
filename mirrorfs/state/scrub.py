"""What the state remembers about the scrub: when each part of the bucket was last read, and where the reading is.

A part is what is noted together, so that this stays some kilobytes however many chunks there are: the chunks whose
digests begin with the same byte, as one the objects below `.cnt`, and as one the deleted snapshots that are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from mirrorfs.state.entries import META, Entries, fields_form

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_KEY = b"scrub"
FILES = 256
"""The part of the objects below `.cnt`; smaller numbers are those of the chunks whose digests begin with that byte."""
DELETED = FILES + 1
"""The part of the deleted snapshots that are kept, without their chunks."""
PARTS = DELETED + 1
NEVER = 0.0


def _never() -> list[float]:
    return [NEVER] * PARTS


@dataclass(frozen=True, slots=True)
class ScrubPosition:
    """How far the scrub is. All times are Unix times.

    `after` is the digest in hex, or the path, up to which `part` has been read since `began` (of a deleted snapshot the
    path that it had); `read_at` says of each part since when all that it had has been read, NEVER if that was not yet;
    `last` is when an object was read last.
    """

    part: int
    after: str
    began: float
    last: float
    read_at: list[float] = field(default_factory=_never)

    @classmethod
    def at_the_beginning(cls, now: float, read_at: list[float] | None = None) -> ScrubPosition:
        """Return where to begin: with the part that was read least recently, with the last one if none was."""
        times = _never() if read_at is None else read_at
        oldest = min(reversed(range(PARTS)), key=times.__getitem__)
        return cls(oldest, "", now, now, times)

    def advanced(self, after: str, now: float) -> ScrubPosition:
        """Return how far it is when one object more has been read."""
        return replace(self, after=after, last=now)

    def at_next_part(self, now: float) -> ScrubPosition:
        """Return where to go on when the part has been read to its end."""
        read_at = list(self.read_at)
        read_at[self.part] = self.began
        return replace(self.at_the_beginning(now, read_at), last=self.last)


_FORM = fields_form(ScrubPosition)


class ScrubRecords:
    """How far the scrub is, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._entries = Entries(transaction, databases[META], _FORM)

    def position(self) -> ScrubPosition | None:
        """Tell how far the scrub is, None if it was never begun. What earlier versions do not read was never read."""
        found = self._entries.get(_KEY)
        if found is None:
            return None
        return replace(found, read_at=[*found.read_at, *_never()[len(found.read_at) :]])

    def set_position(self, position: ScrubPosition) -> None:
        """Note how far the scrub is."""
        self._entries.put(_KEY, position)

    def forget_bucket(self) -> None:
        """Note that nothing has been read."""
        self._entries.delete(_KEY)
