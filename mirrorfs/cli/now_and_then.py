"""Lines about something that takes long, for logs and pipes."""

from __future__ import annotations

import time
from collections.abc import Callable

from mirrorfs.output import say

_SECONDS = 30.0


class NowAndThen:
    """Says on standard error how far something is: once in half a minute, however often it is asked to."""

    def __init__(self) -> None:
        self._said_at = time.monotonic()

    def say(self, line: Callable[[], str]) -> None:
        """Say a line, if it is time; else it is not made."""
        now = time.monotonic()
        if now - self._said_at >= _SECONDS:
            self._said_at = now
            say(line(), err=True)
