"""Telling that a service's mount has failed: its own notifier was killed with it."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import trio

from mirrorfs.notification.delivery import NotDelivered, Way
from mirrorfs.notification.event import Kind, event_of
from mirrorfs.notification.told import ToldRecord
from mirrorfs.replication.verdict import Verdict, Word

log = logging.getLogger(__name__)

SUCCESS = "success"
"""What systemd calls the result of a service that was to end ($SERVICE_RESULT in systemd.exec(5))."""
# A mount that has come up by then has a notifier of its own, which waits for us: not for hours.
_PAUSES = (30.0, 120.0)


def failed(result: str, how: Sequence[str], unit: str) -> Verdict:
    """Say what has happened to the unit: its result, and how its process ended, as systemd calls them."""
    ended = f"{result}: {' '.join(how)}" if how else result
    return Verdict(
        Word.BROKEN,
        f"The mount has failed ({ended}). Until it is up again PBS does not run.",
        f"systemd starts it again, and PBS with it. If it stays down, 'systemctl status {unit}' says why.",
    )


async def tell(
    datastore: str, verdict: Verdict, ways: Sequence[Way], record: ToldRecord | None, pauses: Sequence[float] = _PAUSES
) -> list[str]:
    """Tell it once by each way that has not told that the mirror is broken; returns why not, for those that could not.

    `record`: None where a notifier works, which notes what it has told itself.
    """
    if record is not None:
        await trio.to_thread.run_sync(record.load, [way.whom for way in ways])
    left = [way for way in ways if record is None or Word.BROKEN not in record.told(way.whom)]
    failures: dict[str, str] = {}
    for pause in (*pauses, None):
        for way in list(left):
            try:
                await way.tell(event_of(Kind.BROKEN, datastore, verdict))
            except NotDelivered as error:
                failures[way.whom] = f"notify.{way.name}: {error}"
                log.error("notify.%s could not tell that the mount has failed: %s", way.name, error)
                continue
            left.remove(way)
            failures.pop(way.whom, None)
            log.info("notify.%s has told it: %s", way.name, verdict.why)
            if record is not None:
                told = [*record.told(way.whom), Word.BROKEN]
                await trio.to_thread.run_sync(record.set, way.whom, told)
        if not left or pause is None:
            break
        await trio.sleep(pause)
    return list(failures.values())
