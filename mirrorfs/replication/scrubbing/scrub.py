"""The scrub: everything that the bucket holds is read again, a share of it each day, the longest unread part first."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import trio

from mirrorfs.datastore.names import chunk_path
from mirrorfs.replication.scrubbing.examination import UNREADABLE, Outcome
from mirrorfs.replication.scrubbing.kept import path_of_kept
from mirrorfs.replication.scrubbing.losses import Losses
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.scrub import DELETED, FILES, NEVER, ScrubPosition
from mirrorfs.state.state import StateTransaction

log = logging.getLogger(__name__)

_DAY = 86400.0
_NAMES = {FILES: "files", DELETED: "deleted"}
_NAMES_AT_ONCE = 1000
_SAVE_SECONDS = 30.0
_LONGEST_SLEEP = 600.0
# What an outage or much other work has held up is caught up with, but not all at once.
_MOST_BEHIND = 3600.0


class Scrub:
    """Reads one object at a time, spread evenly over the day, and never while there is anything else to do.

    How far it is stands in the state; what was read within the last half minute may be read once more after a crash.
    """

    def __init__(
        self,
        losses: Losses,
        state: CommittedState,
        worklist: Worklist,
        *,
        percent_per_day: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`percent_per_day` of all objects are read, 0: none. `now` tells the Unix time."""
        self._losses = losses
        self._state = state
        self._worklist = worklist
        self._percent_per_day = percent_per_day
        self._now = now
        self._saved_at = now()
        self._refusal: str | None = None
        self._read = self._mended = 0

    async def run(self) -> None:
        """Scrub until cancelled; returns at once if nothing is to be read."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(self._losses.keep_looking, reads=self._percent_per_day > 0))
            if self._percent_per_day:
                nursery.start_soon(self._read_on)

    def answer(self) -> dict[str, Any]:
        """Tell how far it is, for `status`."""
        read_at = self._known_position().read_at
        times = [moment for moment in read_at if moment != NEVER]
        return {
            "percent_per_day": self._percent_per_day,
            "parts": {_part_name(part): moment or None for part, moment in enumerate(read_at)},
            "never_read": len(read_at) - len(times),
            "oldest": min(times, default=None),
            "objects": self._read,
            "sent_again": self._mended,
            "refusal": self._refusal,
        }

    async def _read_on(self) -> None:
        position = self._known_position()
        # When the first object is due must not be put off by each start.
        await self._save(position)
        while True:
            names = await trio.to_thread.run_sync(self._names_after, position)
            for name, path in names:
                await self._turn(position.last)
                await self._look_at(path)
                # Not `now`, or what was held up would never be caught up with.
                due = max(position.last + self._seconds_between(), self._now() - _MOST_BEHIND)
                position = position.advanced(name, min(due, self._now()))
                await self._keep(position)
            if not names:
                while not self._objects():
                    await self._worklist.changed()
                position = position.at_next_part(self._now())
                await self._keep(position)

    def _known_position(self) -> ScrubPosition:
        known = self._state.view(lambda transaction: transaction.scrub.position())
        return known or ScrubPosition.at_the_beginning(self._now())

    def _names_after(self, position: ScrubPosition) -> list[tuple[str, str]]:
        """What comes next in the part, each as the position notes it, with its path in the datastore."""
        return self._state.view(lambda transaction: list(_names_after(transaction, position)))

    async def _turn(self, last: float) -> None:
        """Wait until an object may be read: it is time for it, and there is nothing else to do."""
        while (left := last + self._seconds_between() - self._now()) > 0:
            # A clock that was set back must not stop it for ever.
            if last > self._now():
                break
            await trio.sleep(min(left, _LONGEST_SLEEP))
        await self._worklist.idle()

    def _seconds_between(self) -> float:
        return _DAY / (self._percent_per_day / 100 * max(1, self._objects()))

    def _objects(self) -> int:
        return self._state.view(
            lambda transaction: (
                transaction.chunks.count() + transaction.contents.count() + transaction.retention.count_deleted()
            )
        )

    async def _look_at(self, path: str) -> None:
        try:
            self._mended += await self._losses.see_to(path) is Outcome.SENT
            self._refusal = None
        except UNREADABLE as error:
            # That it does not give it says nothing of what it holds.
            if self._refusal is None:
                log.warning("the scrub cannot read what the bucket holds: %s", error)
            self._refusal = str(error)
        self._read += 1

    async def _keep(self, position: ScrubPosition) -> None:
        is_next_soon = self._seconds_between() < _SAVE_SECONDS
        if is_next_soon and self._now() - self._saved_at < _SAVE_SECONDS:
            return
        await self._save(position)

    async def _save(self, position: ScrubPosition) -> None:
        self._saved_at = self._now()
        await self._state.apply(lambda transaction: transaction.scrub.set_position(position))


def _part_name(part: int) -> str:
    return _NAMES.get(part) or f"{part:02x}"


def _names_after(transaction: StateTransaction, position: ScrubPosition) -> Iterator[tuple[str, str]]:
    if position.part == FILES:
        for content in transaction.contents.after(position.after, _NAMES_AT_ONCE):
            yield content.path, content.path
        return
    if position.part == DELETED:
        for deleted in transaction.retention.deleted_after(position.after, _NAMES_AT_ONCE):
            yield deleted.path, path_of_kept(deleted.path)
        return
    first = position.part.to_bytes(1, "big")
    after = bytes.fromhex(position.after) or _before(first)
    for digest, _ in transaction.chunks.after(after, _NAMES_AT_ONCE):
        if digest[:1] != first:
            return
        yield digest.hex(), chunk_path(digest)


def _before(first: bytes) -> bytes:
    """What no chunk's digest is, and comes just before those that begin with this byte."""
    number = int.from_bytes(first, "big")
    return b"" if number == 0 else bytes([number - 1]) + b"\xff" * 32
