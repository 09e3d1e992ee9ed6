"""A store that refuses to delete single objects: it answers AccessDenied for some keys of a DeleteObjects, and deletes
the others, as one does where a policy or a lock protects some."""

from __future__ import annotations

import fnmatch
import http.client
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.stores.server import StoreAccess

_TIMEOUT = 60.0
_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_HOP_HEADERS = frozenset({"connection", "keep-alive", "expect", "transfer-encoding", "content-length"})


class RefusingStore:
    """Listens on a port of its own and forwards everything to a store (http only); a context manager.

    Only deletions that refused keys are part of are taken apart: the others of them are deleted by a client of its own,
    since what has another body needs another signature. Any thread.
    """

    def __init__(self, access: StoreAccess) -> None:
        self._access = access
        self._patterns: list[str] = []
        self.refused = 0
        self._mutex = threading.Lock()
        self._server = _Server(self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="refusing-store", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def endpoint_url(self) -> str:
        """The URL to give to clients in the store's place."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def refusing(self, pattern: str) -> Iterator[None]:
        """While this lasts, keys of a pattern (fnmatch) are not deleted, if a request deletes several."""
        with self._mutex:
            self._patterns.append(pattern)
        try:
            yield
        finally:
            with self._mutex:
                self._patterns.remove(pattern)

    def connect(self) -> http.client.HTTPConnection:
        """A new connection to the store; for the handler."""
        parts = urlsplit(self._access.endpoint_url)
        return http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_TIMEOUT)

    def delete(self, bucket: str, body: bytes) -> bytes | None:
        """The answer to a DeleteObjects of which some keys are refused; None when it does not concern us."""
        keys = [found.findtext("{*}Key", "") for found in ElementTree.fromstring(body).iterfind("{*}Object")]
        with self._mutex:
            patterns = list(self._patterns)
        refused = {key for key in keys if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)}
        if not refused:
            return None
        others = [key for key in keys if key not in refused]
        if others:
            client = self._access.client()
            client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in others], "Quiet": True})
        with self._mutex:
            self.refused += len(refused)
        errors = "".join(
            f"<Error><Key>{escape(key)}</Key><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            for key in sorted(refused)
        )
        return f'<DeleteResult xmlns="{_NAMESPACE}">{errors}</DeleteResult>'.encode()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, store: RefusingStore) -> None:
        self.store = store
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """The store may be killed in the middle: its client sees the connection break, as it would without us."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT
    disable_nagle_algorithm = True
    server: _Server

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing goes to stderr."""

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        is_deletion = self.command == "POST" and not key and "delete" in parse_qs(parts.query, keep_blank_values=True)
        answer = self.server.store.delete(bucket, body) if is_deletion else None
        if answer is None:
            self._forward(body)
        else:
            self._send(200, [("Content-Type", "application/xml"), ("Content-Length", str(len(answer)))], answer)

    def _forward(self, body: bytes) -> None:
        upstream = self.server.store.connect()
        try:
            upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_HEADERS:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            response = upstream.getresponse()
            content = response.read()
        finally:
            upstream.close()
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_HEADERS]
        length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(content))
        if length is not None and response.status not in (204, 304):
            headers.append(("Content-Length", length))
        self._send(response.status, headers, content)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
