"""A store that costs next to nothing: it honours CRC32C, and forgets what large objects hold.

What is measured against it is the sender alone. Several processes take connections from one socket, so that one Python
does not limit who sends small objects; what they have to know of each other's objects stands in an LMDB in memory.
`python -m tests.bench.stub_store DIRECTORY PROCESSES POLICY` prints its port and the ids of its processes, and serves
until standard input is closed, under that scheduling policy.
"""

from __future__ import annotations

import base64
import os
import secrets
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from xml.sax.saxutils import escape

import crc32c
import lmdb

from tests.stores.server import StoreAccess

_LONGEST_HEAD = 64 * 1024
# What is read again: claims, manifests, what a probe puts.
_LARGEST_KEPT = 16 * 1024
_PIECE = 1024 * 1024
_PROCESSES = 2
# Never all used: the file has holes.
_LARGEST_RECORDS = 16 * 1024**3
_MOST_READERS = 1024
_LAYOUT = struct.Struct("<QIQ?")


@dataclass(frozen=True, slots=True)
class _Stored:
    size: int
    crc32c: int
    kept: bytes | None
    stored: int = field(default_factory=lambda: int(time.time()))

    @classmethod
    def of_record(cls, record: bytes) -> _Stored:
        size, checksum, stored, is_kept = _LAYOUT.unpack_from(record)
        return cls(size, checksum, record[_LAYOUT.size :] if is_kept else None, stored)

    @property
    def record(self) -> bytes:
        return _LAYOUT.pack(self.size, self.crc32c, self.stored, self.kept is not None) + (self.kept or b"")

    @property
    def modified(self) -> str:
        return formatdate(self.stored, usegmt=True)

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
    """The objects of any bucket, and what is answered about them. For several threads and processes at once."""

    def __init__(self, directory: str) -> None:
        """`directory` is in memory, and the same for all processes."""
        self._records = _open_records(directory)

    def put(self, request: _Request, body: _Body) -> _Answer:
        """Take an object in."""
        source = request.headers.get("x-amz-copy-source")
        if source is not None:
            return self._copy(request.key, urllib.parse.unquote(source).lstrip("/"))
        stored = body.stored()
        announced = request.headers.get("x-amz-checksum-crc32c", stored.headers["x-amz-checksum-crc32c"])
        if announced != stored.headers["x-amz-checksum-crc32c"]:
            return _error(400, "BadDigest")
        with self._records.begin(write=True) as transaction:
            if not _is_as_wanted(request, _found(transaction, request.key)):
                return _error(412, "PreconditionFailed")
            transaction.put(request.key.encode(), stored.record)
        return _Answer(200, stored.headers)

    def _copy(self, key: str, source: str) -> _Answer:
        with self._records.begin(write=True) as transaction:
            stored = _found(transaction, source)
            if stored is None:
                return _error(404, "NoSuchKey")
            transaction.put(key.encode(), stored.record)
        etag = escape(stored.headers["ETag"])
        return _document("CopyObjectResult", f"<ETag>{etag}</ETag><LastModified>{stored.modified}</LastModified>")

    def look(self, request: _Request) -> _Answer:
        """Answer a HEAD or GET."""
        if "/" not in request.key:
            return self._look_at_bucket(request)
        with self._records.begin() as transaction:
            stored = _found(transaction, request.key)
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
        entries = [
            f"<Contents><Key>{escape(key.partition('/')[2])}</Key><Size>{stored.size}</Size></Contents>"
            for key, stored in self._all_below(beginning)
        ]
        head = f"<Name>{request.key}</Name><KeyCount>{len(entries)}</KeyCount><IsTruncated>false</IsTruncated>"
        return _document("ListBucketResult", head + "".join(entries))

    def _all_below(self, beginning: str) -> Iterator[tuple[str, _Stored]]:
        with self._records.begin() as transaction, transaction.cursor() as cursor:
            if cursor.set_range(beginning.encode()):
                for key, record in cursor:
                    if not key.startswith(beginning.encode()):
                        return
                    yield key.decode(), _Stored.of_record(bytes(record))

    def delete(self, request: _Request) -> _Answer:
        """Take one object away."""
        self._delete_all([request.key])
        return _Answer(204)

    def delete_several(self, request: _Request, body: _Body) -> _Answer:
        """Take those away that a document names."""
        root = ElementTree.fromstring(body.stored().kept or b"")
        keys = [element.text or "" for element in root.iter() if element.tag.rpartition("}")[2] == "Key"]
        self._delete_all([f"{request.key}/{key}" for key in keys])
        return _document("DeleteResult", "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys))

    def _delete_all(self, keys: Sequence[str]) -> None:
        with self._records.begin(write=True) as transaction:
            for key in keys:
                transaction.delete(key.encode())


def _open_records(directory: str) -> lmdb.Environment:
    # Whoever restarts the machine has no store any more: nothing of it has to reach a disk.
    return lmdb.open(directory, map_size=_LARGEST_RECORDS, sync=False, writemap=True, max_readers=_MOST_READERS)


def _found(transaction: lmdb.Transaction, key: str) -> _Stored | None:
    record = transaction.get(key.encode())
    return None if record is None else _Stored.of_record(bytes(record))


def _is_as_wanted(request: _Request, there: _Stored | None) -> bool:
    wanted = request.headers.get("if-match")
    if wanted is not None:
        return there is not None and there.headers["ETag"].strip('"') == wanted.strip('"')
    return request.headers.get("if-none-match") != "*" or there is None


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
    """A stub store in processes of its own; use it through `running_stub_store`. It takes every key and signature."""

    def __init__(self, port: int, pids: tuple[int, ...], directory: str) -> None:
        self.access = StoreAccess(f"http://127.0.0.1:{port}", secrets.token_hex(10), secrets.token_hex(20))
        self.pids = pids
        self._directory = directory

    @property
    def endpoint_url(self) -> str:
        """The URL to give as --endpoint-url."""
        return self.access.endpoint_url

    def environment(self) -> dict[str, str]:
        """See `StoreAccess.environment`."""
        return self.access.environment()

    def create_bucket(self, name: str | None = None) -> str:
        """See `StoreAccess.create_bucket`."""
        return self.access.create_bucket(name)

    def take_in(self, objects: Iterable[tuple[str, bytes]]) -> None:
        """Have these objects, by bucket and key: many at a time, without a request for each."""
        with _open_records(self._directory) as records, records.begin(write=True) as transaction:
            for key, content in objects:
                stored = _Stored(len(content), crc32c.crc32c(content), content)
                transaction.put(key.encode(), stored.record)


@contextmanager
def running_stub_store(processes: int = _PROCESSES, *, is_elsewhere: bool = False) -> Iterator[RunningStub]:
    """A stub store, ended afterwards.

    `is_elsewhere` has it take no processor time that anybody else wants: as a store on another machine.
    """
    with tempfile.TemporaryDirectory(prefix="mirrorfs-stub-", dir="/dev/shm") as directory:
        policy = os.SCHED_IDLE if is_elsewhere else os.SCHED_OTHER
        command = [sys.executable, "-m", "tests.bench.stub_store", directory, str(processes), str(policy)]
        pipe = subprocess.PIPE
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                port, *pids = map(int, process.stdout.readline().split())
                yield RunningStub(port, tuple(pids), directory)
            finally:
                process.stdin.close()


def main(directory: str, processes: int, policy: int) -> None:
    """Serve until standard input is closed."""
    # All processes and threads that come from here on have it too.
    os.sched_setscheduler(0, policy, os.sched_param(0))
    children: list[int] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        is_first = _fork(processes - 1, children)
        if is_first:
            pids = " ".join(map(str, (os.getpid(), *children)))
            sys.stdout.write(f"{listener.getsockname()[1]} {pids}\n")
            sys.stdout.flush()
        _serve(listener, directory)
    for child in children if is_first else ():
        os.waitpid(child, 0)


def _fork(count: int, children: list[int]) -> bool:
    """Add the ids of so many children; tells whether this still is the parent."""
    for _ in range(count):
        child = os.fork()
        if not child:
            return False
        children.append(child)
    return True


def _serve(listener: socket.socket, directory: str) -> None:
    store = StubStore(directory)

    def accept() -> None:
        while True:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=_Connection(store, connection).serve, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    sys.stdin.buffer.read()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
