"""The filesystem process as the uploader sees it: who started it, wakes it, and ends with it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import aclosing
from itertools import count
from typing import Protocol

import trio

from mirrorfs.objectstore.rate_schedule import RateLimits
from mirrorfs.replication.control import stream_lines

CATCH_UP = "catch-up"
CAUGHT_UP = "caught-up"
ALIVE = "alive"
ALIVE_SECONDS = 30.0
"""How often the uploader says that it works. Whoever hangs does not."""
LIMITS = "limits"
REMOVALS_ALLOWED = "removals-allowed"

_limits = re.compile(rf"{LIMITS} (\{{.*\}})".encode())
_caught_up = re.compile(rf"{CAUGHT_UP} ([0-9]{{1,18}})".encode())


class Tell(Protocol):
    """Tells the filesystem process something, as a line of JSON on standard output."""

    def __call__(self, event: str, /, **details: str | int) -> None: ...


class FilesystemProcess:
    """Hears it on standard input, and asks it.

    An empty line says that the journal has grown; `caught-up N` answers the question `N` of `catch_up`; `limits JSON`
    tells other limits.
    """

    def __init__(self, wake: Callable[[], None], tell: Tell, limit: Callable[[RateLimits], None]) -> None:
        """`wake` is called when the journal has grown, `limit` when other limits are to hold."""
        self._limit = limit
        self._wake = wake
        self._tell = tell
        self._numbers = count(1)
        self._asked: dict[int, trio.Event] = {}

    async def follow(self) -> None:
        """Hear it until it is gone or asks to end."""
        async with (
            trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream,
            aclosing(stream_lines(stream)) as lines,
        ):
            async for line in lines:
                self._hear(line)

    async def say_alive(self) -> None:
        """Say again and again that this process works, until cancelled."""
        while True:
            self._tell(ALIVE)
            await trio.sleep(ALIVE_SECONDS)

    async def catch_up(self) -> None:
        """Return when the journal holds every change that has happened in the datastore before this call."""
        number = next(self._numbers)
        self._asked[number] = answered = trio.Event()
        try:
            self._tell(CATCH_UP, number=number)
            await answered.wait()
        finally:
            del self._asked[number]

    def _hear(self, line: bytes) -> None:
        if (told := _limits.fullmatch(line)) is not None:
            self._limit(RateLimits.from_json(json.loads(told[1])))
            return
        match = _caught_up.fullmatch(line)
        if match is None:
            self._wake()
        elif (answered := self._asked.get(int(match[1]))) is not None:
            answered.set()
