"""A read of the next request that finds none is interrupted: the event loop does not stay in it.

pyfuse3 waits until the kernel says that there is a request, and then reads it in a way that waits, with the
interpreter's lock held. If whoever asked is killed in between, the request is gone, and the whole process would stand
still until the next one: calls that have ended would not be answered, nor a dead uploader noticed. With O_NONBLOCK the
read would end at once, but with an error that pyfuse3 takes for the end of the mount; it goes on after EINTR. So a
signal comes several times a second, to the thread of the event loop only. It is SIGURG, which nobody misses and whose
default is to be ignored.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from mirrorfs.filesystem.system_calls import IntervalTimer

_NUMBER = signal.SIGURG
# Twenty times a second costs nothing that could be measured, and is soon enough for what waits meanwhile.
_INTERVAL_NS = 50_000_000


@contextmanager
def interrupted_reads() -> Iterator[None]:
    """Interrupts whatever system call this thread, the main one, waits in; Python repeats its own (PEP 475)."""
    before = signal.signal(_NUMBER, _do_nothing)
    timer = IntervalTimer(_NUMBER, threading.get_native_id(), _INTERVAL_NS)
    try:
        yield
    finally:
        timer.delete()
        signal.signal(_NUMBER, before)


def _do_nothing(number: int, frame: object) -> None:
    """A handler, which makes the system call end with EINTR; an ignored signal would not."""
