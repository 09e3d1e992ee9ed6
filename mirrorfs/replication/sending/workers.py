"""Hands of other processes: workers, each started fresh, given chunks, and started again when it dies."""

from __future__ import annotations

import logging
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import trio

from mirrorfs import interpreter
from mirrorfs.events import EventName, about
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.replication.sending.attempt import LOST, NOT_BEGUN, Attempt
from mirrorfs.replication.sending.messages import (
    LONGEST_LINE,
    READY,
    BadMessage,
    WorkerSettings,
    decode_attempts,
    encode_order,
)
from mirrorfs.restarts import Failing, Restarts

log = logging.getLogger(__name__)

_LONGEST_DELAY = 60.0
# It ends at once when it is told to; what keeps it longer is a disk or a debugger.
_END_SECONDS = 1.0


class WorkerHand:
    """A thread of a worker, at the other end of a socket."""

    def __init__(self, is_lost: Callable[[], None]) -> None:
        """`is_lost` is called when it does not answer as it should."""
        self._is_lost = is_lost
        self._stream: trio.SocketStream | None = None
        self._connected = trio.Event()
        self._in_use = trio.Lock()
        self._asked_at: float | None = None

    @property
    def is_ready(self) -> bool:
        """See Hand."""
        return self._stream is not None

    async def ready(self) -> None:
        """See Hand."""
        await self._connected.wait()

    @property
    def seconds_without_answer(self) -> float:
        """For how long what it was given last is under way; 0 if nothing is."""
        return 0.0 if self._asked_at is None else trio.current_time() - self._asked_at

    def connect(self, stream: trio.SocketStream) -> None:
        """Send by whoever listens there, from now on."""
        self._stream = stream
        self._connected.set()

    def disconnect(self) -> None:
        """Send by nobody from now on; to be called as often as anybody finds that it is so."""
        self._stream = None
        # Who waits for the next connection already must not be left waiting for another one.
        if self._connected.is_set():
            self._connected = trio.Event()

    async def rest(self) -> None:
        """Return when nothing is under way."""
        async with self._in_use:
            return

    async def send(self, digests: Sequence[bytes], capabilities: StoreCapabilities) -> Sequence[Attempt]:
        """See Hand."""
        attempts: Sequence[Attempt] = [NOT_BEGUN] * len(digests)
        with trio.CancelScope(shield=True):
            async with self._in_use:
                if self._stream is not None:
                    attempts = await self._send(self._stream, digests, capabilities)
        return attempts

    async def _send(
        self, stream: trio.SocketStream, digests: Sequence[bytes], capabilities: StoreCapabilities
    ) -> Sequence[Attempt]:
        self._asked_at = trio.current_time()
        try:
            await stream.send_all(encode_order(digests, capabilities))
            return decode_attempts(await read_line(stream), len(digests))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a worker has gone away")
        except BadMessage as error:
            log.error("a worker says what is not understood: %s", error)
        finally:
            self._asked_at = None
        self.disconnect()
        self._is_lost()
        return [LOST] * len(digests)


async def read_line(stream: trio.abc.ReceiveStream) -> bytes:
    """Read a line to which nothing comes unasked. Raises BadMessage, trio.BrokenResourceError at the end."""
    line = bytearray()
    while not line.endswith(b"\n"):
        received = await stream.receive_some()
        if not received:
            raise trio.BrokenResourceError("it has been closed")
        line += received
        if len(line) > LONGEST_LINE:
            raise BadMessage(f"{len(line)} bytes without an end")
    return bytes(line)


@dataclass(frozen=True, slots=True)
class _Started:
    process: trio.Process
    settings: WorkerSettings
    streams: Sequence[trio.SocketStream]


class Worker:
    """One worker process with its hands. A fresh interpreter each time, never a fork of this process."""

    def __init__(self, number: int, settings: WorkerSettings, hands: int) -> None:
        """`number` is for the log; the settings lack the connections, of which there will be one for each hand."""
        self._number = number
        self._settings = settings
        self._restarts = Restarts(f"worker {number}")
        self._process: trio.Process | None = None
        self._is_to_hang_up = False
        self.hands = [WorkerHand(self._kill) for _ in range(hands)]

    def hang_up(self) -> None:
        """Have it open its log again, at the latest when it takes chunks: before that it may not know the signal."""
        self._is_to_hang_up = True
        if self._process is not None and all(hand.is_ready for hand in self.hands):
            self._is_to_hang_up = False
            self._process.send_signal(signal.SIGHUP)

    def without_answer(self, seconds: float) -> list[tuple[str, float]]:
        """What its hands have been sending for so long: in words, and for how many seconds."""
        waiting = [hand.seconds_without_answer for hand in self.hands]
        return [(f"chunks that worker {self._number} was given", since) for since in waiting if since >= seconds]

    @property
    def is_running(self) -> bool:
        """Whether it takes chunks."""
        return any(hand.is_ready for hand in self.hands)

    @property
    def failing(self) -> Failing | None:
        """How it is with it if it dies again and again, else None."""
        return self._restarts.failing(trio.current_time())

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()

    async def keep_running(self) -> None:
        """Run it and start it again when it dies or could not be started, until cancelled; then end it."""
        while True:
            self._restarts.began(trio.current_time())
            try:
                code = await self._run_once()
                condition = f"ended unexpectedly ({f'signal {-code}' if code < 0 else f'exit code {code}'})"
            except (OSError, RuntimeError) as error:
                # No memory, no process, no thread (RuntimeError) or no descriptor to be had, or Python is upgraded.
                condition = f"could not be run ({error})"
            delay = self._restarts.ended(condition, trio.current_time(), _LONGEST_DELAY)
            log.error(
                "worker %d %s; what it was sending is sent again, and it is started again in %.0f s",
                self._number,
                condition,
                delay,
                extra=about(EventName.WORKER_RESTARTED, worker=str(self._number)),
            )
            await trio.sleep(delay)

    async def _run_once(self) -> int:
        started = await self._start()
        self._process = process = started.process
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._connect, started)
                await process.wait()
                nursery.cancel_scope.cancel()
        finally:
            with trio.CancelScope(shield=True):
                await self._end(started)
            self._process = None
        assert process.returncode is not None
        return process.returncode

    async def _start(self) -> _Started:
        with ExitStack() as theirs, ExitStack() as unless_started:
            streams, descriptors = [], []
            for _ in self.hands:
                ours, other = socket.socketpair()
                unless_started.enter_context(ours)
                streams.append(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
                descriptors.append(theirs.enter_context(other).fileno())
            process = await trio.lowlevel.open_process(
                interpreter.command("mirrorfs.replication.sending"),
                env=interpreter.environment(),
                stdin=subprocess.PIPE,
                # Ours is a conversation with the filesystem process.
                stdout=subprocess.DEVNULL,
                pass_fds=[
                    self._settings.root_descriptor,
                    *descriptors,
                    *([] if self._settings.throttle is None else [self._settings.throttle]),
                ],
                cwd=interpreter.WORKING_DIRECTORY,
            )
            unless_started.pop_all()
        return _Started(process, replace(self._settings, connections=tuple(descriptors)), streams)

    async def _connect(self, started: _Started) -> None:
        """Give it chunks as soon as it listens; until then it only loads itself."""
        assert started.process.stdin is not None
        try:
            await started.process.stdin.send_all(started.settings.encode())
            for hand, stream in zip(self.hands, started.streams, strict=True):
                if await read_line(stream) != READY:
                    raise BadMessage("it does not say that it is ready")
                hand.connect(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError, BadMessage) as error:
            log.debug("worker %d: %s", self._number, error)
            self._kill()
            return
        if self._is_to_hang_up:
            self.hang_up()
        log.info("worker %d runs (process %d)", self._number, started.process.pid)

    async def _end(self, started: _Started) -> None:
        process = started.process
        if process.returncode is None:
            # A PUT that is under way is brought to its end before anybody goes on.
            for hand in self.hands:
                await hand.rest()
        for hand, stream in zip(self.hands, started.streams, strict=True):
            hand.disconnect()
            await trio.aclose_forcefully(stream)
        assert process.stdin is not None
        await process.stdin.aclose()
        with trio.move_on_after(_END_SECONDS):
            await process.wait()
        if process.returncode is None:
            process.kill()
        await process.wait()
