"""The chunk store of one mount: native where that is possible, through FUSE where it is not, and never in between."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Sequence

import trio

from mirrorfs.chunkstore import attachment
from mirrorfs.chunkstore.place import Choice, InUse
from mirrorfs.chunkstore.possibility import (
    NativeImpossible,
    check_file_system,
    mount_attributes,
    prepare_mount,
)
from mirrorfs.chunkstore.watch import CHUNKS, Watch, WatchLost
from mirrorfs.events import EventName, about
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_COLLECTION_ENDED = b".gc-status"
_CHUNKS_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# At the end of a mount nothing may take long.
_LEAVE_SECONDS = 1.0

Record = Callable[[Sequence[bytes]], None]


class ChunkStore:
    """Attaches `.chunks` in the mount when it can, and takes it away when it has to. To be used in one trio thread.

    In this order: `prepare` before any names are compared and PBS can use the mount, `run` for as long as the mount
    stands, `attach` when it answers, `leave` before it is unmounted, `finish` when it is.
    """

    def __init__(
        self,
        choice: Choice,
        mountpoint: str,
        root_descriptor: int,
        mount_options: tuple[str, ...] = (),
    ) -> None:
        """`root_descriptor` is the backing directory, opened before the mount covered it; the caller's to close."""
        self.in_use = InUse(False, "it is not attached yet")
        self.overflows = 0
        """How often the kernel could not keep all events of changed chunks, so that names were compared."""
        self._choice = choice
        self._mountpoint = mountpoint
        self._root = root_descriptor
        self._attributes = mount_attributes(mount_options)
        self._changed: Callable[[InUse], None] = lambda _: None
        self._record: Record | None = None
        self._chunks: int | None = None
        self._watch: Watch | None = None
        self._following = trio.CancelScope()
        self._nursery: trio.Nursery | None = None
        self._changing = trio.Lock()

    @property
    def may_be_native(self) -> bool:
        """Whether chunks may change without passing through the mount."""
        return self._watch is not None or (self._choice is not Choice.FUSE and self._waits)

    def queued_events(self) -> int:
        """Tell how many events of changed chunks the kernel holds that are not recorded yet."""
        try:
            return 0 if self._watch is None else self._watch.queued()
        except WatchLost:
            # Whoever follows it hears of that too, and does what is to be done.
            return 0

    @property
    def _waits(self) -> bool:
        return self.in_use == _NO_CHUNKS_YET

    def prepare(self) -> None:
        """Find out whether it can be native, and have the kernel note from now on what changes.

        Raises:
            NativeImpossible: it cannot, and nothing else is wanted.
        """
        if self._choice is Choice.FUSE:
            self._now(InUse(False, "--chunk-store fuse"))
            return
        try:
            if not self._open():
                self._now(_NO_CHUNKS_YET)
        except NativeImpossible as error:
            if self._choice is Choice.NATIVE:
                raise
            self._fall_back(str(error))

    async def run(self, record: Record, changed: Callable[[InUse], None]) -> None:
        """Record what changes, until cancelled; `changed` hears each time how chunks are reached from now on."""
        self._record, self._changed = record, changed
        changed(self.in_use)
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self._follow()
            try:
                await trio.sleep_forever()
            finally:
                self._nursery = None

    async def attach(self) -> None:
        """Attach it, if it can be native; the mount answers.

        Raises:
            NativeImpossible: it cannot be attached, and nothing else is wanted.
        """
        async with self._changing:
            try:
                await self._attach()
            except NativeImpossible:
                if self._choice is Choice.NATIVE:
                    raise

    def appeared(self, path: bytes) -> None:
        """Hear of a name that came to be in the mount by mkdir or rename."""
        if path == CHUNKS and self._choice is not Choice.FUSE and self._nursery is not None:
            self._nursery.start_soon(self._attach_new)
        if path == _COLLECTION_ENDED:
            log.info("PBS has ended a garbage collection", extra=about(EventName.COLLECTED))
        if path == _COLLECTION_ENDED and self._watch is not None:
            # What could not be heard is found: only names that differ become work.
            self._tell([CHUNKS])

    async def catch_up(self) -> None:
        """Return when every change of a chunk that has happened is recorded."""
        watch = self._watch
        if watch is None:
            return
        try:
            await watch.catch_up()
        except WatchLost as error:
            await self._renew(watch, error)

    async def leave(self) -> None:
        """Take it out of a mount that is to be unmounted."""
        with trio.move_on_after(_LEAVE_SECONDS):
            await attachment.detach(self._mountpoint)

    async def finish(self) -> None:
        """Record what is left, and give everything back."""
        with trio.move_on_after(_LEAVE_SECONDS, shield=True):
            await self.catch_up()
        self._close()

    # One change at a time: all below is called while `_changing` is held, or before anybody else could.

    async def _attach(self) -> None:
        if self._chunks is None or self._watch is None or self.in_use.is_native:
            return
        reach("chunkstore.before-attach")
        try:
            await attachment.attach(self._chunks, self._mountpoint, self._attributes)
        except NativeImpossible as error:
            self._close()
            self._fall_back(str(error))
            raise
        reach("chunkstore.attached")
        self._now(InUse(True, ""))

    async def _attach_new(self) -> None:
        """Attach a `.chunks` that PBS has just made or moved there."""
        async with self._changing:
            self._close()
            try:
                if not self._open():
                    self._now(_NO_CHUNKS_YET)
                    return
                self._follow()
                # It may have come with chunks in it.
                self._tell([CHUNKS])
                await self._attach()
            except NativeImpossible as error:
                self._close()
                self._fall_back(str(error))

    def _directory_gone(self) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._give_back)

    async def _give_back(self) -> None:
        """PBS destroys the datastore: it could not remove `.chunks` while that is attached."""
        async with self._changing:
            if self.in_use.is_native:
                # Before, so that a status that is asked for meanwhile does not miss it.
                self._now(InUse(False, "a directory of it was removed"))
                reach("chunkstore.before-detach")
                await attachment.detach(self._mountpoint)
                reach("chunkstore.detached")

    async def _renew(self, watch: Watch, lost: WatchLost) -> None:
        """Watch anew, or let chunks pass through FUSE; what was missed is found by comparing."""
        async with self._changing:
            if self._watch is not watch:
                return
            log.error("changes of chunks are not heard of any more: %s", lost)
            self._following.cancel()
            watch.close()
            self._watch = None
            try:
                if not watch.has_worked:
                    raise NativeImpossible(f"changes of it are not heard of: {lost}")
                self._watch = self._new_watch()
            except NativeImpossible as error:
                await attachment.detach(self._mountpoint)
                self._close()
                self._fall_back(str(error))
            else:
                log.warning("changes of chunks are heard of again; their names are compared")
                self._follow()
            self._tell([CHUNKS])

    def _open(self) -> bool:
        """Open and watch `.chunks`; tells whether there is one."""
        try:
            self._chunks = os.open(CHUNKS, _CHUNKS_FLAGS, dir_fd=self._root)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return False
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise NativeImpossible(".chunks is not a directory (a symbolic link?)") from error
            raise NativeImpossible(f".chunks cannot be opened: {error.strerror}") from error
        try:
            check_file_system(self._chunks)
            os.close(prepare_mount(self._chunks, self._attributes))
            self._watch = self._new_watch()
        except NativeImpossible:
            self._close()
            raise
        return True

    def _new_watch(self) -> Watch:
        assert self._chunks is not None
        watch = Watch(self._chunks, record=self._tell, directory_gone=self._directory_gone, overflowed=self._overflow)
        reach("chunkstore.marked")
        return watch

    def _follow(self) -> None:
        if self._watch is not None and self._nursery is not None:
            self._following = trio.CancelScope()
            self._nursery.start_soon(self._follow_one, self._watch, self._following)

    async def _follow_one(self, watch: Watch, scope: trio.CancelScope) -> None:
        with scope:
            try:
                await watch.follow()
            except WatchLost as error:
                # Shielded from its own scope, which renewing ends.
                with trio.CancelScope(shield=True):
                    await self._renew(watch, error)

    def _close(self) -> None:
        self._following.cancel()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        if self._chunks is not None:
            os.close(self._chunks)
            self._chunks = None

    def _tell(self, paths: Sequence[bytes]) -> None:
        if self._record is not None and paths:
            self._record(paths)

    def _overflow(self) -> None:
        self.overflows += 1
        self._changed(self.in_use)

    def _fall_back(self, reason: str) -> None:
        log.warning("chunks pass through FUSE: %s", reason)
        self._now(InUse(False, reason))

    def _now(self, in_use: InUse) -> None:
        if in_use.is_native:
            log.info("chunks are native: PBS works on .chunks of the backing directory itself")
        self.in_use = in_use
        self._changed(in_use)


_NO_CHUNKS_YET = InUse(False, "the datastore has no .chunks yet")
