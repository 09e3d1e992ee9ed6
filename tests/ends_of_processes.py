"""Waiting for the end of a process that need not be a child of one's own."""

from __future__ import annotations

import os
import select


def is_over(process: int, seconds: float) -> bool:
    """Whether the process of this pidfd ends within so many seconds; one that nobody has waited for has ended too."""
    poll = select.poll()
    poll.register(process, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def ends_within(pid: int, seconds: float) -> bool:
    """Whether there is no process of this number, or it ends within so many seconds."""
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return is_over(process, seconds)
    finally:
        os.close(process)
