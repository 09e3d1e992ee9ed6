"""The file that standard error goes to, opened again by its name when it has been rotated."""

from __future__ import annotations

import logging
import os
import signal
import stat
from collections.abc import Callable

_STANDARD_ERROR = 2


class LogFile:
    """What standard error is when this is made: a file whose name is remembered, or nothing that can be reopened."""

    def __init__(self) -> None:
        is_file = stat.S_ISREG(os.fstat(_STANDARD_ERROR).st_mode)
        self._path = os.readlink(f"/proc/self/fd/{_STANDARD_ERROR}") if is_file else None

    def reopen(self) -> None:
        """Have standard error go to the file that has the name now; it is made if there is none.

        Raises:
            OSError: it cannot be opened; then everything stays as it is.
        """
        if self._path is None:
            return
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        opened = os.open(self._path, flags, 0o600)
        try:
            os.dup2(opened, _STANDARD_ERROR)
        finally:
            os.close(opened)


def reopen_at_hang_up(also: Callable[[], None] = lambda: None) -> None:
    """Have a SIGHUP reopen the log of this process; `also` is called after that. To be called by the main thread."""
    log_file = LogFile()

    def reopen(*_: object) -> None:
        try:
            log_file.reopen()
        except OSError as error:
            logging.getLogger(__name__).error("the log cannot be opened again, and goes on where it was: %s", error)
        also()

    signal.signal(signal.SIGHUP, reopen)
