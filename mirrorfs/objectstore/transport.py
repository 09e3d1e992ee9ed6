"""Sends what boto3 has made and signed, and brings back the whole answer; it judges nothing of it.

boto3 builds and signs requests, and finds credentials. Sending is done here, since a mirror needs what its own HTTP
client has not: a deadline for each request, no redirects, the fingerprint of a certificate. And answers are examined
here and in `examination`, since boto3 takes a page of a web server for an empty listing, and dies of an empty date.
"""

from __future__ import annotations

import errno
import io
import itertools
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import botocore.awsrequest
import botocore.httpsession
import botocore.utils
import urllib3
import urllib3.connection
import urllib3.connectionpool
import urllib3.exceptions
import urllib3.util

from mirrorfs.datastore.content import Content, Spool
from mirrorfs.datastore.errors import TooMuch
from mirrorfs.objectstore.answers import CheckBeginning
from mirrorfs.objectstore.bodies import ContentReader, content_of
from mirrorfs.objectstore.causes import innermost_cause
from mirrorfs.objectstore.deadlines import Deadlines, RequestUnderWay
from mirrorfs.objectstore.documents import number
from mirrorfs.objectstore.errors import StoreReason
from mirrorfs.objectstore.masking import shown_url
from mirrorfs.objectstore.throttle import Throttle
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.objectstore.wire import Unread, exchange

if TYPE_CHECKING:
    from botocore.awsrequest import AWSPreparedRequest

_PIECE = 256 * 1024
_BEGINNING_SIZE = 4096
_LARGEST_DOCUMENT = 64 * 1024 * 1024
# What boto3 is given instead of the answer: it has nothing in it that could be misunderstood.
_PLACEHOLDER = b"<Answered/>"
_PROXY_WANTS_A_PASSWORD = 407
_IS_CLOSED = "it wants a name and password"
_NO_RETRIES = urllib3.util.Retry(False)
# In which urllib3 would change nothing: no segment of dots alone, and nothing that is, or has to be, quoted.
_PLAIN_PATH = re.compile(r"(?:/(?!\.{1,2}(?:/|$))[A-Za-z0-9._-]+)+")
_FINGERPRINT_SEEN = re.compile(r'got "?([0-9a-fA-F]+)"?')


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: names of headers in lower case, the content whole and as it was before any compression.

    `elapsed` is the request's duration in seconds, `sent_at` the Unix time by this machine's clock when it began.
    """

    operation: str
    status: int
    headers: Mapping[str, str]
    content: Content = field(repr=False)
    elapsed: float = 0.0
    sent_at: float = 0.0

    @property
    def body(self) -> bytes:
        """The content of what is no object: that is never too large for memory."""
        return bytes(self.content)

    @property
    def beginning(self) -> bytes:
        """The first bytes of the content, which tell its kind."""
        return bytes(self.content[:_BEGINNING_SIZE])


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """How many bytes are taken of an object, and what is to be asked about its first ones."""

    maximum: int
    check_beginning: CheckBeginning | None = None


@dataclass(frozen=True, slots=True)
class PlainRequest:
    """A request that is complete but for what the connection adds; `host` is what its signature has for Host."""

    method: str
    url: str
    host: str
    headers: Mapping[str, str]
    body: Content


class BodyTooLong(Exception):
    """There is more than was to be taken; `announced` is how much, where that was said."""

    def __init__(self, announced: int | None) -> None:
        super().__init__(announced)
        self.announced = announced


class BodyRefused(Exception):
    """What `check_beginning` has raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class TransportFailed(Exception):
    """There was no answer. `may_be_done` tells whether the request may have arrived all the same."""

    def __init__(self, cause: str, reason: StoreReason, *, may_be_done: bool = False) -> None:
        super().__init__(cause)
        self.cause = cause
        self.reason = reason
        self.may_be_done = may_be_done


class Transport:
    """The connections to one endpoint. For several threads at once."""

    def __init__(
        self, options: StoreOptions, ca_bundle: str | None, *, parallelism: int, throttle: Throttle | None = None
    ) -> None:
        """`ca_bundle` is the path of the certificates to trust, where it is not the usual ones.

        `throttle` says how fast all of it may be.
        Raises OSError where that cannot be read.
        """
        self.deadlines = Deadlines(throttle=throttle)
        self._options = options
        self._answers = threading.local()
        self._managers: dict[str | None, urllib3.PoolManager] = {}
        self._proxies: dict[str, str | None] = {}
        self._pools: dict[str, urllib3.HTTPConnectionPool] = {}
        self._lock = threading.Lock()
        self._pool_settings = _pool_settings(options, ca_bundle, parallelism)

    def send(self, request: AWSPreparedRequest, event_name: str, **_: object) -> botocore.awsrequest.AWSResponse:
        """A handler of boto3's event before-send: keeps the answer for `take`, and gives boto3 an empty one.

        Raises TransportFailed.
        """
        self.exchange(request, event_name.rpartition(".")[2])
        return botocore.awsrequest.AWSResponse(request.url, 200, cast(Any, {}), _Placeholder())

    def exchange(self, request: AWSPreparedRequest | PlainRequest, operation: str) -> None:
        """Sends a request and keeps the answer for `take`. Raises TransportFailed."""
        self._answers.value = None
        self._answers.value = self._exchange(request, operation)

    def limit_next_body(self, limit: BodyLimit | None) -> None:
        """Says what is to be taken of the object that the next request of this thread reads."""
        self._answers.limit = limit

    def take(self) -> Answer:
        """The answer to the last request that this thread has sent."""
        answer: Answer = self._answers.value
        self._answers.value = None
        return answer

    def close(self) -> None:
        """Closes the connections that nobody uses."""
        with self._lock:
            self._pools.clear()
            for manager in self._managers.values():
                manager.clear()

    def _exchange(self, request: AWSPreparedRequest | PlainRequest, operation: str) -> Answer:
        body = content_of(request.body)
        self.deadlines.wait_for_request()
        began, sent_at = time.monotonic(), time.time()
        description = f"{operation} {shown_url(request.url)}"
        with self.deadlines.watching(description, self._seconds_for(len(body))) as under_way:
            _current.request, _current.quiet_seconds = under_way, self._options.read_timeout
            try:
                status, headers, received = self._send_and_receive(request, body, under_way)
            except _FAILURES as error:
                if under_way.is_overdue:
                    raise self._overdue(under_way) from None
                raise self._failure(error, request.url) from None
            finally:
                _current.request = None
        if under_way.is_overdue:
            # The end of a connection that was broken is also the end of a body without an announced length.
            raise self._overdue(under_way)
        if status == _PROXY_WANTS_A_PASSWORD and (proxy := self._proxy_for(_origin(request.url))) is not None:
            raise _stopped_by(proxy, _IS_CLOSED)
        return Answer(operation, status, headers, received, time.monotonic() - began, sent_at)

    def _send_and_receive(
        self, request: AWSPreparedRequest | PlainRequest, body: Content, under_way: RequestUnderWay
    ) -> tuple[int, Mapping[str, str], Content]:
        headers = {name: _text(value) for name, value in request.headers.items()}
        # A store that refuses, or never answers, "Expect: 100-continue" is not rare; a body sent in vain is.
        headers.pop("Expect", None)
        origin = _origin(request.url)
        proxy = self._proxy_for(origin)
        pool, target = self._pool(proxy, origin), _target(request.url, origin)
        if proxy is not None and request.url.startswith("http:"):
            target = request.url
        if body:
            headers["Content-Length"] = str(len(body))
        if isinstance(request, PlainRequest) and proxy is None:
            connection = _open_connection(pool)
            if connection is not None:
                headers["Host"] = request.host
                return self._send_over(connection, pool, request.method, target, headers, body, under_way)
        response = pool.urlopen(
            request.method,
            target,
            body=ContentReader(body, under_way.sending) if body else None,
            headers=headers,
            retries=_NO_RETRIES,
            redirect=False,
            assert_same_host=False,
            preload_content=False,
            decode_content=False,
        )
        try:
            under_way.progress()
            found = {name.lower(): value for name, value in response.headers.itermerged()}
            received = b"" if request.method == "HEAD" else self._read(response, response.status, found, under_way)
        except BaseException:
            response.close()
            raise
        finally:
            response.release_conn()
        return response.status, found, received

    def _send_over(
        self,
        connection: _Breakable,
        pool: urllib3.HTTPConnectionPool,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: Content,
        under_way: RequestUnderWay,
    ) -> tuple[int, Mapping[str, str], Content]:
        """A request over a connection that is open."""
        may_be_reused = False
        try:
            _attach(connection.breakable)
            answer = exchange(connection.sock, method, target, headers, body, under_way.sending)
            under_way.progress()
            received: Content = b""
            if answer.unread is not None and method != "HEAD":
                received = self._read(answer.unread, answer.status, answer.headers, under_way)
            may_be_reused = answer.may_be_reused
            return answer.status, answer.headers, received
        finally:
            if not may_be_reused:
                connection.close()
            pool._put_conn(connection if may_be_reused else None)

    def _read(self, unread: Unread, status: int, headers: Mapping[str, str], under_way: RequestUnderWay) -> Content:
        limit: BodyLimit | None = getattr(self._answers, "limit", None)
        announced = number(headers.get("content-length", ""))
        if announced is not None:
            most = _LARGEST_DOCUMENT if limit is None else limit.maximum
            under_way.extend(self._seconds_to_move(min(announced, most)))
        is_encoded = headers.get("content-encoding", "identity") != "identity"
        return _read_body(unread, announced, limit if status == 200 else None, under_way, is_encoded=is_encoded)

    def _seconds_for(self, size: int) -> float:
        return self._options.request_timeout + self._seconds_to_move(size)

    def _seconds_to_move(self, size: int) -> float:
        return size / self._options.slowest_rate

    def _proxy_for(self, origin: str) -> str | None:
        if self._options.proxy is not None:
            return self._options.proxy
        if origin not in self._proxies:
            # What the environment says is looked up once, as by boto3: it costs a third of a request.
            proxies = botocore.utils.get_environ_proxies(origin)
            self._proxies[origin] = botocore.httpsession.ProxyConfiguration(proxies=proxies).proxy_url_for(origin)
        return self._proxies[origin]

    def _pool(self, proxy: str | None, origin: str) -> urllib3.HTTPConnectionPool:
        """The connections to a host; urllib3 takes as long to find them again as to send something small."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = self._manager(proxy).connection_from_url(origin)
        return pool

    def _manager(self, proxy: str | None) -> urllib3.PoolManager:
        with self._lock:
            if proxy not in self._managers:
                self._managers[proxy] = _make_manager(proxy, self._pool_settings)
            return self._managers[proxy]

    def _overdue(self, under_way: RequestUnderWay) -> TransportFailed:
        seconds = under_way.deadline - under_way.began
        return TransportFailed(f"it was not done in {seconds:.0f} s", StoreReason.UNREACHABLE, may_be_done=True)

    def _failure(self, error: Exception, url: str) -> TransportFailed:
        cause = innermost_cause(error)
        if isinstance(error, urllib3.exceptions.ProxyError):
            is_closed = str(_PROXY_WANTS_A_PASSWORD) in str(error)
            return _stopped_by(self._proxy_for(_origin(url)) or "", _IS_CLOSED if is_closed else cause)
        if isinstance(error, urllib3.exceptions.SSLError):
            fingerprint = _FINGERPRINT_SEEN.search(str(error))
            if self._options.fingerprint is not None and fingerprint is not None:
                cause = f"the certificate's fingerprint is {_with_colons(fingerprint[1])}, not the one that was given"
            return TransportFailed(cause, StoreReason.TLS_FAILED)
        if isinstance(error, urllib3.exceptions.NewConnectionError | urllib3.exceptions.ConnectTimeoutError):
            return TransportFailed(cause, StoreReason.UNREACHABLE)
        if isinstance(error, urllib3.exceptions.HTTPError | OSError):
            return TransportFailed(cause, StoreReason.UNREACHABLE, may_be_done=True)
        # Its words would repeat the header, and so what is secret in it.
        return TransportFailed(
            "a header or the address of the request has a character that cannot be sent", StoreReason.LOCAL_SETTING
        )


_FAILURES = (urllib3.exceptions.HTTPError, OSError, ValueError, TypeError)


def _open_connection(pool: urllib3.HTTPConnectionPool) -> _Breakable | None:
    """A connection of the pool's that is open, to be given back to it; None where there is none."""
    connection = pool._get_conn()
    if isinstance(connection, _Breakable) and not connection.is_closed:
        return connection
    pool._put_conn(connection)
    return None


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3]) + "/"


def _target(url: str, origin: str) -> str:
    """What of a URL is sent, as urllib3 writes it."""
    path = url[len(origin) - 1 :]
    return path if _PLAIN_PATH.fullmatch(path) else urllib3.util.parse_url(url).request_uri


def _pool_settings(options: StoreOptions, ca_bundle: str | None, parallelism: int) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "timeout": urllib3.Timeout(connect=options.connect_timeout, read=options.read_timeout),
        "maxsize": parallelism,
        "blocksize": _PIECE,
    }
    if options.fingerprint is not None:
        # As in PBS: a certificate that is known needs nobody to vouch for it.
        return {**settings, "cert_reqs": "CERT_NONE", "assert_fingerprint": options.fingerprint}
    path = ca_bundle or str(botocore.httpsession.get_cert_path(True))
    _check_certificates(path)
    return {**settings, "cert_reqs": "CERT_REQUIRED", "ca_certs": path}


def _check_certificates(path: str) -> None:
    """Raises OSError for a file that would only be missed, and not be named, at the first request."""
    with open(path, "rb"):
        pass
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise OSError(errno.EINVAL, "there is no certificate (PEM) in it that could be used", path) from None


def _stopped_by(proxy: str, cause: str) -> TransportFailed:
    return TransportFailed(f"the proxy {shown_url(proxy)} does not let us through: {cause}", StoreReason.PROXY_FAILED)


def _make_manager(proxy: str | None, settings: Mapping[str, Any]) -> urllib3.PoolManager:
    if proxy is None:
        manager = urllib3.PoolManager(**settings)
    else:
        headers = botocore.httpsession.ProxyConfiguration().proxy_headers_for(proxy)
        manager = urllib3.proxy_from_url(proxy, proxy_headers=headers, **settings)
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _PoolOverTLS}
    return manager


def _read_body(
    unread: Unread,
    announced: int | None,
    limit: BodyLimit | None,
    under_way: RequestUnderWay,
    *,
    is_encoded: bool,
) -> Content:
    limit = limit or BodyLimit(_LARGEST_DOCUMENT)
    if announced is not None and announced > limit.maximum and not is_encoded:
        raise BodyTooLong(announced)
    spool = Spool(announced=announced)
    checks_beginning = limit.check_beginning is not None and announced is not None
    piece_size = under_way.piece_to_receive(_PIECE)
    stream = unread.stream(_BEGINNING_SIZE if checks_beginning else piece_size, decode_content=True)
    if checks_beginning:
        for piece in itertools.islice(stream, 1):
            _take(piece, spool, limit, announced, under_way)
            _check_beginning(piece, announced or 0, limit)
        stream = unread.stream(piece_size, decode_content=True)
    for piece in stream:
        _take(piece, spool, limit, announced, under_way)
    try:
        return spool.content()
    except TooMuch as error:
        raise BodyRefused(error) from None


def _take(piece: bytes, spool: Spool, limit: BodyLimit, announced: int | None, under_way: RequestUnderWay) -> None:
    under_way.received(len(piece))
    if spool.length + len(piece) > limit.maximum:
        raise BodyTooLong(announced)
    try:
        spool.add(piece)
    except TooMuch as error:
        raise BodyRefused(error) from None


def _check_beginning(beginning: bytes, announced: int, limit: BodyLimit) -> None:
    assert limit.check_beginning is not None
    try:
        limit.check_beginning(beginning[:_BEGINNING_SIZE], announced)
    except Exception as error:  # noqa: BLE001 - it is handed to whoever gave the check
        raise BodyRefused(error) from None


_current = threading.local()


class _Breakable(urllib3.connection.HTTPConnection):
    """A connection that the deadline of the request it is used for can break."""

    breakable: socket.socket | None = None

    def _new_conn(self) -> socket.socket:
        connection = super()._new_conn()
        # TLS takes the socket over; what can be broken from outside is another handle of the same connection.
        self.breakable = connection.dup()
        _attach(self.breakable)
        # urllib3 would send under the time-out for connecting, which is short for a line that is full.
        connection.settimeout(getattr(_current, "quiet_seconds", None))
        return connection

    def request(self, *positional: Any, **named: Any) -> None:  # noqa: ANN401
        _attach(self.breakable)
        super().request(*positional, **named)

    def close(self) -> None:
        super().close()
        breakable, self.breakable = self.breakable, None
        if breakable is not None:
            breakable.close()


class _BreakableOverTLS(_Breakable, urllib3.connection.HTTPSConnection):
    pass


class _Pool(urllib3.connectionpool.HTTPConnectionPool):
    ConnectionCls = _Breakable


class _PoolOverTLS(urllib3.connectionpool.HTTPSConnectionPool):
    ConnectionCls = _BreakableOverTLS


def _attach(connection: socket.socket | None) -> None:
    under_way: RequestUnderWay | None = getattr(_current, "request", None)
    if under_way is not None:
        under_way.attach(connection)


class _Placeholder(io.BytesIO):
    def __init__(self) -> None:
        super().__init__(_PLACEHOLDER)

    def stream(self, *_: object, **__: object) -> list[bytes]:
        return [self.read()]


def _text(value: str | bytes) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _with_colons(fingerprint: str) -> str:
    return ":".join(fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2)).lower()
