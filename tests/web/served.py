"""A page that is served in this process, of a mirror that the test makes up."""

from __future__ import annotations

import copy
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from mirrorfs.web import serving
from mirrorfs.web.gate import Gate
from mirrorfs.web.overview import Drilled, Overview, Reading
from mirrorfs.web.pages import Pages

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title="owned"\u202egnp.exe\u2066\u200f'
SHOWN = HOSTILE.replace("\u202e", "\\u202e").replace("\u2066", "\\u2066").replace("\u200f", "\\u200f")

STATUS: dict[str, Any] = {
    "word": "broken", "why": f"why {HOSTILE}", "to_do": f"do {HOSTILE}",
    "datastore": f"/srv/{HOSTILE}", "bucket": f"b{HOSTILE}", "prefix": f"p{HOSTILE}",
    "store_options": {"proxy": "http://user:secret@proxy"},
    "uploader": {"pid": 7, "started": 1000.0, "phase": HOSTILE, "refused": HOSTILE},
    "waiting": {"because": HOSTILE, "reason": "x", "since": 1.0, "needs_an_administrator": True},
    "recovery_point": {"missing": 2, "oldest": f"vm/1{HOSTILE}/2026-01-02T00:00:00Z", "finished": 1.0,
                       "age_seconds": 90000.0},
    "store": {"place": HOSTILE, "up": False, "since": 1.0, "last_error": HOSTILE, "last_error_at": 1.0,
              "confirmation": "etag-md5", "conditional_puts": True, "versioned": True, "object_lock": True,
              "clock_difference": 99.0, "clock_is_trusted": False, "does_without": {HOSTILE: HOSTILE},
              "requests_without_progress": [{"request": HOSTILE, "seconds": 70.0}]},
    "claim": {"looked_at": None, "is_current": False},
    "uploaded": {"objects": 12, "bytes": 3456, "bytes_per_second": 1.0},
    "snapshots": [
        {"snapshot": f"vm/1{HOSTILE}/2026-01-01T00:00:00Z", "phase": "published", "since": 1.0},
        {"snapshot": "vm/2/2026-01-01T00:00:00Z", "phase": "committed", "since": 1.0},
    ],
    "chunks": 99,
    "problems": [
        {"name": f".chunks/abcd/{HOSTILE}", "reason": HOSTILE, "since": 1.0, "count": 1},
        {"name": HOSTILE, "reason": HOSTILE, "since": 1.0, "count": 3},
    ],
    "foreign": {"count": 1, "examples": [HOSTILE]},
    "quarantined": {"count": 1, "examples": [{"chunk": HOSTILE, "since": 1.0, "bucket_has_a_good_copy": True}]},
    "retention": {
        "held": [{"snapshot": f"vm/2/{HOSTILE}", "since": 1.0, "reason": "unseen", "goes_at": 2.0}],
        "deleted": [{"snapshot": HOSTILE, "deleted": 1.0, "until": 2.0}],
        "refused": {"count": 1, "examples": [{"name": HOSTILE, "reason": HOSTILE, "retry_at": 1.0}]},
    },
    "journal_broken_since": None,
    "failing_processes": [{"process": f"worker {HOSTILE}", "deaths": 3, "since": 1.0, "last": HOSTILE}],
    "chunk_store": {"in_use": "fuse", "reason": HOSTILE},
    "reconciled": True, "lag_seconds": 1.0, "journal": {"pending": 1},
    "backlog": {"items": 3, "bytes_at_least": 70000, "drain_seconds": None},
    "publishing": {f"vm/1{HOSTILE}/2026-01-02T00:00:00Z": 5}, "locks_obstacle": HOSTILE,
    "scrub": {"percent_per_day": 1.0, "parts": {"00": None, "files": 1.0}, "never_read": 1, "oldest": None,
              "objects": 2, "sent_again": 1, "refusal": HOSTILE},
}  # fmt: skip
"""An answer to `status` that is as hostile as it can be."""


def hostile_reading() -> Reading:
    """The answer, with a drill that is no better."""
    drills = [Drilled(HOSTILE, 1.0, good=False)]
    return Reading(copy.deepcopy(STATUS), None, drills, approve=f"approve {HOSTILE}", heal=f"heal {HOSTILE}")


class Mirror:
    """What is served: `reading` is what is to be learnt of it, `asked` how often somebody has."""

    def __init__(self) -> None:
        self.reading = hostile_reading()
        self.asked = 0

    def read(self) -> Reading:
        """Be asked."""
        self.asked += 1
        return self.reading


@asynccontextmanager
async def serving_page(mirror: Mirror, gate: Gate) -> AsyncIterator[int]:
    """Serve it on a port of the loopback address, which is given."""
    listeners = await serving.listen("127.0.0.1", 0)
    assert serving.are_local(listeners)
    overview = Overview(mirror.read)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(serving.serve, listeners, overview, Pages(overview, gate), lambda: None)
        yield int(listeners[0].socket.getsockname()[1])
        nursery.cancel_scope.cancel()


async def exchanged(port: int, data: bytes, *, then_ends: bool = False) -> bytes:
    """Send something, and return all that comes back until the other side ends."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    received = b""
    async with stream:
        try:
            await stream.send_all(data)
            if then_ends:
                await stream.send_eof()
        except trio.BrokenResourceError:
            pass
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        while part := await stream.receive_some(65536):
            received += part
    return received
