"""`python -m mirrorfs.notification`: the notifier, as the filesystem process starts it; not to be called by hand.

The settings come as one line of JSON on standard input. A line `end` there means that the mount ends in order. If it
closes without that, the filesystem process was killed: that is looked at for a while longer, as nobody else tells it.
A service's notifier does not come to that: systemd kills it too, calls `mirrorfs notify failed`, and starts the mount
again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from contextlib import aclosing

import trio

from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.database.errors import DatabaseError
from mirrorfs.filesystem.condition import Condition, NotAsked, condition_of
from mirrorfs.log_file import reopen_at_hang_up
from mirrorfs.notification.delivery import NotDelivered, ways
from mirrorfs.notification.notifier import Looking, Notifier, interval_for, looks_for
from mirrorfs.notification.told import ToldRecord
from mirrorfs.output import LogFormat, begin_log
from mirrorfs.replication.control import read_line, stream_lines
from mirrorfs.replication.priority import DiskPriority, yield_to_others
from mirrorfs.supervision.notifier_process import END
from mirrorfs.supervision.settings import MountSettings

log = logging.getLogger(__name__)

# After that nobody comes who would still care, or he has been told.
_LONGEST_AFTER_THE_END = 600.0


def main() -> int:
    """Read the settings, and watch until the mount ends."""
    # Unbuffered: an `end` that follows at once belongs to whoever waits for it.
    line = read_line(sys.stdin.fileno())
    if not line:
        return 0
    settings = MountSettings.decode(line)
    begin_log(
        "notifier",
        verbose=settings.uploader.verbose,
        log_format=LogFormat(settings.uploader.log_format),
        events=StateDirectory(settings.uploader.state_directory).events_file,
        datastore=settings.uploader.datastore,
    )
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    reopen_at_hang_up()
    # The mount that starts us has them blocked; a program that is started from here may count on its SIGALRM.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # When memory is short, the mount is to stay.
    yield_to_others(settings.uploader.nice, DiskPriority(settings.uploader.disk_priority))
    lock = DirectoryLock(StateDirectory(settings.uploader.state_directory), "notifier")
    try:
        # One of a mount that was killed may still be telling that.
        lock.acquire(wait=True)
    except DatabaseError as error:
        log.error("nobody is told how the mirror is: %s", error)
        return 1
    trio.run(_watch, settings)
    lock.release()
    return 0


async def _watch(settings: MountSettings) -> None:
    notify = settings.notify
    found = ways(notify)
    for way in found:
        try:
            way.check()
        except NotDelivered as error:
            log.error("notify.%s cannot tell anything: %s", way.name, error)
    interval = interval_for(notify.after)
    notifier = Notifier(
        settings.uploader.datastore,
        Looking(settings.mountpoint, notify.behind_after, notify.after),
        found,
        ToldRecord(StateDirectory(settings.uploader.state_directory)),
        looks=looks_for(notify.after),
        interval=interval,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(notifier.run)
        if not await _ends_in_order():
            log.error("the filesystem process is gone")
            await _mount_is_no_longer_dead(settings.mountpoint, interval, notify.after)
        nursery.cancel_scope.cancel()


async def _ends_in_order() -> bool:
    """Return when the filesystem process says that it ends, or is gone."""
    async with (
        trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream,
        aclosing(stream_lines(stream)) as lines,
    ):
        async for line in lines:
            if line == END:
                return True
    return False


async def _mount_is_no_longer_dead(mountpoint: str, interval: float, after: float) -> None:
    """Return when the mount was taken away or there is another one, or when there was time enough to tell."""
    with trio.move_on_after(max(_LONGEST_AFTER_THE_END, 2 * after)):
        while True:
            try:
                condition = await trio.to_thread.run_sync(condition_of, mountpoint, abandon_on_cancel=True)
            except (NotAsked, OSError) as error:
                log.warning("the mount cannot be asked whether it answers: %s", error)
            else:
                if condition is not Condition.DEAD:
                    return
            await trio.sleep(interval)


if __name__ == "__main__":
    sys.exit(main())
