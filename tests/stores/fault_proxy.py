"""A proxy between an S3 client and a store that fails on command, and remembers what passed through it."""

from __future__ import annotations

import fnmatch
import http.client
import select
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

_TIMEOUT = 60.0
_HOP_HEADERS = frozenset({"connection", "keep-alive", "expect", "transfer-encoding", "content-length"})


class Fault(Enum):
    """What happens to a request that a rule is for."""

    DROP_BEFORE = "the connection breaks before the store has seen the request"
    DROP_AFTER = "the store has done it, but the connection breaks before the answer"
    ANSWER = "the proxy answers in the store's place, with `Rule.status`"
    CORRUPT = "the store gets the request with one byte of its body changed"
    TRUNCATE = "the connection breaks in the middle of the answer's body"
    DELAY = "the request is forwarded after `Rule.seconds`"
    HOLD = "the request is forwarded when the rule is released, unless its sender is gone by then"
    HOLD_AFTER = "the store has done it; the answer is forwarded when the rule is released"


_FAULTS_AFTER = frozenset({Fault.DROP_AFTER, Fault.HOLD_AFTER, Fault.TRUNCATE})


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request that arrived, with the status that the client was answered (None when it got no answer)."""

    method: str
    bucket: str
    key: str
    query: str
    status: int | None


@dataclass(slots=True)
class Rule:
    """A fault for requests of a method ("*" for any) on keys of a pattern (fnmatch; "" is a request on the bucket).

    `remaining` counts down how often it still applies; None is for ever. `reached` is set with each request it has
    been applied to.
    """

    fault: Fault
    method: str
    key_pattern: str
    remaining: int | None = None
    status: int = 500
    code: str = "InternalError"
    seconds: float = 0.0
    reached: threading.Event = field(default_factory=threading.Event)
    _released: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        """Lets the held requests go on, and all later ones pass."""
        self.remaining = 0
        self._released.set()

    def wait_for_release(self) -> None:
        """Blocks until `release`."""
        self._released.wait(_TIMEOUT)

    def fits(self, method: str, key: str) -> bool:
        """Whether the rule is for such a request."""
        return self.method in ("*", method) and fnmatch.fnmatchcase(key, self.key_pattern)


class FaultProxy:
    """Listens on a free port of 127.0.0.1 and forwards to `upstream` (http only); a context manager.

    All methods may be called at any time from any thread. Signatures stay valid, since the Host header is forwarded as
    it came; so the store must not look at it in any other way.
    """

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        assert parts.scheme == "http"
        assert parts.hostname is not None
        assert parts.port is not None
        self._upstream = (parts.hostname, parts.port)
        self._lock = threading.Condition()
        self._rules: list[Rule] = []
        self._seen: list[SeenRequest] = []
        self._under_way: list[tuple[str, str]] = []
        self._refusing = False
        self._server = _Server(("127.0.0.1", 0), self)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="fault-proxy", daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()
        self._server.shutdown()
        self._server.server_close()
        self._server.break_connections()
        self._thread.join()

    @property
    def endpoint_url(self) -> str:
        """The URL to give to the client in the store's place."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def drop_before(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.DROP_BEFORE."""
        return self._add(Rule(Fault.DROP_BEFORE, method, key_pattern, times))

    def drop_after(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.DROP_AFTER."""
        return self._add(Rule(Fault.DROP_AFTER, method, key_pattern, times))

    def corrupt(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.CORRUPT."""
        return self._add(Rule(Fault.CORRUPT, method, key_pattern, times))

    def truncate(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.TRUNCATE."""
        return self._add(Rule(Fault.TRUNCATE, method, key_pattern, times))

    def answer(
        self,
        status: int,
        code: str,
        method: str = "*",
        key_pattern: str = "*",
        *,
        times: int | None = None,
    ) -> Rule:
        """An S3 error in the store's place, such as 503 SlowDown."""
        return self._add(Rule(Fault.ANSWER, method, key_pattern, times, status=status, code=code))

    def delay(self, seconds: float, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.DELAY."""
        return self._add(Rule(Fault.DELAY, method, key_pattern, times, seconds=seconds))

    def hold(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.HOLD; wait for `reached` of the rule, then `release` it."""
        return self._add(Rule(Fault.HOLD, method, key_pattern, times))

    def hold_after(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.HOLD_AFTER; wait for `reached` of the rule, then `release` it."""
        return self._add(Rule(Fault.HOLD_AFTER, method, key_pattern, times))

    def refuse_connections(self) -> None:
        """Breaks all connections, and new ones at once, until `accept_connections`."""
        self._refusing = True
        self._server.break_connections()

    def accept_connections(self) -> None:
        """Ends `refuse_connections`."""
        self._refusing = False

    def clear(self) -> None:
        """Removes all rules, lets what was held go on, and accepts connections."""
        with self._lock:
            rules, self._rules = self._rules, []
        for rule in rules:
            rule.release()
        self.accept_connections()

    def requests(self, method: str = "*", key_pattern: str = "*") -> list[SeenRequest]:
        """What has been dealt with so far and fits, in the order of its ending."""
        with self._lock:
            return [
                seen
                for seen in self._seen
                if method in ("*", seen.method) and fnmatch.fnmatchcase(seen.key, key_pattern)
            ]

    def count(self, method: str = "*", key_pattern: str = "*") -> int:
        """The number of `requests`."""
        return len(self.requests(method, key_pattern))

    def waiting(self, method: str = "*", key_pattern: str = "*") -> int:
        """How many requests that fit have arrived and are not answered yet."""
        with self._lock:
            return sum(method in ("*", at[0]) and fnmatch.fnmatchcase(at[1], key_pattern) for at in self._under_way)

    def wait_until_waiting(self, count: int, method: str = "*", key_pattern: str = "*", timeout: float = 30.0) -> bool:
        """Blocks until so many requests are `waiting`; whether that was so before the time-out, in seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: self.waiting(method, key_pattern) >= count, timeout)

    def is_refusing(self) -> bool:
        """Whether `refuse_connections` is in force."""
        return self._refusing

    def take_rule(self, method: str, key: str) -> Rule | None:
        """The first rule for this request, counted down; for the handler."""
        with self._lock:
            for rule in self._rules:
                if rule.remaining != 0 and rule.fits(method, key):
                    if rule.remaining is not None:
                        rule.remaining -= 1
                    return rule
        return None

    def begin(self, method: str, key: str) -> None:
        """Remembers a request that has arrived; for the handler."""
        with self._lock:
            self._under_way.append((method, key))
            self._lock.notify_all()

    def end(self, seen: SeenRequest) -> None:
        """Remembers a request that has been dealt with; for the handler."""
        with self._lock:
            self._under_way.remove((seen.method, seen.key))
            self._seen.append(seen)

    def connect_upstream(self) -> http.client.HTTPConnection:
        """A new connection to the store; for the handler."""
        return http.client.HTTPConnection(*self._upstream, timeout=_TIMEOUT)

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], proxy: FaultProxy) -> None:
        self.proxy = proxy
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        super().__init__(address, _Handler)

    def verify_request(self, request: object, client_address: object) -> bool:
        return not self.proxy.is_refusing()

    @contextmanager
    def keeping(self, connection: socket.socket) -> Iterator[None]:
        with self._connections_lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self._connections_lock:
                self._connections.discard(connection)

    def break_connections(self) -> None:
        with self._connections_lock:
            for connection in self._connections:
                _break(connection)

    def handle_error(self, request: object, client_address: object) -> None:
        """A client or store that was killed in the middle is what this proxy is for: no traceback."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the client is to be answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_cut: bool = False


class _Dropped(Exception):
    """The connection to the client was broken on purpose."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = _TIMEOUT
    # An answer is written in two pieces; without this, each would wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        with self.server.keeping(self.connection):
            super().handle()

    def __getattr__(self, name: str) -> Callable[[], None]:
        if name.startswith("do_"):
            return self._serve
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing goes to stderr; see FaultProxy.requests."""

    def _serve(self) -> None:
        proxy = self.server.proxy
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        proxy.begin(self.command, key)
        answer: _Answer | None = None
        try:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            answer = self._answer(proxy.take_rule(self.command, key), body)
        except (_Dropped, OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            # Before the client can go on, so that a test which looks after its request finds it.
            status = None if answer is None else answer.status
            proxy.end(SeenRequest(self.command, bucket, key, parts.query, status))
        if answer is not None:
            self._send(answer)
        if answer is None or answer.is_cut:
            self.close_connection = True
            _break(self.connection)

    def _answer(self, rule: Rule | None, body: bytes) -> _Answer:
        if rule is None:
            return self._forward(body)
        if rule.fault in _FAULTS_AFTER:
            answer = self._forward(body)
            rule.reached.set()
            return self._spoil(rule, answer)
        rule.reached.set()
        if rule.fault is Fault.DROP_BEFORE:
            raise _Dropped
        if rule.fault is Fault.ANSWER:
            return self._error(rule)
        if rule.fault is Fault.DELAY:
            threading.Event().wait(rule.seconds)
        if rule.fault is Fault.HOLD:
            rule.wait_for_release()
            if _is_gone(self.connection):
                raise _Dropped
        if rule.fault is Fault.CORRUPT and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return self._forward(body)

    def _spoil(self, rule: Rule, answer: _Answer) -> _Answer:
        if rule.fault is Fault.DROP_AFTER:
            raise _Dropped
        if rule.fault is Fault.HOLD_AFTER:
            rule.wait_for_release()
            return answer
        return replace(answer, body=answer.body[: len(answer.body) // 2], is_cut=True)

    def _forward(self, body: bytes) -> _Answer:
        upstream = self.server.proxy.connect_upstream()
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
        return _Answer(response.status, headers, content)

    def _error(self, rule: Rule) -> _Answer:
        body = b""
        if self.command != "HEAD":
            body = f"<Error><Code>{rule.code}</Code><Message>said the fault proxy</Message></Error>".encode()
        headers = [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))]
        return _Answer(rule.status, headers, body)

    def _send(self, answer: _Answer) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(answer.body)


def _is_gone(connection: socket.socket) -> bool:
    """Whether the other side has closed the connection, or was killed."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True


def _break(connection: socket.socket) -> None:
    """Ends a connection with a reset, as a crash would."""
    try:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        # It is gone already, which is all that was wanted.
        return
