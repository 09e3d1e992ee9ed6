"""The uploader's control socket: one line of JSON asks, one line of JSON answers. Who asks: questions."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import trio

from mirrorfs import own_files
from mirrorfs.database.errors import DatabaseCorrupt
from mirrorfs.datastore.quoting import quoted
from mirrorfs.replication.questions import Answer

log = logging.getLogger(__name__)

Handler = Callable[[], Awaitable[Answer]]
Tell = Callable[[Answer], Awaitable[None]]
LongHandler = Callable[[Mapping[str, Any], Tell], Awaitable[Answer]]
"""Is given the whole request, and may tell something before it answers."""
_LONGEST_LINE = 64 * 1024
_LINES_AHEAD = 16


async def serve_control(
    path: str, handlers: Mapping[str, Handler], long_handlers: Mapping[str, LongHandler] | None = None
) -> None:
    """Answer commands on the Unix socket `path` (mode 0600) until cancelled.

    A request is {"command": NAME}, for a long handler with more in it; the answer is what the handler returns, or
    {"error": SENTENCE}. What a long handler tells comes before it, each as a line {"told": …}.
    """
    commands = {name: _without_request(handler) for name, handler in handlers.items()} | dict(long_handlers or {})
    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening_socket(path)))

        async def converse(stream: trio.SocketStream) -> None:
            await _converse(stream, commands)

        await trio.serve_listeners(converse, [listener], handler_nursery=nursery)


def listening_socket(path: str) -> socket.socket:
    """Listen on a Unix socket (mode 0600) of this path, whatever stood there. Raises NotOwn, OSError."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _ShortPath(path) as short:
        own_files.take_away(path)
        # The mode that the socket has is the mode that its name gets (unix(7)).
        os.fchmod(listening.fileno(), 0o600)
        listening.bind(short)
    listening.listen()
    return listening


class _ShortPath:
    """Unix sockets allow 107 bytes of path; through a descriptor of the directory any path fits."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(path)

    def __enter__(self) -> str:
        self._descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/{self._name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def _without_request(handler: Handler) -> LongHandler:
    async def handle(request: Mapping[str, Any], tell: Tell) -> Answer:
        del request, tell
        return await handler()

    return handle


async def _converse(stream: trio.SocketStream, handlers: Mapping[str, LongHandler]) -> None:
    """Answer what comes, in order; a client that goes away ends the handler that works for it."""
    async with stream, trio.open_nursery() as nursery:
        into, lines = trio.open_memory_channel[bytes](_LINES_AHEAD)

        async def listen() -> None:
            with suppress(trio.BrokenResourceError):
                async with aclosing(stream_lines(stream)) as received:
                    async for line in received:
                        await into.send(line)
            nursery.cancel_scope.cancel()

        telling = trio.Lock()

        async def tell(told: Answer) -> None:
            # If the client is gone, `listen` finds out too, and ends all of it.
            with suppress(trio.BrokenResourceError):
                async with telling:
                    await stream.send_all(json.dumps({"told": told}).encode() + b"\n")

        nursery.start_soon(listen)
        with suppress(trio.BrokenResourceError):
            async for line in lines:
                await stream.send_all(await _answer(line, handlers, tell) + b"\n")
        nursery.cancel_scope.cancel()


async def _answer(line: bytes, handlers: Mapping[str, LongHandler], tell: Tell) -> bytes:
    try:
        return json.dumps(await _handle(line, handlers, tell)).encode()
    except DatabaseCorrupt:
        # The uploader ends, and begins anew what is damaged.
        raise
    except Exception as error:
        # Whatever is wrong with one answer must not end the mirror.
        log.exception("a command of the control socket failed")
        return json.dumps({"error": f"the uploader could not answer: {error!r}"}).encode()


async def _handle(line: bytes, handlers: Mapping[str, LongHandler], tell: Tell) -> Answer:
    try:
        request = json.loads(line)
        command = str(request["command"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return {"error": "not a command"}
    handler = handlers.get(command)
    return await handler(request, tell) if handler is not None else {"error": f"unknown command {quoted(command)}"}


def read_line(descriptor: int) -> bytes:
    """Read one line with its end, and nothing of what follows; less where the stream ends."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = os.read(descriptor, 1)
        if not byte:
            break
        line += byte
    return bytes(line)


async def stream_lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[bytes, None]:
    """Give the lines that come in on a stream, without their ends; an over-long one ends it."""
    buffer = b""
    async for data in stream:
        *complete, buffer = (buffer + data).split(b"\n")
        for line in complete:
            yield line
        if len(buffer) > _LONGEST_LINE:
            return
