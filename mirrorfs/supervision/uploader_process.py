"""The uploader as seen by the filesystem process: started fresh, woken, listened to, and started again when it dies."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import subprocess
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace

import trio

from mirrorfs import interpreter
from mirrorfs.database.errors import DatabaseError
from mirrorfs.events import EventName, about
from mirrorfs.journal.journal import Position
from mirrorfs.objectstore.rate_schedule import RateLimits
from mirrorfs.replication.control import stream_lines
from mirrorfs.replication.parent import CAUGHT_UP, LIMITS
from mirrorfs.replication.settings import BEGIN_AGAIN, UploaderSettings
from mirrorfs.restarts import WELL_AFTER, Failing, Restarts
from mirrorfs.supervision.watchdog import SignsOfLife

log = logging.getLogger(__name__)

# It ends itself after 3 s; the mount's own end is promised within 5 s.
_END_SECONDS = 3.5


@dataclass(frozen=True, slots=True)
class StoreAnswer:
    """How the store received the uploader: `state` is "ready", "waiting" or "refused", `reason` a sentence."""

    state: str
    reason: str


class UploaderProcess:
    """Keeps one uploader process running. A fresh interpreter each time, never a fork of this process."""

    def __init__(
        self,
        settings: UploaderSettings,
        *,
        done: Callable[[Position], None],
        died: Callable[[], None],
        catch_up: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint,
        failing: Callable[[Failing | None], None] = lambda _: None,
    ) -> None:
        """`done` hears how far the journal is dealt with; `died` is called after each unexpected end; `catch_up` is to
        return when the journal holds everything that has happened; `failing` hears at each end whether it keeps dying,
        and when it has lived for long after that.

        `died` is called in a thread, and may raise DatabaseError, which is logged.
        """
        self.settings = settings
        """What the next uploader is told; `begin_anew` changes it."""
        self._done = done
        self._died = died
        self._catch_up = catch_up
        self._failing = failing
        self._restarts = Restarts("uploader")
        self._process: trio.Process | None = None
        self._signs_of_life = SignsOfLife()
        self._run = trio.CancelScope()
        self._is_to_begin_anew = False
        self._wake_descriptor: int | None = None
        self.store_answer: StoreAnswer | None = None
        self.answered = trio.Event()
        """Set when the uploader has first said how the store received it."""

    def wake(self) -> None:
        """Tell the uploader that the journal has grown; costs nothing when it has not yet looked."""
        if self._wake_descriptor is None:
            return
        try:
            os.write(self._wake_descriptor, b"\n")
        except BlockingIOError:
            # The pipe is full of wake-ups that it has not read yet: it will look.
            log.debug("the uploader has wake-ups enough")
        except OSError:
            log.debug("the uploader is gone; it is being started again")

    def begin_anew(self, settings: UploaderSettings) -> None:
        """End the uploader that runs, and go on at once with one that has these settings."""
        self.settings = settings
        self._is_to_begin_anew = True
        self._run.cancel()

    async def limit(self, limits: RateLimits) -> None:
        """Have other limits hold, for the uploader that runs and for those that follow it."""
        self.settings = replace(self.settings, limits=limits)
        await self._write_line(f"{LIMITS} {json.dumps(asdict(limits))}")

    def hang_up(self) -> None:
        """Have the uploader open its log again; safe from any thread."""
        process = self._process
        if process is not None:
            process.send_signal(signal.SIGHUP)

    async def keep_running(self) -> None:
        """Run the uploader and start it again when it dies or could not be started, until cancelled; then end it.

        The waits between grow up to the ceiling that the settings give for tries that fail.
        """
        while True:
            self._restarts.began(trio.current_time())
            self._is_to_begin_anew = False
            try:
                code = await self._run_once()
                condition = (
                    "has ended in order to begin again"
                    if code == BEGIN_AGAIN
                    else f"ended unexpectedly ({_describe(code)})"
                )
            except (OSError, RuntimeError) as error:
                # No memory, no process, no thread (RuntimeError) or no descriptor to be had, or Python is upgraded.
                condition = f"could not be run ({error})"
            await self._clean_up()
            if self._is_to_begin_anew:
                continue
            delay = self._restarts.ended(condition, trio.current_time(), self.settings.retry_ceiling)
            self._failing(self._restarts.failing(trio.current_time()))
            restarted = about(EventName.UPLOADER_RESTARTED)
            log.error("the uploader %s; starting it again in %.0f s", condition, delay, extra=restarted)
            await trio.sleep(delay)

    async def _clean_up(self) -> None:
        try:
            # In a thread, since the journal may just be waiting for its disk.
            await trio.to_thread.run_sync(self._died)
        except (DatabaseError, RuntimeError) as error:
            log.warning("cannot clean up behind the uploader: %s", error)

    async def _run_once(self) -> int:
        process = await trio.lowlevel.open_process(
            interpreter.command("mirrorfs.replication"),
            env=interpreter.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[self.settings.root_descriptor],
            # Away from the terminal's Ctrl-C, which is for the mount.
            start_new_session=True,
            cwd=interpreter.WORKING_DIRECTORY,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._signs_of_life = SignsOfLife()
        try:
            await process.stdin.send_all(self.settings.encode())
            self._wake_descriptor = os.dup(_descriptor_of(process.stdin))
            os.set_blocking(self._wake_descriptor, False)
            with trio.CancelScope() as self._run:
                # Asked for while this one was being started, it has the settings from before.
                if not self._is_to_begin_anew:
                    await self._listen(process)
        except trio.BrokenResourceError:
            log.debug("the uploader has gone away")
        finally:
            self._close_wake_descriptor()
            with trio.CancelScope(shield=True):
                code = await _end(process)
            self._process = None
        return code

    async def _listen(self, process: trio.Process) -> None:
        assert process.stdout is not None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._kill_when_silent, process)
            nursery.start_soon(self._tell_when_well)
            try:
                async with aclosing(stream_lines(process.stdout)) as lines:
                    async for line in lines:
                        self._hear(line, nursery)
            except trio.BrokenResourceError:
                log.debug("the uploader has gone away")
            nursery.cancel_scope.cancel()

    async def _tell_when_well(self) -> None:
        """Have earlier deaths forgotten: a silence after a good day has another reason."""
        await trio.sleep_until(trio.current_time() + WELL_AFTER)
        self._failing(None)

    async def _kill_when_silent(self, process: trio.Process) -> None:
        await self._signs_of_life.watch()
        log.error("the uploader lives, but does not work any more: it is ended, and the next one goes on where it was")
        # Its output ends with it, and so does `_listen`.
        process.kill()

    def _hear(self, line: bytes, nursery: trio.Nursery) -> None:
        match _parse(line):
            case {"event": "store", "state": str(state), "reason": str(reason)}:
                if state == "ready":
                    # What is taken over once is not to be taken back from whoever takes it over later.
                    self.settings = replace(self.settings, take_over=False)
                self.store_answer = StoreAnswer(state, reason)
                self.answered.set()
            case {"event": "done", "generation": str(generation), "sequence": int(sequence)}:
                self._done(Position(generation, sequence))
            case {"event": "removals-allowed"}:
                # What was gone then is noted as meant. What goes later is not.
                self.settings = replace(self.settings, allow_removals=False)
            case {"event": "alive"}:
                self._signs_of_life.hear()
            case {"event": "catch-up", "number": int(number)}:
                nursery.start_soon(self._answer_when_caught_up, number)
            case _:
                log.warning("the uploader says what is not understood: %.200r", line)

    async def _answer_when_caught_up(self, number: int) -> None:
        await self._catch_up()
        await self._write_line(f"{CAUGHT_UP} {number}")

    async def _write_line(self, text: str) -> None:
        line = text.encode() + b"\n"
        # So short a line is written as a whole or not at all.
        assert len(line) <= select.PIPE_BUF
        while self._wake_descriptor is not None:
            try:
                os.write(self._wake_descriptor, line)
            except BlockingIOError:
                await trio.lowlevel.wait_writable(self._wake_descriptor)
            except OSError:
                log.debug("the uploader is gone; who asked it asks the next one, which is told all at its start")
                return
            else:
                return

    def _close_wake_descriptor(self) -> None:
        if self._wake_descriptor is not None:
            os.close(self._wake_descriptor)
            self._wake_descriptor = None


def _parse(line: bytes) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


async def _end(process: trio.Process) -> int:
    """Close the uploader's standard input, which asks it to end, and kill it if it does not; returns its exit code."""
    assert process.stdin is not None
    await process.stdin.aclose()
    with trio.move_on_after(_END_SECONDS):
        await process.wait()
    if process.returncode is None:
        log.warning("the uploader does not end; killing it (it continues where it was when next started)")
        process.kill()
    code = await process.wait()
    if process.stdout is not None:
        await process.stdout.aclose()
    return code


def _descriptor_of(stream: trio.abc.SendStream) -> int:
    assert isinstance(stream, trio.lowlevel.FdStream)
    return stream.fileno()


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
