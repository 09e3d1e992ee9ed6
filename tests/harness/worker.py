"""Writers in processes of their own: an index that is mapped through a mount which is killed ends its writer by SIGBUS,
as it would end a process of PBS, and a mount that hangs shall not hang what watches it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe
from pathlib import Path
from typing import Any

from tests.harness.writer import DatastoreWriter

_END_SECONDS = 10.0
_REPOSITORY = Path(__file__).resolve().parents[2]
# Not `python -m`: what is sent to and fro must be of this module, not of __main__.
_PROGRAM = "from tests.harness.worker import main; main()"


class WriterDied(OSError):
    """The writer's process has ended in the middle of its work."""


@dataclass(frozen=True, slots=True)
class Order:
    """A method of DatastoreWriter with its arguments. With `stop_at`, the writer waits before the first system call of
    that name (PURPOSE.CALL) until it is told to go on."""

    datastore: str
    seed: int
    method: str
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    stop_at: str | None = None


@dataclass(frozen=True, slots=True)
class _Stopped:
    """The writer waits where it was told to."""


@dataclass(frozen=True, slots=True)
class _Done:
    """What the method gave or raised."""

    result: Any = None
    error: BaseException | None = None


class Worker:
    """One process that does one order at a time."""

    def __init__(self) -> None:
        self._connection, theirs = Pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=_REPOSITORY,
        )
        theirs.close()

    def do(self, order: Order, on_stop: Callable[[], None] = lambda: None) -> Any:  # noqa: ANN401
        """Have an order done; gives what the method gives and raises what it raises, or WriterDied."""
        try:
            self._connection.send(order)
            while True:
                answer = self._connection.recv()
                if isinstance(answer, _Done):
                    break
                on_stop()
                self._connection.send(answer)
        except (EOFError, ConnectionError) as error:
            code = self._process.wait(_END_SECONDS)
            raise WriterDied(f"the writer's process ended with code {code} in {order.method}") from error
        if answer.error is not None:
            raise answer.error
        return answer.result

    def end(self) -> None:
        """End the process, whatever it does."""
        self._connection.close()
        self._process.kill()
        self._process.wait(_END_SECONDS)


@dataclass(slots=True)
class Workers:
    """As many workers as are busy at once. Any thread."""

    _idle: list[Worker] = field(default_factory=list)
    _all: list[Worker] = field(default_factory=list)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def do(self, order: Order, on_stop: Callable[[], None] = lambda: None) -> Any:  # noqa: ANN401
        """See Worker.do. Who fails is ended: what it has still open or mapped would keep the mount busy."""
        worker = self._take()
        try:
            result = worker.do(order, on_stop)
        except BaseException:
            worker.end()
            with self._mutex:
                self._all = [other for other in self._all if other is not worker]
            raise
        with self._mutex:
            self._idle.append(worker)
        return result

    def end(self) -> None:
        """End them all."""
        with self._mutex:
            workers, self._all, self._idle = self._all, [], []
        for worker in workers:
            worker.end()

    def _take(self) -> Worker:
        with self._mutex:
            if self._idle:
                return self._idle.pop()
            worker = Worker()
            self._all.append(worker)
            return worker


def main() -> None:
    """Do orders until the other side is gone."""
    connection = Connection(int(sys.argv[1]))
    while True:
        try:
            order: Order = connection.recv()
        except EOFError:
            return
        connection.send(_outcome(order, connection))


def _outcome(order: Order, connection: Connection) -> _Done:
    waited = False

    def stop(step: str) -> None:
        nonlocal waited
        if step == order.stop_at and not waited:
            waited = True
            connection.send(_Stopped())
            connection.recv()

    try:
        with DatastoreWriter(order.datastore, order.seed, on_step=stop if order.stop_at else None) as writer:
            return _Done(getattr(writer, order.method)(*order.arguments, **order.keywords))
    except Exception as error:  # noqa: BLE001 - it is raised on the other side
        return _Done(error=error)
