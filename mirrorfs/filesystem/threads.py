"""System calls that may wait for the disk, each in a thread, so that none of them holds up the requests of others."""

import errno
import os
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

import trio

from mirrorfs.filesystem.system_calls import EVENT_BYTES, add_event, wait_readable

Result = TypeVar("Result")

OUT_OF_DESCRIPTORS = (errno.EMFILE, errno.ENFILE)
"""The numbers of errors that say so, of this process and of the whole system."""

_MOST_OF_ONE_INODE = 32
_MOST_IDLE = 16
# Most calls end long before; the delay that one which does not can cause to others is meant to be lost among theirs.
_PATIENCE_NS = 200_000


class Threads:
    """Threads for the calls of one mount. To be used in one trio thread.

    There are as many as there are calls under way: how many requests are served at a time is what limits them. But
    of one inode only so many calls run at a time, the rest wait for their turn: whoever asks for a stuck file again
    and again shall not take the place of all others.

    Waking the event loop takes longer than most calls do. So the event loop itself waits for a thread for a moment,
    unless there is a call already for which that was not enough: in any such spell only one request pays for it.

    Threads wake each other through eventfd(2), not locks, and keep the interpreter's lock while they do: who has been
    woken finds it free when the other one begins to wait, instead of both asking for it at the same moment.
    """

    def __init__(self) -> None:
        self._calls: deque[_Call[Any] | None] = deque()
        self._begun = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._finished = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._started: list[threading.Thread] = []
        self._threads = 0
        self._busy = 0
        self._running: dict[object, int] = {}
        self._waiting: dict[object, trio.lowlevel.ParkingLot] = {}
        self._late = 0
        self._make_room: Callable[[], bool] = _has_no_room

    def when_out_of_descriptors(self, make_room: Callable[[], bool]) -> None:
        """Says what is called, in the trio thread, when a call found no free descriptor: if it returns True, the call
        is made once more. Whatever needs a descriptor must need it before it has done anything.
        """
        self._make_room = make_room

    @property
    def are_busy(self) -> bool:
        """Whether any call is under way."""
        return self._busy > 0

    async def run(self, about: object, call: Callable[[], Result], *, briefly: bool = True) -> Result:
        """Calls in a thread; returns or raises what the call does, and cannot be cancelled while it runs.

        `about` is the inode that the call is about; `briefly` says that the call takes time only if something is slow.
        """
        running = self._running.get(about, 0)
        if running < _MOST_OF_ONE_INODE:
            self._running[about] = running + 1
        else:
            await self._waiting.setdefault(about, trio.lowlevel.ParkingLot()).park()
        try:
            return await self._run_with_room(call, briefly)
        finally:
            self._pass_on(about)

    def at_once(self, call: Callable[[], Result]) -> Result:
        """Makes a call that never waits for anything, in the trio thread; if there is no free descriptor, as `run`."""
        try:
            return call()
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS or not self._make_room():
                raise
        return call()

    def start(self, call: Callable[[], object]) -> None:
        """Calls in a thread that nobody waits for; what comes of it is not asked."""
        trio.lowlevel.start_thread_soon(call, lambda _: None)

    def close(self) -> None:
        """Ends the threads; only when no call is under way."""
        while self._threads:
            self._end_thread()
        for thread in self._started:
            thread.join()
        os.close(self._begun)
        os.close(self._finished)

    async def _run_with_room(self, call: Callable[[], Result], briefly: bool) -> Result:
        try:
            return await self._run(_Call(call), briefly)
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS or not self._make_room():
                raise
        return await self._run(_Call(call), briefly)

    async def _run(self, call: "_Call[Result]", briefly: bool) -> Result:
        self._busy += 1
        try:
            if self._busy > self._threads:
                self._begin_thread()
            self._tell(call)
            waits = briefly and not self._late
            if not (waits and wait_readable(self._finished, _PATIENCE_NS)) and call.claim():
                self._late += briefly
                await trio.lowlevel.wait_task_rescheduled(_cannot_be_aborted)
                self._late -= briefly
            else:
                # The thread may have claimed it and not told yet: it needs the interpreter's lock for that.
                os.read(self._finished, EVENT_BYTES)
        finally:
            self._busy -= 1
        if self._threads - self._busy > _MOST_IDLE:
            self._end_thread()
        return call.outcome()

    def _begin_thread(self) -> None:
        # Not to be waited for when the process ends while the disk is stuck.
        thread = threading.Thread(target=self._work, name="mirrorfs-call", daemon=True)
        thread.start()
        self._started = [*(other for other in self._started if other.is_alive()), thread]
        self._threads += 1

    def _end_thread(self) -> None:
        self._threads -= 1
        self._tell(None)

    def _tell(self, call: "_Call[Any] | None") -> None:
        self._calls.append(call)
        add_event(self._begun)

    def _work(self) -> None:
        while True:
            os.read(self._begun, EVENT_BYTES)
            call = self._calls.popleft()
            if call is None:
                return
            call.make()
            if call.claim():
                add_event(self._finished)
            else:
                call.wake()

    def _pass_on(self, about: object) -> None:
        waiting = self._waiting.get(about)
        if waiting is not None:
            # The turn goes from one to the other, so the count stays.
            waiting.unpark()
            if not waiting:
                del self._waiting[about]
            return
        running = self._running[about] - 1
        if running:
            self._running[about] = running
        else:
            del self._running[about]


class _Call(Generic[Result]):
    """A call, and who waits for it.

    Who claims it first decides how the end of it is told: if that is the thread, by the eventfd, which the event loop
    waits for; if it is the event loop, which has something else to do meanwhile, by waking the task.
    """

    __slots__ = ("_call", "_claim", "_error", "_result", "_task", "_token")

    def __init__(self, call: Callable[[], Result]) -> None:
        self._call = call
        self._claim = threading.Lock()
        self._task = trio.lowlevel.current_task()
        self._token = trio.lowlevel.current_trio_token()
        self._result: Result | None = None
        self._error: BaseException | None = None

    def make(self) -> None:
        try:
            self._result = self._call()
        except BaseException as error:  # noqa: BLE001 - it is raised again in the task that waits
            self._error = error

    def outcome(self) -> Result:
        if self._error is not None:
            raise self._error
        return cast(Result, self._result)

    def claim(self) -> bool:
        """Whether the other side has not claimed it before."""
        return self._claim.acquire(blocking=False)

    def wake(self) -> None:
        self._token.run_sync_soon(trio.lowlevel.reschedule, self._task)


def _has_no_room() -> bool:
    return False


def _cannot_be_aborted(_: Callable[[], Any]) -> trio.lowlevel.Abort:
    return trio.lowlevel.Abort.FAILED
