"""No request for ever: each has a deadline, whatever trickles; whoever is late has its connection broken."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from mirrorfs.objectstore.throttle import Flow, Throttle

_IDLE_SECONDS = 10.0


class RequestUnderWay:
    """One request: when it began, when it must have ended, and when anything was last sent or received for it.

    All times are in seconds of the monotonic clock. To be used by the thread that makes the request.
    """

    def __init__(
        self, description: str, seconds: float, clock: Callable[[], float], throttle: Throttle | None = None
    ) -> None:
        self.description = description
        self.began = self.progressed = clock()
        self.deadline = self.began + seconds
        self.is_overdue = False
        self._clock = clock
        self._throttle = throttle
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    def progress(self) -> None:
        """Something has come, or gone."""
        self.progressed = self._clock()

    def sending(self, size: int) -> int:
        """Waits until some of so many bytes may be sent; tells how many."""
        self.progress()
        if self._throttle is None or size == 0:
            return size
        piece = self._throttle.piece(Flow.UP, size)
        # What waits by order is not late.
        self.extend(self._throttle.take(Flow.UP, piece))
        return piece

    def piece_to_receive(self, size: int) -> int:
        """How many of so many bytes are to be received at once."""
        return size if self._throttle is None else self._throttle.piece(Flow.DOWN, size)

    def received(self, size: int) -> None:
        """So many bytes have come; waits for as long as they may take, and the store with it."""
        self.progress()
        if self._throttle is not None:
            self.extend(self._throttle.take(Flow.DOWN, size))

    def extend(self, seconds: float) -> None:
        """More time, for an answer whose length has become known."""
        self.deadline += seconds

    def attach(self, connection: socket.socket | None) -> None:
        """Says which connection is to be broken when it is late; one that comes too late is broken at once."""
        with self._lock:
            self._connection = connection
            if self.is_overdue:
                self._break()

    def end_overdue(self) -> None:
        """Breaks the connection, so that whoever waits for it goes on with an error; for the watching thread."""
        with self._lock:
            self.is_overdue = True
            self._break()

    def _break(self) -> None:
        if self._connection is not None:
            # It may have been closed a moment ago, which is as good.
            with suppress(OSError):
                self._connection.shutdown(socket.SHUT_RDWR)


class Deadlines:
    """Watches the requests of several threads. Its own thread runs only while there are some."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, *, throttle: Throttle | None = None) -> None:
        """`clock` tells seconds; `throttle` says how fast all of them may be together."""
        self._clock = clock
        self._throttle = throttle
        self._changed = threading.Condition()
        self._requests: set[RequestUnderWay] = set()
        self._watches = False
        self._looks_at = 0.0

    def wait_for_request(self) -> None:
        """Waits until one more request may be made."""
        if self._throttle is not None:
            self._throttle.take(Flow.REQUESTS)

    @contextmanager
    def watching(self, description: str, seconds: float) -> Iterator[RequestUnderWay]:
        """Gives a request that is broken off when it has taken longer than so many seconds."""
        request = RequestUnderWay(description, seconds, self._clock, self._throttle)
        with self._changed:
            self._requests.add(request)
            if not self._watches:
                self._watches = True
                self._looks_at = request.began
                threading.Thread(target=self._watch, name="store-deadlines", daemon=True).start()
            if request.deadline < self._looks_at:
                self._changed.notify()
        try:
            yield request
        finally:
            with self._changed:
                self._requests.discard(request)
            request.attach(None)

    def without_progress(self, seconds: float) -> list[tuple[str, float]]:
        """The requests for which nothing was sent or received for so long: what they are, and for how many seconds."""
        now = self._clock()
        with self._changed:
            stalled = [(request.description, now - request.progressed) for request in self._requests]
        return sorted((entry for entry in stalled if entry[1] >= seconds), key=lambda entry: -entry[1])

    def _watch(self) -> None:
        with self._changed:
            while True:
                now = self._clock()
                for request in [one for one in self._requests if one.deadline <= now and not one.is_overdue]:
                    request.end_overdue()
                waiting = [one.deadline for one in self._requests if not one.is_overdue]
                self._looks_at = min([now + _IDLE_SECONDS, *waiting])
                if not self._changed.wait(self._looks_at - now) and not self._requests:
                    self._watches = False
                    return
