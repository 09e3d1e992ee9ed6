"""What the C library does with memory that was let go of."""

from __future__ import annotations

import ctypes

_M_ARENA_MAX = -8
_libc = ctypes.CDLL(None)


def use_one_arena() -> None:
    """mallopt(3): threads that begin from now on take memory from where all others do, not from arenas of their own.

    What one thread reads and another one lets go would leave holes in each of these arenas, which are never given back.
    The interpreter's lock is held for nearly all of it, so that nobody waits. C libraries without arenas have no such
    call.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)
