"""How the C library of a process keeps its memory."""

import re
from pathlib import Path

# glibc reserves that much for each arena, at addresses that are multiples of it (HEAP_MAX_SIZE).
_ARENA_RESERVATION = 64 * 1024 * 1024


def arenas(pid: int) -> int:
    """How many there are beside the one that a process begins with."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    starts = [int(start, 16) for start in re.findall(r"^([0-9a-f]+)-[0-9a-f]+ rw-p 00000000 00:00 0 *$", maps, re.M)]
    return sum(start % _ARENA_RESERVATION == 0 for start in starts)
