"""The uploader's control socket: one line of JSON asks, one line of JSON answers."""

from __future__ import annotations

import json
import logging
import os
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from typing import Any

import trio

log = logging.getLogger(__name__)

Answer = dict[str, Any]
Handler = Callable[[], Awaitable[Answer]]
_LONGEST_LINE = 64 * 1024
_LINES_AHEAD = 16


async def serve_control(path: str, handlers: Mapping[str, Handler]) -> None:
    """Answer commands on the Unix socket `path` (mode 0600) until cancelled.

    A request is {"command": NAME}; the answer is what the handler returns, or {"error": SENTENCE}.
    """
    async with trio.open_nursery() as nursery:
        listener = trio.SocketListener(_listening_socket(path))

        async def converse(stream: trio.SocketStream) -> None:
            await _converse(stream, handlers)

        await trio.serve_listeners(converse, [listener], handler_nursery=nursery)


def _listening_socket(path: str) -> trio.socket.SocketType:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with _ShortPath(path) as short:
        if os.path.lexists(path):
            os.unlink(path)
        listening.bind(short)
    os.chmod(path, 0o600)
    listening.listen()
    return trio.socket.from_stdlib_socket(listening)


class _ShortPath:
    """Unix sockets allow 107 bytes of path; through a descriptor of the directory any path fits."""

    def __init__(self, path: str) -> None:
        self._directory, self._name = os.path.split(path)

    def __enter__(self) -> str:
        self._descriptor = os.open(self._directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return f"/proc/self/fd/{self._descriptor}/{self._name}"

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


async def _converse(stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
    """Answer what comes, in order; a client that goes away ends the handler that works for it."""
    async with stream, trio.open_nursery() as nursery:
        into, lines = trio.open_memory_channel[bytes](_LINES_AHEAD)

        async def listen() -> None:
            with suppress(trio.BrokenResourceError):
                async with aclosing(stream_lines(stream)) as received:
                    async for line in received:
                        await into.send(line)
            nursery.cancel_scope.cancel()

        nursery.start_soon(listen)
        with suppress(trio.BrokenResourceError):
            async for line in lines:
                await stream.send_all(await _answer(line, handlers) + b"\n")
        nursery.cancel_scope.cancel()


async def _answer(line: bytes, handlers: Mapping[str, Handler]) -> bytes:
    try:
        return json.dumps(await _handle(line, handlers)).encode()
    except Exception as error:
        # Whatever is wrong with one answer must not end the mirror.
        log.exception("a command of the control socket failed")
        return json.dumps({"error": f"the uploader could not answer: {error!r}"}).encode()


async def _handle(line: bytes, handlers: Mapping[str, Handler]) -> Answer:
    try:
        command = str(json.loads(line)["command"])
    except (ValueError, KeyError, TypeError):
        return {"error": "not a command"}
    handler = handlers.get(command)
    return await handler() if handler is not None else {"error": f"unknown command {command!r}"}


async def stream_lines(stream: trio.abc.ReceiveStream) -> AsyncGenerator[bytes, None]:
    """Give the lines that come in on a stream, without their ends; an over-long one ends it."""
    buffer = b""
    async for data in stream:
        *complete, buffer = (buffer + data).split(b"\n")
        for line in complete:
            yield line
        if len(buffer) > _LONGEST_LINE:
            return


def ask(path: str, command: str, timeout: float | None) -> Answer:
    """Ask the uploader from a synchronous program; `timeout` in seconds, None waits without end.

    Raises:
        ConnectionError, FileNotFoundError: no uploader listens there, or it ended while it was asked.
        TimeoutError: no answer in time.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        with _ShortPath(path) as short:
            connection.connect(short)
        connection.sendall(json.dumps({"command": command}).encode() + b"\n")
        with connection.makefile("rb") as file:
            line = file.readline()
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the uploader ended while it was asked")
    answer: Answer = json.loads(line)
    return answer
