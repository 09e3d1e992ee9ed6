"""Objects that the store refuses for the same reason: one condition, with one line and a growing pause."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from mirrorfs.events import EventName, about

log = logging.getLogger(__name__)

REFUSED = "the store refuses it: "
"""How the reason of each problem begins that is part of such a condition."""
_FIRST_PAUSE_SECONDS = 15.0
_LONGEST_PAUSE_SECONDS = 600.0
# One alone may be sick in a way of its own, so several are asked about when the pause is over.
_ASKED_AT_ONCE = 3


@dataclass(slots=True)
class _Condition:
    """`smallest` is the size from which on objects are taken to be refused, None where that is not known, or never.

    `is_ending` says that something was taken, after which nothing has been refused yet.
    """

    reason: str
    names: dict[str, None] = field(default_factory=dict)
    smallest: int | None = None
    pause: float = _FIRST_PAUSE_SECONDS
    due: float = 0.0
    is_ending: bool = False


class RefusedObjects:
    """What is refused, by the store's own word for why. Of the running process: each start asks anew."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` tells seconds."""
        self._clock = clock
        self._conditions: dict[str, _Condition] = {}

    def foresees(self, size: int) -> tuple[str, str] | None:
        """Return code and reason for which an object of so many bytes would be refused too; None if it is to be tried.

        Only a refusal for its size tells anything of another object.
        """
        now = self._clock()
        for code, condition in self._conditions.items():
            if condition.smallest is not None and size >= condition.smallest and now < condition.due:
                return code, condition.reason
        return None

    @property
    def limits_size(self) -> bool:
        """Whether something was refused for its size, and may be again."""
        return any(condition.smallest is not None for condition in self._conditions.values())

    def reason_of(self, code: str, words: str, size: int | None) -> str:
        """Note a refusal, of an object of `size` bytes where that is why, and return the reason that all share."""
        condition = self._conditions.setdefault(code, _Condition(f"{REFUSED}{words}"))
        if size is not None:
            condition.smallest = size if condition.smallest is None else min(size, condition.smallest)
        condition.is_ending = False
        if self._clock() >= condition.due:
            condition.due = self._clock() + condition.pause
        return condition.reason

    def add(self, code: str, name: str) -> bool:
        """Note that `name` waits for the end of a condition; tells whether it is the first."""
        condition = self._conditions[code]
        is_first = not condition.names
        condition.names[name] = None
        return is_first

    def remove(self, name: str) -> list[str]:
        """Note that all is well with `name`; returns those that are to be tried again because of that."""
        for code, condition in list(self._conditions.items()):
            if name not in condition.names:
                continue
            del condition.names[name]
            if not condition.names:
                del self._conditions[code]
                ended = about(EventName.PROBLEM_ENDED, code=code)
                log.info("what the store refused (%s) is all taken, or gone, now", code, extra=ended)
            if condition.is_ending:
                return []
            # What has passed shows that it is over, or was never what it was taken for.
            condition.is_ending, condition.smallest, condition.pause = True, None, _FIRST_PAUSE_SECONDS
            return list(condition.names)
        return []

    def __contains__(self, name: str) -> bool:
        """Tell whether `name` waits for the end of a condition."""
        return any(name in condition.names for condition in self._conditions.values())

    def waiting(self) -> set[str]:
        """Return all names that wait for the end of a condition."""
        return {name for condition in self._conditions.values() for name in condition.names}

    def due(self) -> list[str]:
        """Return a few names of each condition whose pause is over, other ones each time; the next one is longer."""
        now, asked = self._clock(), list[str]()
        for condition in self._conditions.values():
            if now < condition.due:
                continue
            condition.pause = min(condition.pause * 2, _LONGEST_PAUSE_SECONDS)
            # What is tried closes the way for the others again when it is refused.
            condition.smallest, condition.due = None, now + condition.pause
            for name in list(condition.names)[:_ASKED_AT_ONCE]:
                del condition.names[name]
                condition.names[name] = None
                asked.append(name)
        return asked

    def ask_again(self) -> None:
        """Have everything tried, whatever was refused before: somebody may have ended the cause."""
        for condition in self._conditions.values():
            condition.smallest = None


@dataclass(frozen=True, slots=True)
class Told:
    """Problems as one line: the first name, and how many there are."""

    name: str
    reason: str
    since: float
    count: int


def folded(problems: Iterable[tuple[str, str, float]]) -> list[Told]:
    """Fold problems (name, reason, since) that the store has refused for the same reason; keep all others."""
    found: dict[object, list[tuple[str, str, float]]] = {}
    for problem in problems:
        name, reason, _ = problem
        found.setdefault(reason if reason.startswith(REFUSED) else (name,), []).append(problem)
    return [_told(same) for same in found.values()]


def _told(problems: list[tuple[str, str, float]]) -> Told:
    name, reason, _ = problems[0]
    since, count = min(problem[2] for problem in problems), len(problems)
    others = "" if count == 1 else f" (and {count - 1} more are refused so, or wait for what is)"
    return Told(name, reason + others, since, count)
