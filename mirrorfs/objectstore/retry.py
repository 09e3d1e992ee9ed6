"""Waiting out an unavailable store: the law of backing off, and the condition of the store as all callers see it."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

import trio

from mirrorfs.events import EventName, about
from mirrorfs.objectstore.errors import StoreError, StoreReason, StoreUnavailable

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# From this failure on, an operation that fails while others succeed gets a log line of its own.
_FAILURES_WORTH_A_LINE = 3


@dataclass(frozen=True, slots=True)
class Patience:
    """How long to wait between tries, and in total. All in seconds.

    The wait after the n-th failure is drawn evenly between 0 and the smaller of `ceiling` and first * 2^(n-1):
    "full jitter" of https://aws.amazon.com/builders-library/timeouts-retries-and-backoff-with-jitter/.
    An operation gives up at the first failure after `total` has passed since its first one; None is never, 0 is
    at once. Where the store asks to be left alone for some time (Retry-After), that is added to the wait, but no more
    of it than `ceiling`.
    """

    first: float = 1.0
    ceiling: float = 60.0
    total: float | None = None

    def longest_wait(self, failures: int) -> float:
        """The most that may be waited after so many failures in a row."""
        # The exponent is bounded since a float has an end and an outage has not.
        return min(self.ceiling, self.first * 2.0 ** min(failures - 1, 64))


FOR_EVER = Patience()
"""For whoever has time: the uploader."""

AT_ONCE = Patience(total=0.0)
"""For a command that would rather fail now than wait."""


@dataclass(slots=True)
class _Series:
    """The tries of one operation, for `Condition` to tell a sick request from a sick store.

    One that `writes` is only contradicted by others that write: a store that is full, or that a policy makes
    read-only, goes on serving all else.
    """

    writes: bool = False
    outages_seen: int = 0
    successes_seen: int = 0
    reason: StoreReason | None = None
    failures: int = 0
    failures_unbroken: int = 0
    contradictions: int = 0
    fails_alone_since: float | None = None
    began_in_outage: bool = False

    def note_failure(self, reason: StoreReason, successes: int) -> None:
        if reason is not self.reason:
            self.failures_unbroken = self.contradictions = 0
            self.reason = reason
        self.failures += 1
        if successes == self.successes_seen:
            self.failures_unbroken += 1
        else:
            # Somebody else was served in between: the store itself was well.
            self.failures_unbroken = 0
            self.contradictions += 1
        self.successes_seen = successes

    @property
    def is_only_this_request(self) -> bool:
        assert self.reason is not None
        return self.contradictions >= (1 if self.reason.concerns_one_request else 2)

    @property
    def speaks_for_the_store(self) -> bool:
        assert self.reason is not None
        return self.failures_unbroken >= (3 if self.reason.concerns_one_request else 1)


@dataclass(frozen=True, slots=True)
class FailsAlone:
    """Requests that fail while others are served: the latest error of the first, since when (Unix time), how many."""

    error: StoreUnavailable
    since: float
    count: int


class Condition:
    """Whether the store serves, as seen by all callers together; logs each change once, and not each try.

    It is down after a failure that concerns the whole store, or a repeated one of the other kinds, with no success
    of anybody in between; and up again with the first success of a request that began after that. Where it is what is
    put that it refuses, only a success of that kind counts. A request that fails while others succeed gets its own line
    and leaves the condition alone.
    """

    def __init__(self) -> None:
        self._is_up = True
        self._since = time.time()
        self._last_error: StoreUnavailable | None = None
        self._last_error_at: float | None = None
        self._down_at = 0.0
        self._down_for_writes_only = False
        self._successes = 0
        self._written = 0
        self._outages = 0
        self._recovery = trio.Event()
        self._alone: dict[int, tuple[_Series, StoreUnavailable]] = {}
        self._told_alone: set[StoreReason] = set()

    @property
    def is_up(self) -> bool:
        """Whether nothing is known against the store."""
        return self._is_up

    @property
    def since(self) -> float:
        """When `is_up` last changed, in Unix time."""
        return self._since

    @property
    def last_error(self) -> StoreUnavailable | None:
        """The latest failure of any operation, also while the store is up; None when there was none."""
        return self._last_error

    @property
    def last_error_at(self) -> float | None:
        """When `last_error` came, in Unix time."""
        return self._last_error_at

    @property
    def fails_alone(self) -> FailsAlone | None:
        """What fails again and again while others are served; None if nothing does."""
        if not self._alone:
            return None
        series, error = min(self._alone.values(), key=lambda entry: entry[0].fails_alone_since or 0.0)
        return FailsAlone(error, series.fails_alone_since or 0.0, len(self._alone))

    def begin(self, *, writes: bool = False) -> _Series:
        """To be called before the first try of an operation; `writes` is for one that puts an object."""
        series = _Series(writes, outages_seen=self._outages, began_in_outage=not self._is_up)
        series.successes_seen = self._successes_like(series)
        return series

    def begin_again(self, series: _Series) -> None:
        """To be called before each further try."""
        series.outages_seen = self._outages
        series.began_in_outage = not self._is_up

    def failed(self, series: _Series, error: StoreUnavailable) -> None:
        """To be called when a try failed."""
        series.note_failure(error.reason, self._successes_like(series))
        self._last_error, self._last_error_at = error, time.time()
        if series.began_in_outage and self._is_up:
            # It belongs to the outage that is over; that others are served by now makes it no special case.
            series.contradictions = 0
        elif series.is_only_this_request:
            self._give_own_line(series, error)
        elif series.speaks_for_the_store:
            self._go_down(error, writes_only=series.writes and error.reason.concerns_writes)

    def succeeded(self, series: _Series) -> None:
        """To be called when the store has answered, be it with a refusal."""
        proves_it = series.writes or not self._down_for_writes_only
        if self._is_up or not proves_it:
            self._count_success(series)
        elif series.outages_seen == self._outages:
            self._count_success(series)
            self._come_up()
        else:
            # It began before the store went down, so it proves little; but it is a reason to look again at once.
            self._wake()

    def ended(self, series: _Series) -> None:
        """To be called when an operation is not tried any more, whatever came of it."""
        if self._alone.pop(id(series), None) is None or self._alone:
            return
        self._told_alone.clear()
        log.info("Nothing fails alone any more; the last that did was tried %d times in vain.", series.failures)

    def _successes_like(self, series: _Series) -> int:
        return self._written if series.writes else self._successes

    def _count_success(self, series: _Series) -> None:
        self._successes += 1
        if series.writes:
            self._written += 1

    async def wait_for_recovery(self, seconds: float) -> None:
        """Returns after the given time, or as soon as the store has recovered."""
        with trio.move_on_after(seconds):
            await self._recovery.wait()

    def _go_down(self, error: StoreUnavailable, *, writes_only: bool) -> None:
        if not self._is_up:
            return
        self._is_up, self._since, self._down_at = False, time.time(), trio.current_time()
        self._down_for_writes_only = writes_only
        self._outages += 1
        what = " for what is to be stored" if writes_only else ""
        down = about(EventName.STORE_DOWN)
        log.warning("The object store is not usable%s. %s It is tried again until it is.", what, error, extra=down)

    def _come_up(self) -> None:
        self._is_up, self._since = True, time.time()
        self._down_for_writes_only = False
        seconds = trio.current_time() - self._down_at
        log.info("The object store is usable again, after %.0f s.", seconds, extra=about(EventName.STORE_UP))
        self._wake()

    def _wake(self) -> None:
        self._recovery.set()
        self._recovery = trio.Event()

    def _give_own_line(self, series: _Series, error: StoreUnavailable) -> None:
        if series.failures < _FAILURES_WORTH_A_LINE:
            return
        if series.fails_alone_since is None:
            series.fails_alone_since = time.time()
        self._alone[id(series)] = (series, error)
        if error.reason not in self._told_alone:
            # Many requests may fail so, all for the same reason.
            self._told_alone.add(error.reason)
            log.warning("The object store serves others, but fails here again and again. %s", error)


class Persistence:
    """Repeats an operation until the store can be used."""

    def __init__(self, patience: Patience, condition: Condition, randomness: random.Random | None = None) -> None:
        self.patience = patience
        self.condition = condition
        self._randomness = randomness or random.Random()  # noqa: S311 - it spreads retries, nothing is to be hidden

    async def repeat(self, operation: Callable[[], Awaitable[Result]], *, writes: bool = False) -> Result:
        """Runs the operation until it succeeds or raises anything but StoreUnavailable, and hands that on.

        `writes` is for one that puts an object.

        StoreUnavailable is raised only when the patience has a `total` and this is exhausted. Waiting can be
        cancelled at any time.
        """
        series = self.condition.begin(writes=writes)
        try:
            return await self._repeat(operation, series)
        finally:
            self.condition.ended(series)

    async def _repeat(self, operation: Callable[[], Awaitable[Result]], series: _Series) -> Result:
        deadline: float | None = None
        while True:
            try:
                result = await operation()
            except StoreUnavailable as error:
                self.condition.failed(series, error)
                if deadline is None and self.patience.total is not None:
                    deadline = trio.current_time() + self.patience.total
                await self._back_off(series.failures, error, deadline)
                self.condition.begin_again(series)
            except StoreError:
                self.condition.succeeded(series)
                raise
            else:
                self.condition.succeeded(series)
                return result

    async def pause(self, tries: int) -> None:
        """Waits as after so many tries of an operation that has no use for the success of others."""
        wait = self._draw(tries)
        await trio.sleep(wait if self.patience.total is None else min(wait, self.patience.total))

    def _draw(self, failures: int) -> float:
        return self._randomness.uniform(0.0, self.patience.longest_wait(failures))

    async def _back_off(self, failures: int, error: StoreUnavailable, deadline: float | None) -> None:
        wait = self._draw(failures)
        if error.retry_after is not None:
            wait += min(error.retry_after, self.patience.ceiling)
        if deadline is not None:
            left = deadline - trio.current_time()
            if left <= 0:
                raise error
            wait = min(wait, left)
        if error.reason is StoreReason.THROTTLED or error.retry_after is not None:
            # All who wait coming back at once is what the store asked not to do.
            await trio.sleep(wait)
        else:
            await self.condition.wait_for_recovery(wait)
