"""Hearing which chunks change without being asked to change them: a fanotify group, read into records."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

import trio

from mirrorfs.chunkstore.directories import Directories, Place
from mirrorfs.chunkstore.events import Events, MalformedEvents, parse
from mirrorfs.chunkstore.possibility import NativeImpossible, explaining
from mirrorfs.chunkstore.system_calls import (
    FAN_CLOSE_WRITE,
    FAN_CREATE,
    FAN_DELETE,
    FAN_MOVED_FROM,
    FAN_MOVED_TO,
    FAN_ONDIR,
    fanotify_group,
    fanotify_mark_file_system,
    handle_of,
    queued_events,
)
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

CHUNKS = b".chunks"
"""Recorded when the names of all chunks are to be compared."""

# What the creation of a temporary file tells is told with its renaming; a hard link is told by it alone.
_MASK = FAN_CLOSE_WRITE | FAN_MOVED_FROM | FAN_MOVED_TO | FAN_CREATE | FAN_DELETE | FAN_ONDIR
# About 500 events: more would hold up the requests of the mount for too long.
_PORTION_BYTES = 64 * 1024
# Events that come in this time are read together. The queue holds 16,384, many times what any disk makes of it.
_PAUSE_SECONDS = 0.02


class WatchLost(Exception):
    """Nothing is told any more; the message says why."""


class Watch:
    """Watches the file system of a chunk store. To be used in one trio thread.

    What the kernel tells is queued from the moment when this is made, and recorded while `follow` runs. Where events
    may have been lost, CHUNKS is recorded: names are then compared.
    """

    def __init__(
        self,
        chunks: int,
        *,
        record: Callable[[Sequence[bytes]], None],
        directory_gone: Callable[[], None],
        overflowed: Callable[[], None] = lambda: None,
    ) -> None:
        """`chunks` is `.chunks`, opened, the caller's to close, and open for as long as this is.

        `record` is given paths in the datastore; `directory_gone` is called when a directory of chunks was removed,
        `overflowed` when the kernel could not keep all events.

        Raises:
            NativeImpossible: the kernel cannot tell of this file system.
        """
        self._record = record
        self._directory_gone = directory_gone
        self._overflowed = overflowed
        self._directories = Directories(chunks)
        self._reading = trio.Lock()
        self._last_failure = ""
        self.has_worked = False
        """Whether anything could be read yet."""
        with explaining("changes of it cannot be heard of (fanotify_init)"):
            self._group = fanotify_group()
        try:
            with explaining("changes of it cannot be heard of (fanotify_mark)"):
                fanotify_mark_file_system(self._group, chunks, _MASK)
            with explaining("it cannot be told where changes happen (open_by_handle_at)"):
                self._check_handles(chunks)
        except NativeImpossible:
            os.close(self._group)
            raise

    def _check_handles(self, chunks: int) -> None:
        handle = handle_of(chunks)
        self._directories.find_out([handle])
        if self._directories.place(handle) is not Place.ROOT:
            raise NativeImpossible("its file handles lead elsewhere")

    async def follow(self) -> None:
        """Record what is told, until cancelled.

        Raises:
            WatchLost: nothing is told any more.
        """
        while True:
            await trio.lowlevel.wait_readable(self._group)
            async with self._reading:
                await self._take_portion()
            await trio.sleep(_PAUSE_SECONDS)

    async def catch_up(self) -> None:
        """Return when all that is queued at this moment is recorded.

        Raises:
            WatchLost: nothing is told any more.
        """
        self._check_mark()
        async with self._reading:
            left = self.queued()
            while left > 0:
                taken = await self._take_portion()
                left = left - taken if taken else 0

    def close(self) -> None:
        """End it; what is queued is lost."""
        os.close(self._group)

    def queued(self) -> int:
        """Tell how many events the kernel holds. Raises WatchLost."""
        try:
            return queued_events(self._group)
        except OSError as error:
            raise WatchLost(f"its queue cannot be looked at: {error.strerror}") from error

    def _check_mark(self) -> None:
        with open(f"/proc/self/fdinfo/{self._group}", encoding="ascii") as lines:
            if not any(line.startswith("fanotify sdev:") for line in lines):
                raise WatchLost("the kernel does not watch its file system any more")

    async def _take_portion(self) -> int:
        """Read some events and record them; gives how many they were."""
        try:
            data = os.read(self._group, _PORTION_BYTES)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise WatchLost(f"events cannot be read: {error.strerror}") from error
        try:
            events = parse(data)
        except MalformedEvents as error:
            raise WatchLost(str(error)) from error
        reach("chunkstore.events-read")
        # What is read is recorded, also when everything ends meanwhile.
        with trio.CancelScope(shield=True):
            await self._take(events)
        reach("chunkstore.events-recorded")
        self.has_worked = True
        return events.count

    async def _take(self, events: Events) -> None:
        if events.has_overflowed:
            log.warning("chunks change faster than it can be noted: their names are compared")
            self._overflowed()
        compares = events.has_overflowed or not await self._find_out_places(events)
        if any(self._directories.place(handle) is Place.ROOT for handle in events.directories_gone):
            compares = True
            self._directory_gone()
        paths = [
            b"%s/%s/%s" % (CHUNKS, name[:4], name)
            for handle, names in events.chunks.items()
            if self._directories.place(handle) is Place.CHUNKS
            for name in names
        ]
        self._record([*paths, CHUNKS] if compares else paths)

    async def _find_out_places(self, events: Events) -> bool:
        unknown = self._directories.unknown((*events.chunks, *events.directories_gone))
        if not unknown:
            return True
        try:
            await trio.to_thread.run_sync(self._directories.find_out, unknown)
        except OSError as error:
            if str(error) != self._last_failure:
                log.warning("it cannot be told which chunks change: %s; their names are compared", error.strerror)
            self._last_failure = str(error)
            return False
        self._last_failure = ""
        return True
