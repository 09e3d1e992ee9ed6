"""A store that costs next to nothing: it honours CRC32C, and forgets what large objects hold.

What is measured against it is the sender alone. Only one process, as nobody's speed is judged by it.
`python -m tests.bench.stub_store` prints its port and serves until standard input is closed.
"""

from __future__ import annotations

import base64
import secrets
import socket
import subprocess
import sys
import threading
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from xml.sax.saxutils import escape

import crc32c

from tests.stores.server import StoreAccess

_LONGEST_HEAD = 64 * 1024
# What is read again: claims, manifests, what a probe puts.
_LARGEST_KEPT = 16 * 1024
_PIECE = 1024 * 1024


@dataclass(frozen=True, slots=True)
class _Stored:
    size: int
    crc32c: int
    kept: bytes | None
    modified: str = field(default_factory=lambda: formatdate(usegmt=True))

    @property
    def headers(self) -> dict[str, str]:
        encoded = base64.b64encode(self.crc32c.to_bytes(4, "big")).decode()
        # As of an object that was put in parts, so that nobody takes it for an MD5.
        return {"ETag": f'"{self.crc32c:032x}-1"', "Last-Modified": self.modified, "x-amz-checksum-crc32c": encoded}


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""


class StubStore:
    """The objects of any bucket, and what is answered about them. For several threads at once."""

    def __init__(self) -> None:
        self._objects: dict[str, _Stored] = {}

    def put(self, request: _Request, body: _Body) -> _Answer:
        """Take an object in."""
        source = request.headers.get("x-amz-copy-source")
        if source is not None:
            return self._copy(request.key, urllib.parse.unquote(source).lstrip("/"))
        stored = body.stored()
        if not self._is_as_wanted(request):
            return _error(412, "PreconditionFailed")
        announced = request.headers.get("x-amz-checksum-crc32c", stored.headers["x-amz-checksum-crc32c"])
        if announced != stored.headers["x-amz-checksum-crc32c"]:
            return _error(400, "BadDigest")
        self._objects[request.key] = stored
        return _Answer(200, stored.headers)

    def _is_as_wanted(self, request: _Request) -> bool:
        there = self._objects.get(request.key)
        wanted = request.headers.get("if-match")
        if wanted is not None:
            return there is not None and there.headers["ETag"].strip('"') == wanted.strip('"')
        return request.headers.get("if-none-match") != "*" or there is None

    def _copy(self, key: str, source: str) -> _Answer:
        stored = self._objects.get(source)
        if stored is None:
            return _error(404, "NoSuchKey")
        self._objects[key] = stored
        etag = escape(stored.headers["ETag"])
        return _document("CopyObjectResult", f"<ETag>{etag}</ETag><LastModified>{stored.modified}</LastModified>")

    def look(self, request: _Request) -> _Answer:
        """Answer a HEAD or GET."""
        if "/" not in request.key:
            return self._look_at_bucket(request)
        stored = self._objects.get(request.key)
        if stored is None:
            return _error(404, "NoSuchKey")
        if request.method == "HEAD":
            return _Answer(200, {**stored.headers, "Content-Length": str(stored.size)})
        return _error(410, "Forgotten") if stored.kept is None else _Answer(200, stored.headers, stored.kept)

    def _look_at_bucket(self, request: _Request) -> _Answer:
        if "object-lock" in request.query:
            return _error(404, "ObjectLockConfigurationNotFoundError")
        if "versioning" in request.query:
            return _document("VersioningConfiguration", "")
        beginning = f"{request.key}/{request.query.get('prefix', '')}"
        keys = sorted(key for key in self._objects if key.startswith(beginning))
        entries = "".join(
            f"<Contents><Key>{escape(key.partition('/')[2])}</Key><Size>{self._objects[key].size}</Size></Contents>"
            for key in keys
        )
        head = f"<Name>{request.key}</Name><KeyCount>{len(keys)}</KeyCount><IsTruncated>false</IsTruncated>"
        return _document("ListBucketResult", head + entries)

    def delete(self, request: _Request) -> _Answer:
        """Take one object away."""
        self._objects.pop(request.key, None)
        return _Answer(204)

    def delete_several(self, request: _Request, body: _Body) -> _Answer:
        """Take those away that a document names."""
        root = ElementTree.fromstring(body.stored().kept or b"")
        keys = [element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == "Key"]
        for key in keys:
            self._objects.pop(f"{request.key}/{key}", None)
        return _document("DeleteResult", "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys))


class _Body:
    """What comes behind the head of a request, measured while it comes; nothing large is kept."""

    def __init__(self, connection: _Connection, headers: Mapping[str, str]) -> None:
        self._connection = connection
        self._is_chunked = "aws-chunked" in headers.get("content-encoding", "")
        self._length = int(headers.get("content-length", 0))

    def stored(self) -> _Stored:
        if self._is_chunked:
            return self._stored_of_chunks()
        kept = bytearray()
        checksum = self._take(self._length, 0, kept if self._length <= _LARGEST_KEPT else None)
        return _Stored(self._length, checksum, bytes(kept) if self._length <= _LARGEST_KEPT else None)

    def _stored_of_chunks(self) -> _Stored:
        """Of the framing that the SDKs of AWS use: a size in hex before each piece, and trailers behind the last."""
        size, checksum = 0, 0
        while length := int(self._connection.line().partition(b";")[0], 16):
            checksum = self._take(length, checksum, None)
            size += length
            self._connection.line()
        while self._connection.line():
            pass
        return _Stored(size, checksum, None)

    def _take(self, length: int, checksum: int, kept: bytearray | None) -> int:
        for piece in self._connection.pieces(length):
            checksum = crc32c.crc32c(piece, checksum)
            if kept is not None:
                kept += piece
        return checksum


class _Connection:
    """One client, served until it closes."""

    def __init__(self, store: StubStore, connection: socket.socket) -> None:
        self._store = store
        self._socket = connection
        self._buffer = bytearray()
        self._piece = bytearray(_PIECE)

    def serve(self) -> None:
        with self._socket:
            try:
                while (request := self._request()) is not None:
                    self._send(request, self._answer(request))
            except OSError:
                # A client that is ended by force is not the store's trouble.
                return

    def line(self) -> bytes:
        return self._until(b"\r\n")

    def pieces(self, length: int) -> Iterator[memoryview]:
        beginning = bytes(self._buffer[:length])
        del self._buffer[: len(beginning)]
        if beginning:
            yield memoryview(beginning)
        left, view = length - len(beginning), memoryview(self._piece)
        while left:
            count = self._socket.recv_into(view[: min(left, _PIECE)])
            if not count:
                raise ConnectionResetError
            left -= count
            yield view[:count]

    def _until(self, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            received = self._socket.recv(_LONGEST_HEAD)
            if not received or len(self._buffer) > _LONGEST_HEAD:
                raise ConnectionResetError
            self._buffer += received
        found = bytes(self._buffer[:at])
        del self._buffer[: at + len(end)]
        return found

    def _request(self) -> _Request | None:
        first, *lines = self._until(b"\r\n\r\n").decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ", 2)
        path, _, query = target.partition("?")
        fields = (line.partition(":") for line in lines)
        headers = {name.strip().lower(): value.strip() for name, _, value in fields}
        if headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        names = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        return _Request(method, urllib.parse.unquote(path).strip("/"), names, headers)

    def _answer(self, request: _Request) -> _Answer:
        body = _Body(self, request.headers)
        match request.method:
            case "PUT" if "/" in request.key:
                return self._store.put(request, body)
            case "PUT":
                body.stored()
                return _Answer(200)
            case "POST":
                return self._store.delete_several(request, body)
            case "DELETE":
                return self._store.delete(request)
            case _:
                return self._store.look(request)

    def _send(self, request: _Request, answer: _Answer) -> None:
        headers = {"Date": formatdate(usegmt=True), "Content-Length": str(len(answer.body)), **answer.headers}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        body = b"" if request.method == "HEAD" else answer.body
        self._socket.sendall(f"HTTP/1.1 {answer.status} Answered\r\n{head}\r\n".encode("latin-1") + body)


def _document(root: str, content: str) -> _Answer:
    return _Answer(200, {"Content-Type": "application/xml"}, f"<{root}>{content}</{root}>".encode())


def _error(status: int, code: str) -> _Answer:
    document = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>"
    return _Answer(status, {"Content-Type": "application/xml"}, document.encode())


class RunningStub:
    """A stub store in a process of its own; use it through `running_stub_store`. It takes every key and signature."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self.access = StoreAccess(f"http://127.0.0.1:{port}", secrets.token_hex(10), secrets.token_hex(20))
        self._process = process

    @property
    def endpoint_url(self) -> str:
        """The URL to give as --endpoint-url."""
        return self.access.endpoint_url

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def environment(self) -> dict[str, str]:
        """See `StoreAccess.environment`."""
        return self.access.environment()


@contextmanager
def running_stub_store() -> Iterator[RunningStub]:
    """A stub store, ended afterwards."""
    with subprocess.Popen(
        [sys.executable, "-m", "tests.bench.stub_store"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield RunningStub(process, int(process.stdout.readline()))
        finally:
            process.stdin.close()


def main() -> None:
    """Serve until standard input is closed."""
    store = StubStore()
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        sys.stdout.write(f"{listener.getsockname()[1]}\n")
        sys.stdout.flush()

        def accept() -> None:
            while True:
                connection, _ = listener.accept()
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                threading.Thread(target=_Connection(store, connection).serve, daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        sys.stdin.buffer.read()


if __name__ == "__main__":
    main()
