"""One request over a connection that is open already: written and read here, since it is made for every small chunk.

http.client and urllib3 would take as long for it as all else that a small chunk needs. What is understood here is what
nearly every request is answered: a head without anything unusual, and a body, if any, of the length that it tells.
Whatever else comes is read by them.
"""

from __future__ import annotations

import http.client
import io
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol, cast

import urllib3
import urllib3.exceptions

from mirrorfs.datastore.content import Content, copy_of

_PIECE = 256 * 1024
_LONGEST_HEAD = 64 * 1024
# However the lines before it end: one that ends them oddly must not be waited for.
_END_OF_HEAD = re.compile(rb"\n\r?\n")
# Strict: a line that is folded, or has a character that does not belong there, is left to http.client.
_PLAIN_HEAD = re.compile(
    rb"HTTP/1\.1 ([2-5][0-9]{2})(?: [^\r\n\0]*)?\r\n((?:[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n\0]*\r\n)*)\r\n"
)
_WITHOUT_BODY = (204, 304)
_LENGTH = re.compile(r"[0-9]{1,18}")


class Unread(Protocol):
    """The body of an answer, as urllib3 gives one."""

    def stream(self, amt: int, decode_content: bool) -> Iterator[bytes]:
        """What has not been read yet, in pieces of at most so many bytes, the first of as many as there are.

        If so it is decoded from what Content-Encoding names.

        Raises what a pool of urllib3 would, or a plain OSError.
        """
        ...


@dataclass(frozen=True, slots=True)
class WireAnswer:
    """Status and headers, their names in lower case. `unread` has the body, where there may be one.

    `ends_plainly`: after the body the connection is where the next answer begins.
    """

    status: int
    headers: Mapping[str, str]
    unread: Unread | None
    ends_plainly: bool

    @property
    def may_be_reused(self) -> bool:
        """Whether the connection is where the next answer begins already."""
        is_read = self.unread is None or (isinstance(self.unread, _PlainBody) and self.unread.remaining == 0)
        return self.ends_plainly and is_read


def exchange(
    connection: socket.socket,
    method: str,
    target: str,
    headers: Mapping[str, str],
    body: Content,
    allowed: Callable[[int], int],
) -> WireAnswer:
    """Send a request, and read its answer as far as the body. The time-out is the socket's.

    `allowed` is called for each piece of the body, and tells how many bytes of it may be sent.
    Raises what a pool of urllib3 would, or a plain OSError; ValueError where a header cannot be sent.
    """
    head = _head(method, target, headers)
    try:
        _send(connection, head, body, allowed)
        return _receive(connection, method)
    except ssl.SSLError as error:
        raise urllib3.exceptions.SSLError(error) from error
    except http.client.HTTPException as error:
        raise urllib3.exceptions.ProtocolError("Connection aborted.", error) from error


def _head(method: str, target: str, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"{method} {target} HTTP/1.1",
        *[f"{name}: {value}" for name, value in headers.items()],
        "Accept-Encoding: identity",
    ]
    head = "\r\n".join(lines)
    if head.count("\n") != len(lines) - 1 or head.count("\r") != len(lines) - 1:
        raise ValueError("a header has a line break in it")
    return f"{head}\r\n\r\n".encode("latin-1")


def _send(connection: socket.socket, head: bytes, body: Content, allowed: Callable[[int], int]) -> None:
    try:
        position = 0
        while head or position < len(body):
            count = allowed(min(_PIECE, len(body) - position))
            # The head goes with the first piece: what is alone in a packet is waited for.
            connection.sendall(head + copy_of(body, position, position + count))
            head, position = b"", position + count
    except BrokenPipeError:
        # A store that refuses a request may answer before it has read all of it.
        return


def _receive(connection: socket.socket, method: str) -> WireAnswer:
    received = b""
    while (end := _END_OF_HEAD.search(received)) is None and len(received) < _LONGEST_HEAD:
        piece = connection.recv(_LONGEST_HEAD)
        if not piece:
            # http.client would take the half of a head for a whole one.
            raise http.client.RemoteDisconnected("Remote end closed connection without response")
        received += piece
    plain = None if end is None else _PLAIN_HEAD.fullmatch(received, 0, end.end())
    if plain is not None:
        status, headers = int(plain[1]), _headers(plain[2])
        length = _plain_length(method, status, headers)
        if length is not None:
            begun = received[plain.end() :]
            # What comes unasked is nobody's answer.
            ends_plainly = len(begun) <= length and "close" not in headers.get("connection", "").lower()
            body = _PlainBody(connection, begun[:length], length) if length else None
            return WireAnswer(status, headers, body, ends_plainly)
    return _by_urllib3(connection, method, received)


def _headers(lines: bytes) -> dict[str, str]:
    headers: dict[str, str] = {}
    for line in lines.decode("latin-1").split("\r\n")[:-1]:
        name, _, value = line.partition(":")
        name, value = name.lower(), value.strip(" \t")
        headers[name] = f"{headers[name]}, {value}" if name in headers else value
    return headers


def _plain_length(method: str, status: int, headers: Mapping[str, str]) -> int | None:
    """How many bytes of body follow; None where that is not told by a length alone, or they are to be decoded."""
    if method == "HEAD" or status in _WITHOUT_BODY:
        return 0
    if "transfer-encoding" in headers or headers.get("content-encoding", "identity") != "identity":
        return None
    length = headers.get("content-length", "")
    return int(length) if _LENGTH.fullmatch(length) else None


class _PlainBody:
    """A body of an announced length, of which the beginning has come with the head."""

    def __init__(self, connection: socket.socket, begun: bytes, length: int) -> None:
        self.remaining = length
        self._connection = connection
        self._begun = begun
        self._length = length

    def stream(self, amt: int, decode_content: bool) -> Iterator[bytes]:
        """See Unread; nothing is encoded."""
        size = min(amt, self.remaining)
        pieces, self._begun = [self._begun[:size]], self._begun[size:]
        missing = size - len(pieces[0])
        while missing:
            pieces.append(self._receive(missing))
            missing -= len(pieces[-1])
        self.remaining -= size
        yield b"".join(pieces)
        while self.remaining:
            piece, self._begun = self._begun[:amt], self._begun[amt:]
            piece = piece or self._receive(min(amt, self.remaining))
            self.remaining -= len(piece)
            yield piece

    def _receive(self, size: int) -> bytes:
        try:
            received = self._connection.recv(size)
        except ssl.SSLError as error:
            raise urllib3.exceptions.SSLError(error) from error
        if not received:
            raise urllib3.exceptions.ProtocolError(f"the body ends before its {self._length} bytes")
        return received


def _by_urllib3(connection: socket.socket, method: str, received: bytes) -> WireAnswer:
    answer = http.client.HTTPResponse(cast(socket.socket, _Begun(connection, received)), method=method)
    answer.begin()
    unread = urllib3.HTTPResponse(
        answer,
        urllib3.HTTPHeaderDict(answer.msg.items()),
        answer.status,
        version=answer.version,
        reason=answer.reason,
        preload_content=False,
        decode_content=False,
        original_response=answer,
        request_method=method,
    )
    headers = {name.lower(): value for name, value in unread.headers.itermerged()}
    return WireAnswer(answer.status, headers, unread, ends_plainly=False)


class _Begun(io.RawIOBase):
    """A connection of which some bytes have been read already, as http.client reads one."""

    def __init__(self, connection: socket.socket, received: bytes) -> None:
        super().__init__()
        self._connection = connection
        self._received = memoryview(received)

    def makefile(self, _mode: str) -> io.BufferedReader:
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._received:
            return self._connection.recv_into(buffer)
        count = min(len(buffer), len(self._received))
        buffer[:count] = self._received[:count]
        self._received = self._received[count:]
        return count
