"""A forward proxy as companies have them: CONNECT for https, whole URLs for http, with or without a password."""

from __future__ import annotations

import base64
import http.client
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_TIMEOUT = 30.0
_HOP_HEADERS = frozenset({"connection", "keep-alive", "proxy-authorization", "proxy-connection", "transfer-encoding"})


class ForwardProxy(ThreadingHTTPServer):
    """Listens on a free port of 127.0.0.1; `passed` has what went through it: a method and its target."""

    daemon_threads = True

    def __init__(self, user: str | None = None, password: str | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.passed: list[tuple[str, str]] = []
        self.wanted = None if user is None else "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    @property
    def url(self) -> str:
        """The URL to give to clients, without name and password."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def url_with(self, user: str, password: str) -> str:
        """The same with them, as it stands in the environment."""
        return self.url.replace("://", f"://{user}:{password}@")

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT
    disable_nagle_algorithm = True
    server: ForwardProxy

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._forward
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing goes to stderr."""

    def do_CONNECT(self) -> None:
        if not self._may_pass():
            return
        host, _, port = self.path.rpartition(":")
        with socket.create_connection((host, int(port)), _TIMEOUT) as upstream:
            self.send_response_only(200)
            self.end_headers()
            _tunnel(self.connection, upstream)
        self.close_connection = True

    def _may_pass(self) -> bool:
        if self.server.wanted is not None and self.headers.get("Proxy-Authorization") != self.server.wanted:
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            body = b"<html><body>Who are you?</body></html>"
            self._send(407, [("Proxy-Authenticate", 'Basic realm="x"'), ("Content-Type", "text/html")], body)
            return False
        self.server.passed.append((self.command, self.path))
        return True

    def _forward(self) -> None:
        if not self._may_pass():
            return
        parts = urlsplit(self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        upstream = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=_TIMEOUT)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        upstream.putrequest(self.command, target, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in _HOP_HEADERS:
                upstream.putheader(name, value)
        upstream.endheaders(body)
        response = upstream.getresponse()
        content = response.read()
        upstream.close()
        headers = [(name, value) for name, value in response.getheaders() if name.lower() not in _HOP_HEADERS]
        self._send(response.status, [one for one in headers if one[0].lower() != "content-length"], content)

    def _send(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _tunnel(one: socket.socket, other: socket.socket) -> None:
    ends = {one: other, other: one}
    while True:
        readable, _, _ = select.select(list(ends), [], [], _TIMEOUT)
        if not readable:
            return
        for end in readable:
            data = end.recv(65536)
            if not data:
                return
            ends[end].sendall(data)


@contextmanager
def running_forward_proxy(user: str | None = None, password: str | None = None) -> Iterator[ForwardProxy]:
    """One that runs for the time of the with statement."""
    proxy = ForwardProxy(user, password)
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), name="forward-proxy", daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
