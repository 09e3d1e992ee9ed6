"""Looking at a mirror again and again, and telling what is news by each way that is set."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

import trio

from mirrorfs.events import EventName, about
from mirrorfs.filesystem.condition import NotAsked
from mirrorfs.notification.delivery import NotDelivered, Way
from mirrorfs.notification.event import event_of
from mirrorfs.notification.told import ToldRecord
from mirrorfs.notification.watching import Look, News, Watching
from mirrorfs.own_files import NotOwn
from mirrorfs.replication.questions import Answer
from mirrorfs.replication.verdict import Verdict, Word, verdicts
from mirrorfs.supervision.asking import NoAnswer, UploaderHangs, UploaderSilent, ask_for_status, failing_uploader
from mirrorfs.supervision.registry import find

log = logging.getLogger(__name__)

_ANSWER_SECONDS = 15.0
_LONGEST_INTERVAL = 30.0
# A look costs a process that asks the mount, and an answer of the uploader's that names every snapshot.
_SHORTEST_INTERVAL = 10.0
# The mount ends an uploader that hangs after five minutes. That is to be told before, and each time.
_HANGING_SECONDS = 150.0
# One that is just being started may have a large state to open.
_STARTING_SECONDS = 300.0
# Waits between tries: a mail server that is restarted, a network that is down for a while; the last one for good.
_PAUSES = (60.0, 300.0, 900.0, 3600.0)


def _ask(mountpoint: str) -> Answer:
    return ask_for_status(mountpoint, _ANSWER_SECONDS)


class Looking:
    """Looks at one mirror, as `mirrorfs status` does, and tells what is wrong with it."""

    def __init__(
        self,
        mountpoint: str,
        behind_after: float,
        after: float,
        *,
        ask: Callable[[str], Answer] = _ask,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What is wrong is told `after` so many seconds; `ask` blocks and raises as `ask_for_status`."""
        self._mountpoint = mountpoint
        self._behind_after = behind_after
        self._after = after
        self._silent_since: float | None = None
        self._ask = ask
        self._clock = clock

    def look(self) -> Look | None:
        """Return what is so now; None if that is not known. Blocks."""
        began = self._clock()
        try:
            answer = self._ask(self._mountpoint)
        except UploaderSilent as error:
            return self._silence(error, began)
        except NoAnswer as error:
            return _broken(str(error))
        except (NotAsked, NotOwn, OSError, ValueError) as error:
            log.warning("it is not known how the mirror is: %s", error)
            return None
        self._silent_since = None
        return Look(verdicts(answer, self._behind_after))

    def _silence(self, error: UploaderSilent, began: float) -> Look | None:
        if self._silent_since is None:
            self._silent_since = began
        failing = failing_uploader(find(self._mountpoint), None)
        if failing:
            return _broken(f"The uploader has ended {failing[0]['deaths']} times in a row: it {failing[0]['last']}.")
        limit = _HANGING_SECONDS if isinstance(error, UploaderHangs) else _STARTING_SECONDS
        # From here on it is seen again and again until it is told.
        is_long = self._clock() - self._silent_since >= limit - self._after
        return _broken(str(error)) if is_long else None


def _broken(why: str) -> Look:
    """Who does not answer does not tell whether removals are held, or backups behind."""
    to_do = "Nothing is mirrored until that has ended: see 'mirrorfs status' and the log."
    return Look([Verdict(Word.BROKEN, why, to_do)], frozenset({Word.BROKEN}))


class Notifier:
    """Tells what is news about one mirror. What cannot be told is tried again while it is so; each try is logged."""

    def __init__(
        self, datastore: str, looking: Looking, ways: Sequence[Way], record: ToldRecord, *, looks: int, interval: float
    ) -> None:
        self._datastore = datastore
        self._looking = looking
        self._ways = ways
        self._record = record
        self._looks = looks
        self._interval = interval

    async def run(self) -> None:
        """Look and tell until cancelled."""
        await trio.to_thread.run_sync(self._record.load, [way.whom for way in self._ways])
        limiter = trio.CapacityLimiter(1)
        async with trio.open_nursery() as nursery:
            tellers = [Teller(self._datastore, way, self._record, self._looks) for way in self._ways]
            for teller in tellers:
                nursery.start_soon(teller.run)
            while True:
                began = trio.current_time()
                found = await trio.to_thread.run_sync(self._looking.look, limiter=limiter, abandon_on_cancel=True)
                if found is not None:
                    for teller in tellers:
                        teller.take(found)
                await trio.sleep_until(began + self._interval)


class Teller:
    """One way of telling, with what it has told. Nothing counts as told that could not be delivered."""

    def __init__(self, datastore: str, way: Way, record: ToldRecord, looks: int) -> None:
        self._datastore = datastore
        self._way = way
        self._record = record
        self._watching = Watching(record.told(way.whom), looks)
        self._noted = self._watching.told
        self._has_looked = trio.Event()

    def take(self, look: Look) -> None:
        """Take what was seen at a look."""
        self._watching.look(look)
        self._has_looked.set()

    async def run(self) -> None:
        """Tell what is news, until cancelled."""
        failures = 0
        while True:
            await self._note()
            news = self._watching.news()
            if news is None:
                failures = 0
                await self._has_looked.wait()
                self._has_looked = trio.Event()
            elif await self._is_told(news, pause := _PAUSES[min(failures, len(_PAUSES) - 1)]):
                failures = 0
                self._watching.has_told(news)
            else:
                failures += 1
                # After it, whatever is so by then is told.
                await trio.sleep(pause)

    async def _note(self) -> None:
        told = self._watching.told
        if told != self._noted:
            await trio.to_thread.run_sync(self._record.set, self._way.whom, told)
            self._noted = told

    async def _is_told(self, news: News, pause: float) -> bool:
        event = event_of(news.kind, self._datastore, news.verdict)
        try:
            await self._way.tell(event)
        except NotDelivered as error:
            failed = "notify.%s could not tell '%s': %s; it is tried again in %.0f s"
            log.error(failed, self._way.name, event.event, error, pause)
            return False
        told = about(EventName.TOLD, way=self._way.name)
        log.info("notify.%s has told '%s': %s", self._way.name, event.event, event.why, extra=told)
        return True


def interval_for(after: float) -> float:
    """Return how many seconds lie between two looks, where what is so for `after` seconds is told."""
    return min(_LONGEST_INTERVAL, max(_SHORTEST_INTERVAL, after / 4))


def looks_for(after: float) -> int:
    """Return at how many looks in a row something must be so to be told."""
    return max(1, math.ceil(after / interval_for(after)))
