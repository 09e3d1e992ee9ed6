"""A proxy between an S3 client and a store that fails on command, and remembers what passed through it."""

from __future__ import annotations

import abc
import email.utils
import fnmatch
import hashlib
import http.client
import random
import select
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.stores.fault_memory import HORIZON, NAMESPACE, ChangeMemory, Version, deleted_keys
from tests.stores.fault_rules import WEATHER, Fault, Rule, Shape, Storm
from tests.stores.odd_answers import ODD_ANSWERS

__all__ = ["WEATHER", "Fault", "FaultProxy", "Rule", "SeenRequest"]

_TIMEOUT = 60.0
_PIECES = 10
_REQUESTS_REMEMBERED = 100_000
_TOO_LARGE = b"<html><head><title>413 Request Entity Too Large</title></head><body>nginx</body></html>"
_HOP_HEADERS = frozenset({"connection", "keep-alive", "expect", "transfer-encoding", "content-length"})


_FAULTS_AFTER = frozenset(
    {
        Fault.DROP_AFTER,
        Fault.HOLD_AFTER,
        Fault.TRUNCATE,
        Fault.SHORTEN,
        Fault.CORRUPT_ANSWER,
        Fault.STALE_HEAD,
        Fault.SKEW,
        Fault.TRICKLE,
    }
)
_ANSWERS = frozenset({Fault.ANSWER, Fault.SERVER_ERROR, Fault.SLOW_DOWN, Fault.DENY})


@dataclass(frozen=True, slots=True)
class SeenRequest:
    """A request that arrived, with the status that the client was answered (None when it got no answer)."""

    method: str
    bucket: str
    key: str
    query: str
    status: int | None


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
        self.memory = ChangeMemory()
        self._lock = threading.Condition()
        self._rules: list[Rule] = []
        self._storm: Storm | None = None
        self._injected: Counter[tuple[Fault, str]] = Counter()
        self._seen: deque[SeenRequest] = deque(maxlen=_REQUESTS_REMEMBERED)
        self._under_way: list[tuple[str, str]] = []
        self._refusing = False
        self.largest_body: int | None = None
        """In bytes; what is larger is answered as nginx does beyond client_max_body_size."""
        self._server = _Server(self)
        self._lagging: list[_Server] = []

    def __enter__(self) -> Self:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.clear()
        for server in (self._server, *self._lagging):
            server.stop()

    @property
    def endpoint_url(self) -> str:
        """The URL to give to the client in the store's place."""
        return self._server.endpoint_url

    def lagging_endpoint(self, seconds: float, seed: int = 0) -> str:
        """The URL of another listener that only reads, and whose listings are up to `seconds` behind its objects.

        Each ListObjectsV2 shows one instant between now and then, picked by the seed, on all its pages: what was put
        through this proxy later is missing, and what was deleted through it later still stands there. GET and HEAD
        are current; no rule, no storm and no `refuse_connections` concerns this listener, which is closed with the
        proxy.
        """
        assert seconds < HORIZON / 2
        server = _Server(self, lag=_Lag(seconds, seed))
        self._lagging.append(server)
        server.start()
        return server.endpoint_url

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
        body: bytes | None = None,
    ) -> Rule:
        """An S3 error in the store's place, such as 503 SlowDown; or any `body` instead of the error's."""
        return self._add(Rule(Fault.ANSWER, method, key_pattern, times, status=status, code=code, body=body))

    def delay(self, seconds: float, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.DELAY; ends early when the rule is released."""
        return self._add(Rule(Fault.DELAY, method, key_pattern, times, seconds=seconds))

    def drop_during(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.DROP_DURING; without a body it is Fault.DROP_BEFORE."""
        return self._add(Rule(Fault.DROP_DURING, method, key_pattern, times))

    def server_error(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.SERVER_ERROR."""
        return self._add(Rule(Fault.SERVER_ERROR, method, key_pattern, times))

    def slow_down(
        self, retry_after: str = "1", method: str = "*", key_pattern: str = "*", *, times: int | None = None
    ) -> Rule:
        """See Fault.SLOW_DOWN; `retry_after` is the header's value: seconds, or an HTTP date."""
        rule = Rule(Fault.SLOW_DOWN, method, key_pattern, times, 503, "SlowDown", retry_after=retry_after)
        return self._add(rule)

    def deny(self, seconds: float | None = None) -> Rule:
        """403 AccessDenied on everything, for so many seconds or until the rule is released."""
        ends_at = None if seconds is None else time.monotonic() + seconds
        return self._add(Rule(Fault.DENY, "*", "*", None, 403, "AccessDenied", ends_at=ends_at))

    def odd(self, name: str, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.ODD; `name` is one of ODD_ANSWERS."""
        assert name in ODD_ANSWERS
        return self._add(Rule(Fault.ODD, method, key_pattern, times, odd=name))

    def corrupt_answer(self, key_pattern: str = "?*", *, times: int | None = None) -> Rule:
        """See Fault.CORRUPT_ANSWER; for a GET."""
        return self._add(Rule(Fault.CORRUPT_ANSWER, "GET", key_pattern, times))

    def shorten(self, key_pattern: str = "?*", *, times: int | None = None) -> Rule:
        """See Fault.SHORTEN; for a GET."""
        return self._add(Rule(Fault.SHORTEN, "GET", key_pattern, times))

    def lose(self, key_pattern: str = "?*", *, times: int | None = None) -> Rule:
        """See Fault.LOSE; for a PUT."""
        return self._add(Rule(Fault.LOSE, "PUT", key_pattern, times))

    def stale_head(self, seconds: float, key_pattern: str = "?*", *, times: int | None = None) -> Rule:
        """See Fault.STALE_HEAD; `times` also counts those of objects that have not changed in this time."""
        assert seconds < HORIZON
        return self._add(Rule(Fault.STALE_HEAD, "HEAD", key_pattern, times, seconds=seconds))

    def stale_list(self, seconds: float, *, times: int | None = None) -> Rule:
        """See Fault.STALE_LIST; `times` also counts those below whose prefix nothing has changed in this time."""
        assert seconds < HORIZON / 2
        return self._add(Rule(Fault.STALE_LIST, "GET", "", times, seconds=seconds))

    def skew(self, seconds: float, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.SKEW; in the future when positive."""
        return self._add(Rule(Fault.SKEW, method, key_pattern, times, seconds=seconds))

    def trickle(self, seconds: float, key_pattern: str = "?*", *, times: int | None = None) -> Rule:
        """See Fault.TRICKLE; for a GET."""
        return self._add(Rule(Fault.TRICKLE, "GET", key_pattern, times, seconds=seconds))

    def storm(
        self,
        seed: int,
        kinds: Collection[Fault] | None = None,
        probability: float = 0.2,
        longest_delay: float = 2.0,
    ) -> None:
        """From now on until `clear`, each request meets with this probability a fault of a kind picked by chance.

        Rules go before. None is all of WEATHER. `longest_delay`, in seconds, is that of Fault.DELAY, of what
        Retry-After says (at least 1 there), and, by a quarter, of the period of Fault.DENY. An earlier storm ends.
        """
        storm = Storm(seed, kinds, probability, longest_delay)
        with self._lock:
            earlier, self._storm = self._storm, storm
        if earlier is not None:
            earlier.end()

    @property
    def injected(self) -> dict[str, int]:
        """How often each kind, by its label, really met a request since the proxy began; never reset."""
        with self._lock:
            counts: Counter[str] = Counter()
            for (fault, _), count in self._injected.items():
                counts[fault.label] += count
        return dict(counts)

    def count_injected(self, fault: Fault, method: str = "*") -> int:
        """How often a fault really met a request of the method, such as PUTs that were stored with a lost answer."""
        with self._lock:
            return sum(count for (kind, of), count in self._injected.items() if kind is fault and method in ("*", of))

    def hold(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.HOLD; wait for `reached` of the rule, then `release` it."""
        return self._add(Rule(Fault.HOLD, method, key_pattern, times))

    def hold_after(self, method: str = "*", key_pattern: str = "*", *, times: int | None = None) -> Rule:
        """See Fault.HOLD_AFTER; wait for `reached` of the rule, then `release` it."""
        return self._add(Rule(Fault.HOLD_AFTER, method, key_pattern, times))

    def wait_until_injected(self, count: int, fault: Fault, method: str = "*", timeout: float = 30.0) -> bool:
        """Blocks until `count_injected` is that high; whether that was so before the time-out, in seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: self.count_injected(fault, method) >= count, timeout)

    def refuse_connections(self) -> None:
        """Breaks all connections, and new ones at once, until `accept_connections`."""
        self._refusing = True
        self._server.break_connections()

    def accept_connections(self) -> None:
        """Ends `refuse_connections`."""
        self._refusing = False

    def clear(self) -> None:
        """Removes all rules, ends the storm, lets what was held or delayed go on at once, and accepts connections."""
        with self._lock:
            rules, self._rules = self._rules, []
            storm, self._storm = self._storm, None
        if storm is not None:
            storm.end()
        for rule in rules:
            rule.release()
        self.accept_connections()

    def requests(self, method: str = "*", key_pattern: str = "*") -> list[SeenRequest]:
        """What has been dealt with so far and fits, in the order of its ending; of the last 100,000 requests."""
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

    def wait_until_idle(self, timeout: float = 60.0) -> bool:
        """Blocks until no request is under way; whether that was so before the time-out, in seconds."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._under_way, timeout)

    def is_refusing(self) -> bool:
        """Whether `refuse_connections` is in force."""
        return self._refusing

    def take_rule(self, shape: Shape) -> Rule | None:
        """The first rule for this request, counted down, or what it meets in the storm; for the handler."""
        with self._lock:
            self._rules = [rule for rule in self._rules if not rule.is_over]
            for rule in self._rules:
                if rule.remaining != 0 and rule.fits(shape.method, shape.key):
                    if rule.remaining is not None:
                        rule.remaining -= 1
                    return rule
            met = None if self._storm is None else self._storm.strike(shape)
            if met is not None and met.fault is Fault.DENY:
                self._rules.append(met)
        return met

    def count_fault(self, rule: Rule, method: str) -> None:
        """Counts a fault that has met a request; for the handlers."""
        with self._lock:
            self._injected[rule.fault, method] += 1
            self._lock.notify_all()
        rule.reached.set()

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
            self._lock.notify_all()

    def connect_upstream(self) -> http.client.HTTPConnection:
        """A new connection to the store; for the handler."""
        return http.client.HTTPConnection(*self._upstream, timeout=_TIMEOUT)

    def _add(self, rule: Rule) -> Rule:
        with self._lock:
            self._rules.append(rule)
        return rule


class _Lag:
    """How far behind each listing is; for any thread."""

    def __init__(self, seconds: float, seed: int) -> None:
        self._seconds = seconds
        self._randomness = random.Random(seed)
        self._lock = threading.Lock()

    def pick(self) -> float:
        with self._lock:
            return self._randomness.uniform(0.0, self._seconds)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, proxy: FaultProxy, lag: _Lag | None = None) -> None:
        self.proxy = proxy
        self.lag = lag
        self._connections: set[socket.socket] = set()
        self._connections_lock = threading.Lock()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.05,), name="fault-proxy", daemon=True)
        super().__init__(("127.0.0.1", 0), _Handler if lag is None else _LaggingHandler)

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self.break_connections()
        self._thread.join()

    def verify_request(self, request: object, client_address: object) -> bool:
        return self.lag is not None or not self.proxy.is_refusing()

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
class _Request:
    """What the client has sent; keys and bucket are decoded, the query is not."""

    method: str
    bucket: str
    key: str
    query: str
    length: int
    source_key: str | None = None

    @property
    def is_of_content(self) -> bool:
        """Not of an object's retention and the like."""
        parameters = parse_qs(self.query, keep_blank_values=True)
        return not any(name in parameters for name in ("retention", "legal-hold", "tagging", "acl"))

    @property
    def is_listing(self) -> bool:
        return self.method == "GET" and self.key == "" and parse_qs(self.query).get("list-type") == ["2"]

    @property
    def is_deletion_of_many(self) -> bool:
        return self.method == "POST" and self.key == "" and "delete" in parse_qs(self.query, keep_blank_values=True)

    @property
    def shape(self) -> Shape:
        return Shape(self.method, self.key, self.length > 0, self.is_listing, self.is_of_content)


@dataclass(frozen=True, slots=True)
class _Answer:
    """What the client is to be answered."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    is_cut: bool = False
    pause: Callable[[], object] | None = None
    """What is done between small pieces of the body; None sends it whole."""

    def header(self, name: str) -> str | None:
        return next((value for found, value in self.headers if found.lower() == name.lower()), None)

    def with_header(self, name: str, value: str) -> _Answer:
        kept = [(found, old) for found, old in self.headers if found.lower() != name.lower()]
        return replace(self, headers=[*kept, (name, value)])

    def with_body(self, body: bytes) -> _Answer:
        return replace(self.with_header("Content-Length", str(len(body))), body=body)


class _Dropped(Exception):
    """The connection to the client was broken on purpose."""


class _ForwardingHandler(BaseHTTPRequestHandler, abc.ABC):
    """What both listeners do: take a request apart, have the store answer it, and send an answer."""

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
            return self.serve
        raise AttributeError(name)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing goes to stderr; see FaultProxy.requests."""

    @abc.abstractmethod
    def serve(self) -> None:
        """Deals with one request."""

    def request_of(self) -> _Request:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).removeprefix("/").partition("/")
        length, source = int(self.headers.get("Content-Length", "0")), self.headers.get("x-amz-copy-source")
        source_key = None if source is None else unquote(source.partition("?")[0]).removeprefix("/").partition("/")[2]
        return _Request(self.command, bucket, key, parts.query, length, source_key)

    def forward(self, body: bytes) -> _Answer:
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

    def aged(self, request: _Request, answer: _Answer, seconds: float | None) -> _Answer:
        """The answer to a listing as of `seconds` ago, or, for a later page, as of the instant of its first one."""
        if answer.status != 200:
            return answer
        proxy = self.server.proxy
        body = proxy.memory.age_listing(request.bucket, request.query, answer.body, seconds)
        if body is None:
            return answer
        proxy.count_fault(Rule(Fault.STALE_LIST, "GET", ""), "GET")
        return answer.with_body(body)

    def error(self, status: int, code: str) -> _Answer:
        body = b""
        if self.command != "HEAD":
            body = f"<Error><Code>{code}</Code><Message>said the fault proxy</Message></Error>".encode()
        return _Answer(status, [("Content-Type", "application/xml")], b"").with_body(body)

    def send(self, answer: _Answer | None) -> None:
        """None is to break the connection."""
        if answer is not None:
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                self.send_header(name, value)
            self.end_headers()
            self._write(answer)
        if answer is None or answer.is_cut:
            self.close_connection = True
            _break(self.connection)

    def _write(self, answer: _Answer) -> None:
        if answer.pause is None:
            self.wfile.write(answer.body)
            return
        size = len(answer.body) // _PIECES + 1
        for at in range(0, len(answer.body), size):
            self.wfile.write(answer.body[at : at + size])
            answer.pause()


class _LaggingHandler(_ForwardingHandler):
    def serve(self) -> None:
        try:
            self.send(self._answer(self.request_of()))
        except (OSError, http.client.HTTPException):
            self.send(None)

    def _answer(self, request: _Request) -> _Answer:
        if request.method not in ("GET", "HEAD"):
            self.rfile.read(request.length)
            return self.error(405, "MethodNotAllowed")
        answer = self.forward(b"")
        if not request.is_listing:
            return answer
        assert self.server.lag is not None
        return self.aged(request, answer, self.server.lag.pick())


class _Handler(_ForwardingHandler):
    def serve(self) -> None:
        proxy = self.server.proxy
        request = self.request_of()
        proxy.begin(request.method, request.key)
        answer: _Answer | None = None
        try:
            answer = self._answer(request, proxy.take_rule(request.shape))
        except (_Dropped, OSError, http.client.HTTPException):
            self.close_connection = True
        finally:
            # Before the client can go on, so that a test which looks after its request finds it.
            status = None if answer is None else answer.status
            proxy.end(SeenRequest(request.method, request.bucket, request.key, request.query, status))
        self.send(answer)

    def _answer(self, request: _Request, rule: Rule | None) -> _Answer:
        if rule is not None and rule.fault is Fault.DROP_DURING:
            self.rfile.read(request.length // 2)
            self._count(rule)
            raise _Dropped
        body = self.rfile.read(request.length)
        largest = self.server.proxy.largest_body
        if largest is not None and len(body) > largest:
            return _Answer(413, [("Content-Type", "text/html")], b"").with_body(_TOO_LARGE)
        if rule is None:
            return self._forward(request, body)
        if rule.fault is Fault.ODD:
            return self._odd(rule, request, body)
        if rule.fault is Fault.STALE_LIST:
            answer = self._forward(request, body, listing_age=rule.seconds)
            rule.reached.set()
            return answer
        if rule.fault in _FAULTS_AFTER:
            return self._spoil(rule, request, self._forward(request, body))
        return self._prevent(rule, request, body)

    def _odd(self, rule: Rule, request: _Request, body: bytes) -> _Answer:
        """An answer of the catalogue, in the store's place or of what it has answered."""
        odd = ODD_ANSWERS[rule.odd]
        answer = _Answer(200, [], b"") if odd.instead else self._forward(request, body)
        if answer.status not in (200, 204):
            return answer
        self._count(rule)
        status, named, content = odd.change(
            answer.status, {name.lower(): value for name, value in answer.headers}, answer.body
        )
        if request.method == "HEAD":
            return _Answer(status, list(named.items()), b"")
        headers = [(name, value) for name, value in named.items() if name != "content-length"]
        return _Answer(status, headers, b"").with_body(content)

    def _prevent(self, rule: Rule, request: _Request, body: bytes) -> _Answer:
        """For the faults that come before the store sees the request."""
        if rule.fault is Fault.CORRUPT and not body:
            return self._forward(request, body)
        self._count(rule)
        if rule.fault is Fault.DROP_BEFORE:
            raise _Dropped
        if rule.fault in _ANSWERS:
            answer = self.error(rule.status, rule.code)
            answer = answer if rule.body is None else answer.with_body(rule.body)
            return answer if rule.retry_after is None else answer.with_header("Retry-After", rule.retry_after)
        if rule.fault is Fault.LOSE:
            return self._acknowledge(request, body)
        if rule.fault is Fault.DELAY:
            rule.wait_for_release(rule.seconds)
        if rule.fault is Fault.HOLD:
            rule.wait_for_release()
        if rule.fault in (Fault.DELAY, Fault.HOLD) and _is_gone(self.connection):
            raise _Dropped
        if rule.fault is Fault.CORRUPT:
            body = body[:-1] + bytes([body[-1] ^ 1])
        return self._forward(request, body)

    def _spoil(self, rule: Rule, request: _Request, answer: _Answer) -> _Answer:
        """For the faults that come when the store has answered."""
        spoilt = self._spoilt(rule, request, answer)
        if spoilt is not answer or rule.fault is Fault.HOLD_AFTER:
            self._count(rule)
        if rule.fault is Fault.DROP_AFTER:
            raise _Dropped
        if rule.fault is Fault.HOLD_AFTER:
            rule.wait_for_release()
        return spoilt

    def _spoilt(self, rule: Rule, request: _Request, answer: _Answer) -> _Answer:
        body = answer.body
        match rule.fault:
            case Fault.DROP_AFTER:
                return replace(answer, is_cut=True)
            case Fault.TRUNCATE:
                return replace(answer, body=body[: len(body) // 2], is_cut=True)
            case Fault.SHORTEN if body and answer.status == 200:
                return answer.with_body(body[: len(body) // 2])
            case Fault.CORRUPT_ANSWER if body and answer.status == 200:
                at = len(body) // 2
                return replace(answer, body=body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :])
            case Fault.TRICKLE if body:
                return replace(answer, pause=lambda: rule.wait_for_release(rule.seconds / _PIECES))
            case Fault.STALE_HEAD:
                return self._stale_head(rule, request, answer)
            case Fault.SKEW:
                shifted = email.utils.formatdate(time.time() + rule.seconds, usegmt=True)
                return answer.with_header("Date", shifted)
        return answer

    def _stale_head(self, rule: Rule, request: _Request, answer: _Answer) -> _Answer:
        memory = self.server.proxy.memory
        was = memory.changed_within(request.bucket, request.key, rule.seconds)
        if was is None or answer.status not in (200, 404):
            return answer
        (version,) = was
        if version is None:
            return self.error(404, "NoSuchKey") if answer.status == 200 else answer
        return _Answer(200, version.headers(), b"")

    def _acknowledge(self, request: _Request, body: bytes) -> _Answer:
        if request.source_key is not None:
            return self._acknowledge_copy(request.bucket, request.source_key)
        checksums = [
            (name, value) for name, value in self.headers.items() if name.lower().startswith("x-amz-checksum-crc")
        ]
        headers = [("ETag", f'"{_md5(body)}"'), ("Date", email.utils.formatdate(usegmt=True)), *checksums]
        return _Answer(200, headers, b"").with_body(b"")

    def _acknowledge_copy(self, bucket: str, source_key: str) -> _Answer:
        source = self.server.proxy.memory.latest(bucket, source_key)
        etag = "" if source is None else source.etag
        body = f'<CopyObjectResult xmlns="{NAMESPACE}"><ETag>{escape(etag)}</ETag></CopyObjectResult>'.encode()
        headers = [("Content-Type", "application/xml"), ("Date", email.utils.formatdate(usegmt=True))]
        return _Answer(200, headers, b"").with_body(body)

    def _forward(self, request: _Request, body: bytes, listing_age: float | None = None) -> _Answer:
        """Has the store answer, and remembers what that changes; see `aged` of the age."""
        answer = self.forward(body)
        memory, is_done = self.server.proxy.memory, answer.status in (200, 204)
        if request.is_listing:
            # Also without an age: a later page shows the same instant as its first one, whatever rules there are now.
            return self.aged(request, answer, listing_age)
        if is_done and request.source_key is not None:
            memory.note_copy(request.bucket, request.source_key, request.key, time.time())
        elif is_done and request.method == "PUT" and request.key and request.is_of_content:
            checksum = answer.header("x-amz-checksum-crc32c")
            etag = answer.header("ETag") or f'"{_md5(body)}"'
            memory.note_put(request.bucket, request.key, Version(len(body), etag, checksum, time.time()))
        elif is_done and request.method == "DELETE" and request.key:
            memory.note_delete(request.bucket, [request.key])
        elif is_done and request.is_deletion_of_many:
            memory.note_delete(request.bucket, deleted_keys(body, answer.body))
        return answer

    def _count(self, rule: Rule) -> None:
        self.server.proxy.count_fault(rule, self.command)


def _md5(body: bytes) -> str:
    return hashlib.md5(body, usedforsecurity=False).hexdigest()


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
