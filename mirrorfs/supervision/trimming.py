"""Dropping from the journal what the uploader has dealt with, without holding up the mount."""

from __future__ import annotations

import logging

import trio

from mirrorfs.database.errors import DatabaseError
from mirrorfs.journal.journal import JournalWriter, Position
from mirrorfs.steps import reach

log = logging.getLogger(__name__)


class Trimming:
    """Trims in a thread, a few records at a time, so that no system call waits for long behind it."""

    def __init__(self, journal: JournalWriter) -> None:
        self._journal = journal
        self._position: Position | None = None
        self._news = trio.Event()

    def done_up_to(self, position: Position) -> None:
        """Hear how far the uploader is."""
        self._position = position
        self._news.set()

    async def run(self) -> None:
        """Trim as positions come in, until cancelled."""
        while True:
            await self._news.wait()
            self._news = trio.Event()
            if self._position is None:
                continue
            reach("trimming.before-trim")
            try:
                while await trio.to_thread.run_sync(self._journal.trim_some, self._position):
                    continue
                reach("trimming.after-trim")
            except DatabaseError as error:
                # Nothing is lost by records that stay; the next position tries again.
                log.warning("the journal cannot be trimmed: %s", error)
