"""A store whose objects may be of any size: it makes their bodies up while it sends them, and believes everything.

Just enough of S3 for mirrorfs: the store itself is honest, what stands in it is not.
"""

from __future__ import annotations

import hashlib
import socket
import threading
import urllib.parse
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from xml.sax.saxutils import escape

BUCKET = "hostile"
_PAGE = 1000
_PIECE_SIZE = 64 * 1024
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"


@dataclass(frozen=True, slots=True)
class Zeros:
    """The body of an object: `beginning`, then zeros, or `unit` again and again; `size` bytes in all.

    `is_announced`: whether its length is said beforehand.
    """

    size: int
    beginning: bytes = b""
    is_announced: bool = True
    unit: bytes = b"\0"

    def pieces(self) -> Iterator[bytes]:
        """The body, piece by piece."""
        yield self.beginning
        left = self.size - len(self.beginning)
        piece = self.unit * (_PIECE_SIZE // len(self.unit))
        while left > 0:
            yield piece[:left]
            left -= len(piece)


Body = bytes | Zeros


class HostileStore:
    """`objects` are the objects of its bucket by key; `sent` counts the bytes of bodies that were taken from it."""

    def __init__(self) -> None:
        self.objects: dict[str, Body] = {}
        self.sent = 0
        self._lock = threading.Lock()
        store = self

        class Handler(_Handler):
            """Serves this store."""

            hostile_store = store

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True

    @property
    def endpoint_url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @staticmethod
    def environment() -> dict[str, str]:
        """Credentials: it takes any."""
        return {
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    @contextmanager
    def running(self) -> Iterator[HostileStore]:
        """Serve as long as this lasts."""
        thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            self._server.server_close()
            thread.join()

    def count(self, size: int) -> None:
        """Bytes of a body have gone out."""
        with self._lock:
            self.sent += size


class _Handler(BaseHTTPRequestHandler):
    hostile_store: HostileStore
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def do_GET(self) -> None:
        if self._key:
            self._answer_object(with_body=True)
        elif "list-type" in self._query:
            self._answer_listing()
        else:
            # Neither versions nor locks.
            self._answer(501, _error("NotImplemented"))

    def do_HEAD(self) -> None:
        self._answer_object(with_body=False)

    def do_PUT(self) -> None:
        body = self._read()
        if "x-amz-copy-source" in self.headers or self._query:
            self._answer(501, _error("NotImplemented"))
            return
        self.hostile_store.objects[self._key] = body
        self._answer(200, b"", {"ETag": f'"{_etag(body)}"'})

    def do_POST(self) -> None:
        keys = [found.text or "" for found in ElementTree.fromstring(self._read()).iter() if found.tag.endswith("Key")]
        for key in keys:
            self.hostile_store.objects.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        self._answer(200, f'<DeleteResult xmlns="{_NAMESPACE}">{deleted}</DeleteResult>'.encode())

    @property
    def _key(self) -> str:
        path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
        return path.removeprefix(f"/{BUCKET}").removeprefix("/")

    @property
    def _query(self) -> dict[str, str]:
        return dict(urllib.parse.parse_qsl(urllib.parse.urlsplit(self.path).query, keep_blank_values=True))

    def _read(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer_object(self, *, with_body: bool) -> None:
        body = self.hostile_store.objects.get(self._key)
        if body is None:
            self._answer(404, _error("NoSuchKey"))
            return
        whole = Zeros(len(body), body) if isinstance(body, bytes) else body
        is_chunked = with_body and not whole.is_announced
        self.send_response(200)
        self.send_header("ETag", f'"{_etag(body)}"')
        self.send_header("Last-Modified", formatdate(usegmt=True))
        self.send_header(*(("Transfer-Encoding", "chunked") if is_chunked else ("Content-Length", str(whole.size))))
        self.end_headers()
        if with_body:
            # Whoever has read enough closes the connection.
            with suppress(ConnectionError, socket.timeout):
                self._send(whole, is_chunked)

    def _send(self, body: Zeros, is_chunked: bool) -> None:
        for piece in body.pieces():
            if piece:
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece) if is_chunked else piece)
                self.hostile_store.count(len(piece))
        if is_chunked:
            self.wfile.write(b"0\r\n\r\n")

    def _answer_listing(self) -> None:
        prefix, after = self._query.get("prefix", ""), self._query.get("continuation-token", "")
        keys = sorted(key for key in list(self.hostile_store.objects) if key.startswith(prefix) and key > after)
        page = keys[: min(_PAGE, int(self._query.get("max-keys", _PAGE)))]
        parts = [
            f'<ListBucketResult xmlns="{_NAMESPACE}"><IsTruncated>{str(len(keys) > len(page)).lower()}</IsTruncated>'
        ]
        if len(keys) > len(page):
            parts.append(f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>")
        for key in page:
            body = self.hostile_store.objects[key]
            size = len(body) if isinstance(body, bytes) else body.size
            parts.append(
                f"<Contents><Key>{escape(key)}</Key><Size>{size}</Size><ETag>{_etag(body)}</ETag>"
                "<LastModified>2026-01-01T00:00:00Z</LastModified></Contents>"
            )
        parts.append("</ListBucketResult>")
        self._answer(200, "".join(parts).encode())


def _etag(body: Body) -> str:
    if isinstance(body, bytes):
        return hashlib.md5(body, usedforsecurity=False).hexdigest()
    # As of an object that was put in parts: it says nothing of the content.
    return f"{hashlib.md5(repr(body).encode(), usedforsecurity=False).hexdigest()}-7"


def _error(code: str) -> bytes:
    return f"<Error><Code>{code}</Code><Message>it is not here</Message></Error>".encode()
