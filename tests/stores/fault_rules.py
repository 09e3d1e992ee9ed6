"""Which faults the proxy can inject, the rules that inject them on command, and the storm that does so by chance."""

from __future__ import annotations

import fnmatch
import random
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from tests.stores.odd_answers import ODD_ANSWERS

_LONGEST_HOLD = 60.0
_LONGEST_STALENESS = 5.0
_SHORTEST_STALENESS = 0.3


class Fault(Enum):
    """What happens to a request that a rule is for, or that the storm picks."""

    DROP_BEFORE = "the connection breaks before the store has seen the request"
    DROP_DURING = "the connection breaks when half of the request's body has been read; the store sees nothing of it"
    DROP_AFTER = "the store has done it, but the connection breaks before the answer"
    ANSWER = "the proxy answers in the store's place, with `Rule.status`"
    SERVER_ERROR = "the proxy answers 500 InternalError in the store's place"
    SLOW_DOWN = "the proxy answers 503 SlowDown with a Retry-After header in the store's place"
    DENY = "the proxy answers 403 AccessDenied in the store's place; in a storm, everything for a period"
    CORRUPT = "the store gets the request with one byte of its body changed"
    CORRUPT_ANSWER = "one byte of the answer's body is changed, and none of its headers"
    TRUNCATE = "the connection breaks in the middle of the answer's body"
    SHORTEN = "the answer's body ends in the middle, and its Content-Length says so too"
    LOSE = "a PUT or copy is answered with 200, the right ETag and the checksum sent, but the store never sees it"
    STALE_HEAD = "a HEAD of an object is answered as `Rule.seconds` ago"
    STALE_LIST = "a ListObjectsV2 is answered as `Rule.seconds` ago: without new keys, with deleted ones"
    SKEW = "the Date header of the answer is off by `Rule.seconds`"
    ODD = "the answer is one that S3 does not give: `Rule.odd` of the catalogue in odd_answers"
    TRICKLE = "the answer comes in small pieces, over `Rule.seconds`"
    DELAY = "the request is forwarded after `Rule.seconds`"
    HOLD = "the request is forwarded when the rule is released, unless its sender is gone by then"
    HOLD_AFTER = "the store has done it; the answer is forwarded when the rule is released"

    @property
    def label(self) -> str:
        """The name of the kind in tables, such as "drop-before"; it never changes."""
        return self.name.lower().replace("_", "-")


WEATHER = (
    Fault.DROP_BEFORE,
    Fault.DROP_DURING,
    Fault.DROP_AFTER,
    Fault.SERVER_ERROR,
    Fault.SLOW_DOWN,
    Fault.DENY,
    Fault.CORRUPT,
    Fault.CORRUPT_ANSWER,
    Fault.TRUNCATE,
    Fault.SHORTEN,
    Fault.LOSE,
    Fault.STALE_HEAD,
    Fault.STALE_LIST,
    Fault.ODD,
    Fault.TRICKLE,
    Fault.DELAY,
)
"""The kinds that a storm can bring: those that end by themselves."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What decides which faults can meet a request. A key of "" is a request on the bucket.

    `is_of_content` is false for what concerns an object's retention and the like.
    """

    method: str
    key: str
    has_body: bool
    is_listing: bool
    is_of_content: bool = True

    def can_meet(self, fault: Fault) -> bool:
        """Whether the fault would be one for such a request."""
        match fault:
            case Fault.DROP_DURING:
                return self.has_body
            case Fault.CORRUPT | Fault.LOSE:
                is_put = self.method == "PUT" and self.key != "" and self.is_of_content
                return is_put and (self.has_body or fault is Fault.LOSE)
            case Fault.TRUNCATE | Fault.SHORTEN | Fault.TRICKLE:
                return self.method == "GET"
            case Fault.CORRUPT_ANSWER:
                # Nothing in a listing could tell that a key in it is not the one that was sent.
                return self.method == "GET" and self.key != "" and self.is_of_content
            case Fault.STALE_HEAD:
                return self.method == "HEAD" and self.key != ""
            case Fault.STALE_LIST:
                return self.is_listing
            case Fault.ODD:
                return bool(self.odd_answers())
            case _:
                return True

    def odd_answers(self) -> list[str]:
        """The names of the odd answers that can be given to such a request."""
        if self.key:
            kind = self.method if self.is_of_content else "question"
        else:
            kind = "listing" if self.is_listing else "delete" if self.method == "POST" else "question"
        return [
            odd.name
            for odd in ODD_ANSWERS.values()
            if kind in odd.requests and (odd.keys == "*" or fnmatch.fnmatchcase(self.key, odd.keys))
        ]


@dataclass(slots=True)
class Rule:
    """A fault for requests of a method ("*" for any) on keys of a pattern (fnmatch; "" is a request on the bucket).

    `remaining` counts down how often it still applies; None is for ever. `ends_at` is in seconds of the monotonic
    clock; None is never. `reached` is set with each request it has been applied to.
    """

    fault: Fault
    method: str
    key_pattern: str
    remaining: int | None = None
    status: int = 500
    code: str = "InternalError"
    seconds: float = 0.0
    retry_after: str | None = None
    body: bytes | None = None
    ends_at: float | None = None
    odd: str = ""
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Lets what is held or delayed go on, and all later ones pass."""
        self.remaining = 0
        self.released.set()

    def wait_for_release(self, seconds: float = _LONGEST_HOLD) -> None:
        """Blocks until `release`, or for so many seconds."""
        self.released.wait(seconds)

    def fits(self, method: str, key: str) -> bool:
        """Whether the rule is for such a request."""
        return self.method in ("*", method) and fnmatch.fnmatchcase(key, self.key_pattern)

    @property
    def is_over(self) -> bool:
        """Whether its time has run out."""
        return self.ends_at is not None and time.monotonic() >= self.ends_at


class Storm:
    """Faults by chance, the same for the same seed and the same order of requests. Not for several threads at once."""

    def __init__(self, seed: int, kinds: Collection[Fault] | None, probability: float, longest_delay: float) -> None:
        unknown = set(kinds or ()) - set(WEATHER)
        assert not unknown, f"not for a storm: {unknown}"
        self._randomness = random.Random(seed)
        # In the order of their declaration: that of a set would differ from run to run.
        self._kinds = [fault for fault in WEATHER if kinds is None or fault in kinds]
        self._probability = probability
        self._longest_delay = longest_delay
        self._calm = threading.Event()

    def end(self) -> None:
        """Lets what it delays go on."""
        self._calm.set()

    def strike(self, shape: Shape) -> Rule | None:
        """The fault that this request meets, mostly none, as a rule for it alone.

        Fault.DENY is a rule for everything, with an end.
        """
        randomness = self._randomness
        # All are drawn each time, so that what one request meets changes nothing for the next.
        happens = randomness.random() < self._probability
        choice, wait = randomness.random(), randomness.uniform(0.0, self._longest_delay)
        staleness = randomness.uniform(_SHORTEST_STALENESS, _LONGEST_STALENESS)
        oddity = randomness.random()
        kinds = [fault for fault in self._kinds if shape.can_meet(fault)]
        if not happens or not kinds:
            return None
        fault = kinds[int(choice * len(kinds))]
        rule = Rule(fault, "*", "*", released=self._calm)
        match fault:
            case Fault.SLOW_DOWN:
                rule.status, rule.code, rule.retry_after = 503, "SlowDown", str(max(1, round(wait)))
            case Fault.DENY:
                rule.status, rule.code, rule.ends_at = 403, "AccessDenied", time.monotonic() + wait / 4
            case Fault.ODD:
                names = shape.odd_answers()
                rule.odd = names[int(oddity * len(names))]
            case Fault.DELAY | Fault.TRICKLE:
                rule.seconds = wait
            case Fault.STALE_HEAD | Fault.STALE_LIST:
                rule.seconds = staleness
        return rule
