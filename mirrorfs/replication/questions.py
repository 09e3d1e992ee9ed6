"""Asking through the uploader's control socket. Apart from who answers: a command that asks needs no trio."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any

from mirrorfs import own_files

Answer = dict[str, Any]
_SHORTEST_TIMEOUT = 0.001


def ask(
    path: str,
    command: str,
    timeout: float | None,
    *,
    arguments: Mapping[str, Any] | None = None,
    told: Callable[[Answer], None] | None = None,
) -> Answer:
    """Ask the uploader from a synchronous program; `timeout` in seconds, None waits without end.

    `told` is called with each thing that is told before the answer.

    Raises:
        ConnectionError, FileNotFoundError: no uploader listens there, or it ended while it was asked.
        TimeoutError: no answer in time.
        own_files.NotOwn: what stands there is not the socket of root's that it should be.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connect(connection, path)
        connection.sendall(json.dumps({**(arguments or {}), "command": command}).encode() + b"\n")
        with connection.makefile("rb") as file:
            while True:
                answer = _parsed_line(file.readline())
                if "told" not in answer:
                    return answer
                if told is not None:
                    told(answer["told"])
                if deadline is not None:
                    connection.settimeout(max(_SHORTEST_TIMEOUT, deadline - time.monotonic()))


def _parsed_line(line: bytes) -> Answer:
    if not line.endswith(b"\n"):
        raise ConnectionResetError("the uploader ended while it was asked")
    answer: Answer = json.loads(line)
    return answer


def connect(connection: socket.socket, path: str) -> None:
    """Connect to a Unix socket of root's. Raises ConnectionError, FileNotFoundError, TimeoutError, NotOwn."""
    reference = own_files.socket_reference(path)
    try:
        connection.connect(f"/proc/self/fd/{reference}")
    finally:
        os.close(reference)
