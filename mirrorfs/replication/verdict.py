"""How a mirror is in one word, why, and what to do: what an administrator wants to know first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from mirrorfs.replication.waiting import BEFORE_THE_FIRST_ANSWER, PATIENCE_WITH_AN_OUTAGE, needs_an_administrator


class Word(Enum):
    """How a mirror is; of several things that are so, the last of this list is said."""

    HEALTHY = "healthy"
    """Every finished backup is in the bucket, or has been on its way for a short time only."""
    BEHIND = "behind"
    """A backup is finished for longer, and not in the bucket yet; it is being worked on."""
    HELD = "held"
    """Removals wait for somebody to decide."""
    WAITING = "waiting"
    """The store is not usable, or has not answered yet; that may end by itself."""
    BROKEN = "broken"
    """Something is not mirrored, or not as it should be, until somebody does something."""

    @property
    def exit_code(self) -> int:
        """For Nagios and its kind: 0 all is well, 1 to be looked at, 2 to be mended."""
        return {Word.HEALTHY: 0, Word.BROKEN: 2}.get(self, 1)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The word, and two sentences."""

    word: Word
    why: str
    to_do: str


NOTHING_TO_DO = "Nothing is to be done."


def verdict(answer: Mapping[str, Any], behind_after: float) -> Verdict:
    """Judge an answer of `status`; a mirror is behind when its recovery point is older than so many seconds."""
    return verdicts(answer, behind_after)[0]


def verdicts(answer: Mapping[str, Any], behind_after: float) -> list[Verdict]:
    """Return all that is so, gravest first; as `verdict`, which says the first."""
    judged = [_broken(answer), _waiting(answer), _held(answer), _behind(answer, behind_after)]
    return [one for one in judged if one is not None]


def _broken(answer: Mapping[str, Any]) -> Verdict | None:
    path = answer["datastore"]
    if answer["uploader"]["refused"] is not None:
        return Verdict(Word.BROKEN, "Nothing is mirrored.", answer["uploader"]["refused"])
    if answer["journal_broken_since"] is not None:
        why = "The journal cannot be written: changes are missing in it."
        return Verdict(Word.BROKEN, why, "Look at the disk of the state directory; what is missing is compared then.")
    if answer["failing_processes"]:
        failing = answer["failing_processes"][-1]
        why = f"The {failing['process']} has ended {failing['deaths']} times in a row: it {failing['last']}."
        return Verdict(Word.BROKEN, why, "Look at the log of the mount and at the memory of this machine.")
    if needs_an_administrator(answer):
        return Verdict(Word.BROKEN, "Nothing gets into the bucket.", answer["waiting"]["because"])
    if (hanging := _hanging_request(answer)) is not None:
        why = f"Nothing gets into the bucket: for {hanging['seconds']:.0f} s nothing has come or gone for a request."
        return Verdict(Word.BROKEN, why, f"Look at the store and the way to it; the request is: {hanging['request']}.")
    if answer["problems"]:
        count = sum(problem.get("count", 1) for problem in answer["problems"])
        why = f"{count} {'name cannot be mirrored as it is' if count == 1 else 'names cannot be mirrored as they are'}."
        return Verdict(Word.BROKEN, why, f"Mend what 'mirrorfs status {path}' lists as problems, each with its reason.")
    return None


def _hanging_request(answer: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the request that hangs for longest, if it does for too long and nothing else gets through meanwhile."""
    hanging: list[Mapping[str, Any]] = answer["store"].get("requests_without_progress", [])
    longest = max(hanging, key=lambda request: request["seconds"], default=None)
    if longest is None or longest["seconds"] < PATIENCE_WITH_AN_OUTAGE or answer["uploaded"]["bytes_per_second"] > 0:
        return None
    return longest


def _waiting(answer: Mapping[str, Any]) -> Verdict | None:
    waiting = answer.get("waiting")
    if waiting is None and answer["uploader"]["phase"] != BEFORE_THE_FIRST_ANSWER:
        return None
    why = "The store has not answered yet." if waiting is None else waiting["because"]
    return Verdict(
        Word.WAITING, why, "Nothing for now: backups go on, and it goes on by itself when the store is back."
    )


def _held(answer: Mapping[str, Any]) -> Verdict | None:
    held = len(answer["retention"]["held"])
    if not held:
        return None
    why = f"{held} {'snapshot is' if held == 1 else 'snapshots are'} gone from the datastore and kept in the bucket."
    return Verdict(Word.HELD, why, f"Decide: 'mirrorfs retention approve {answer['datastore']}', or bring them back.")


def _behind(answer: Mapping[str, Any], behind_after: float) -> Verdict:
    point = answer["recovery_point"]
    if not point["missing"]:
        return Verdict(Word.HEALTHY, "Every finished backup is in the bucket.", NOTHING_TO_DO)
    count = (
        f"{point['missing']} finished {'backup is' if point['missing'] == 1 else 'backups are'} not in the bucket yet"
    )
    if point["age_seconds"] <= behind_after:
        return Verdict(Word.HEALTHY, f"{count}, for less than the time that was given.", NOTHING_TO_DO)
    drain = answer.get("backlog", {}).get("drain_seconds")
    to_do = (
        "Nothing, if the backlog shrinks."
        if drain is not None
        else "Look at the rate: nothing was sent in the last minute."
    )
    return Verdict(Word.BEHIND, f"{count}, the oldest is {point['oldest']}.", to_do)
