"""Signals, and the end of a mount at one: in good order if that goes quickly, and by force if it does not."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Self

import trio

log = logging.getLogger(__name__)

# Those who use the mount are served for 3 s, the uploader has as long for what it is sending.
_ORDERLY_SECONDS = 4.0
# What is done by force may hang as well. The end is promised within 5 s.
_LONGEST_SECONDS = 4.6
_FORCED = 1
# The third is Ctrl-\ on the terminal of a mount in the foreground.
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# All else that would end or stop the process and can be caught, unless it tells of a fault of the process's own.
_MEANINGLESS = (
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGALRM,
    signal.SIGPIPE,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
    signal.SIGXCPU,
    signal.SIGTSTP,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


class Deadline:
    """Ends this process if it has not left the context within a few seconds after `begin`.

    What hangs may be the datastore's disk, under a request that cannot be called off. The kernel keeps what the journal
    has committed, so that nothing is lost by an end in the midst of anything.
    """

    def __init__(self, by_force: Callable[[], None]) -> None:
        """`by_force` is called in a thread of its own before the end, and may hang or raise OSError."""
        self._by_force = by_force
        self._timers = (
            threading.Timer(_ORDERLY_SECONDS, self._end_by_force),
            threading.Timer(_LONGEST_SECONDS, os._exit, (_FORCED,)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for timer in self._timers:
            timer.cancel()

    def begin(self) -> None:
        """Say that the end has begun; may be called once."""
        for timer in self._timers:
            timer.daemon = True
            timer.start()

    def _end_by_force(self) -> None:
        log.warning("ending by force: what was under way has not come to its end (does a disk not answer?)")
        try:
            self._by_force()
        except OSError as error:
            log.warning("ending by force: %s", error)
        finally:
            os._exit(_FORCED)


def block_signals() -> None:
    """Leave the signals that `handle_signals` takes to it; to be called before any other thread is started.

    Processes that are started from here inherit it, and have to unblock what shall reach them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_ENDING, signal.SIGHUP, *_MEANINGLESS))


def handle_signals(scope: trio.CancelScope, deadline: Deadline, hang_up: Callable[[], None]) -> None:
    """Cancel `scope` at a signal that asks for the end; a second one ends the process at once. Call `hang_up` at each
    SIGHUP.

    What nobody means is logged, and neither leaves a dead mount behind nor stops this process. A thread waits for them
    all, in which `hang_up` is called: a handler would have to wait for whatever system call holds up the thread of
    trio.
    """
    token = trio.lowlevel.current_trio_token()

    def wait() -> None:
        is_ending = False
        while True:
            number = signal.Signals(signal.sigwait((*_ENDING, signal.SIGHUP, *_MEANINGLESS)))
            if number in _MEANINGLESS:
                log.info("%s means nothing here: it is ignored", number.name)
            elif number is signal.SIGHUP:
                hang_up()
            elif is_ending:
                os._exit(128 + number)
            else:
                is_ending = True
                deadline.begin()
                log.info("unmounting, at %s; a second signal ends this at once", number.name)
                with suppress(trio.RunFinishedError):
                    token.run_sync_soon(scope.cancel)

    threading.Thread(target=wait, daemon=True).start()
