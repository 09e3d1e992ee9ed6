"""What settling something would come to, and why: told by whoever would settle it, by the same decisions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

NOT_MIRRORED = "the datastore has it, and the bucket is not known to have the same"
GONE = "the datastore has it no more"


class Outlook(Enum):
    """What would be done."""

    SEND = "send"
    COMPARE = "compare with the bucket, and send what differs"
    REMOVE = "remove"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Forecast:
    """What would be done about something, and why, as a part of a sentence."""

    outlook: Outlook
    why: str
