"""What the page tells of a mirror: read when somebody looks and the last reading is old, and once a minute anyway."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import trio

from mirrorfs import __version__
from mirrorfs.output import printable
from mirrorfs.web.history import POINT_SECONDS, History

_FRESH_SECONDS = 4.0
# Of a mirror that is slow to answer less is asked: it has other things to do.
_SHARE_OF_ASKING = 0.2
MOST_LISTED = 200
"""So many of each kind of thing the page lists; of more it only tells how many there are."""
# Not for the page: how the store is reached may name a proxy with its password.
_NOT_SHOWN = ("store_options", "snapshots")


@dataclass(frozen=True, slots=True)
class Drilled:
    """When (Unix time) a group was restored for a trial last, and whether all of it was good."""

    group: str
    time: float
    good: bool


@dataclass(frozen=True, slots=True)
class Reading:
    """What was learnt of a mirror: its `status`, with the word, or else the sentence that says why there is none.

    `drills_error`: why it is not known what was drilled. `approve` is the
    command that approves of held removals, `heal` the one that brings good chunks back.
    """

    status: Mapping[str, Any] | None
    error: str | None
    drills: Sequence[Drilled] = ()
    drills_error: str | None = None
    approve: str = ""
    heal: str = ""


class Overview:
    """The latest reading of a mirror, and the last day of it, as the documents that the page asks for."""

    def __init__(self, read: Callable[[], Reading], point_seconds: float = POINT_SECONDS) -> None:
        """`read` asks the mirror; it blocks, for as long as that takes, and raises nothing that is to be expected.

        `point_seconds`: how far points of the history are apart.
        """
        self._read = read
        self._point_seconds = point_seconds
        self._history = History()
        self._reading = Reading(None, "nothing was read yet")
        self._told: Mapping[str, Any] | None = None
        """The last status that there was."""
        self._counts: Mapping[str, Any] = {}
        self._told_at: float | None = None
        self._snapshots, self._snapshots_version = b"[]", ""
        self._ended, self._took = float("-inf"), 0.0
        self._asking = trio.Lock()
        self._threads = trio.CapacityLimiter(1)

    async def sample(self) -> None:
        """Note one point of the history after the other, until cancelled."""
        while True:
            await self._refresh()
            self._history.note(time.time(), self._reading.status)
            await trio.sleep(self._point_seconds)

    async def live(self) -> bytes:
        """Return how the mirror is now, without what has a document of its own."""
        await self._refresh()
        return _document(
            {
                "version": __version__,
                "error": self._reading.error,
                "read_at": self._told_at,
                "status": self._told,
                "counts": self._counts,
                "snapshots_version": self._snapshots_version,
                "history_at": self._history.latest,
                "drills": [
                    {"group": one.group, "time": one.time, "good": one.good}
                    for one in self._reading.drills[:MOST_LISTED]
                ],
                "drills_count": len(self._reading.drills),
                "drills_error": self._reading.drills_error,
                "approve": self._reading.approve,
                "heal": self._reading.heal,
            }
        )

    async def snapshots(self) -> bytes:
        """Return each snapshot with its phase, as of the last reading."""
        return self._snapshots

    async def history(self) -> bytes:
        """Return the points of the last day."""
        return _document(self._history.told())

    async def _refresh(self) -> None:
        async with self._asking:
            if trio.current_time() - self._ended < max(_FRESH_SECONDS, self._took / _SHARE_OF_ASKING):
                return
            began = trio.current_time()
            self._reading = await trio.to_thread.run_sync(self._read, abandon_on_cancel=True, limiter=self._threads)
            self._ended = trio.current_time()
            self._took = self._ended - began
            if self._reading.status is not None:
                self._take(self._reading.status)

    def _take(self, status: Mapping[str, Any]) -> None:
        self._told_at = time.time()
        shown = {name: value for name, value in status.items() if name not in _NOT_SHOWN}
        self._told, self._counts = {**shown, **_shortened(status)}, _counts(status)
        self._snapshots = _document(status["snapshots"])
        self._snapshots_version = hashlib.sha256(self._snapshots).hexdigest()[:16]


def _shortened(status: Mapping[str, Any]) -> dict[str, Any]:
    """Cut the lists that have no end."""
    retention = status["retention"]
    return {
        "retention": {**retention, "held": retention["held"][:MOST_LISTED], "deleted": []},
        "problems": status["problems"][:MOST_LISTED],
    }


def _counts(status: Mapping[str, Any]) -> dict[str, Any]:
    """Say how long they are."""
    retention = status["retention"]
    return {
        "published": sum(snapshot["phase"] == "published" for snapshot in status["snapshots"]),
        "problems": sum(problem.get("count", 1) for problem in status["problems"]),
        "held": len(retention["held"]),
        "deleted": len(retention["deleted"]),
        "deleted_first_until": min((snapshot["until"] for snapshot in retention["deleted"]), default=None),
    }


def _document(value: object) -> bytes:
    return json.dumps(_shown(value), separators=(",", ":")).encode("ascii")


def _shown(value: object) -> object:
    """Make every text in it one that hides and turns round nothing: names come from whoever has made them."""
    match value:
        case str():
            return printable(value)
        case Mapping():
            return {printable(str(name)): _shown(inner) for name, inner in value.items()}
        case list() | tuple():
            return [_shown(inner) for inner in value]
        case _:
            return value
