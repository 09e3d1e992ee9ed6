"""What is written to a connection that is open, and what is understood of what comes back."""

from __future__ import annotations

import gzip
import socket
import threading
from collections.abc import Iterator

import pytest
import urllib3.exceptions

from mirrorfs.objectstore.wire import WireAnswer, exchange

BODY = b"content" * 100
XML = b"<Error><Code>SlowDown</Code></Error>"


class Ends:
    """Both ends of a connection; what the store says is there before it is asked."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        for end in (self.ours, self.theirs):
            end.settimeout(60)

    def ask(
        self, *answer: bytes, method: str = "PUT", headers: dict[str, str] | None = None, is_over: bool = False
    ) -> WireAnswer:
        """The answer to one request, as it comes in these pieces."""
        for piece in answer:
            self.theirs.sendall(piece)
        if is_over:
            self.theirs.shutdown(socket.SHUT_WR)
        body = BODY if method == "PUT" else b""
        given = {"Host": "store", "Content-Length": str(len(body))} if headers is None else headers
        return exchange(self.ours, method, "/bucket/a", given, body, lambda size: size)


@pytest.fixture
def ends() -> Iterator[Ends]:
    """A connection."""
    ends = Ends()
    with ends.ours, ends.theirs:
        yield ends


def test_a_request_is_written_as_a_whole(ends: Ends) -> None:
    ends.ask(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    head, _, body = ends.theirs.recv(65536).partition(b"\r\n\r\n")
    assert head.split(b"\r\n") == [
        b"PUT /bucket/a HTTP/1.1",
        b"Host: store",
        b"Content-Length: 700",
        b"Accept-Encoding: identity",
    ]
    assert body == BODY


def test_a_body_is_sent_in_the_pieces_that_are_allowed(ends: Ends) -> None:
    asked: list[int] = []

    def allowed(size: int) -> int:
        asked.append(size)
        return min(size, 300)

    ends.theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
    exchange(ends.ours, "PUT", "/a", {}, memoryview(BODY), allowed)
    assert asked == [700, 400, 100]
    assert ends.theirs.recv(65536).endswith(b"\r\n\r\n" + BODY)


def test_the_head_of_an_answer_is_read_whatever_pieces_it_comes_in(ends: Ends) -> None:
    answer = ends.ask(b'HTTP/1.1 200 OK\r\nETag:  "a" \r\nX-Meta: 1\r\nx-meta: 2\r\n', b"Content-Length: 0\r\n\r\n")
    assert answer == WireAnswer(200, {"etag": '"a"', "x-meta": "1, 2", "content-length": "0"}, None, ends_plainly=True)


@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "412"])
def test_the_answer_to_a_head_has_no_body_whatever_length_it_tells(ends: Ends, status: str) -> None:
    answer = ends.ask(f"HTTP/1.1 {status}\r\nContent-Length: 65548\r\n\r\n".encode(), method="HEAD")
    assert (answer.status, answer.headers["content-length"]) == (int(status[:3]), "65548")
    assert answer.unread is None
    assert answer.may_be_reused


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_an_answer_that_never_has_a_body_has_none_whatever_length_it_tells(ends: Ends, status: str) -> None:
    answer = ends.ask(f"HTTP/1.1 {status}\r\nContent-Length: 5\r\n\r\n".encode(), method="GET")
    assert answer.unread is None
    assert answer.may_be_reused


@pytest.mark.parametrize(
    ("method", "answer"),
    [
        ("PUT", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n"),
        ("PUT", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore"),
        ("HEAD", b"HTTP/1.1 404 No\r\nContent-Length: 4\r\n\r\nbody"),
    ],
)
def test_a_connection_is_not_used_again_after_its_end_or_what_nobody_has_asked_for(
    ends: Ends, method: str, answer: bytes
) -> None:
    assert not ends.ask(answer, method=method).may_be_reused


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 503 Slow Down\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(XML), XML),
        b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n"
        % (len(XML), XML),
        b"HTTP/1.0 503 Slow Down\r\nContent-Length: %d\r\n\r\n%b" % (len(XML), XML),
        b"HTTP/1.1 503 Slow Down\r\n\r\n" + XML,
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 503 Slow Down\r\nContent-Length: %d\r\n\r\n%b" % (len(XML), XML),
        b"HTTP/1.1 503 Slow Down\r\nX-Folded: a\r\n b\r\nContent-Length: %d\r\n\r\n%b" % (len(XML), XML),
        b"HTTP/1.1 503 Slow Down\nContent-Length: %d\n\n%b" % (len(XML), XML),
    ],
    ids=["chunked", "both", "old", "until-its-end", "continued", "folded", "bare-line-breaks"],
)
def test_what_is_not_plain_is_read_by_others_from_its_beginning(ends: Ends, answer: bytes) -> None:
    found = ends.ask(answer, is_over=True)
    assert found.status == 503
    assert found.unread is not None
    assert _read(found, 1024) == [XML]
    assert not found.may_be_reused


@pytest.mark.parametrize("comes", [1, 50, 7919, 100_000])
def test_a_body_of_a_told_length_is_given_from_a_whole_piece_on_however_it_comes(ends: Ends, comes: int) -> None:
    body = bytes(range(256)) * 40
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    sends = threading.Thread(target=_send, args=(ends.theirs, answer, comes))
    sends.start()
    found = ends.ask(method="GET")
    assert not found.may_be_reused
    first, *others = _read(found, 4096)
    assert first == body[:4096]
    assert b"".join(others) == body[4096:]
    assert max(len(piece) for piece in others) <= 4096
    assert found.may_be_reused
    sends.join()


def test_what_comes_after_a_body_is_nobodys_answer(ends: Ends) -> None:
    found = ends.ask(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbodymore", method="GET")
    assert _read(found, 100) == [b"body"]
    assert not found.may_be_reused


def test_a_body_that_ends_too_early_is_none(ends: Ends) -> None:
    found = ends.ask(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbody", method="GET", is_over=True)
    with pytest.raises(urllib3.exceptions.ProtocolError, match="before its 5 bytes"):
        _read(found, 100)
    assert not found.may_be_reused


def test_what_is_compressed_on_its_way_is_given_as_it_was(ends: Ends) -> None:
    body = gzip.compress(BODY)
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    assert b"".join(_read(ends.ask(head, body, method="GET"), 1024)) == BODY


def _read(answer: WireAnswer, size: int) -> list[bytes]:
    assert answer.unread is not None
    return list(answer.unread.stream(size, decode_content=True))


def _send(end: socket.socket, content: bytes, size: int) -> None:
    for at in range(0, len(content), size):
        end.sendall(content[at : at + size])


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200", b"HTTP/1.1 200 OK\r\nETag: a\r\n", b"no HTTP\r\n\r\n", b"x" * 70000 + b"\r\n\r\n"]
)
def test_what_is_no_answer_breaks_the_connection_off(ends: Ends, answer: bytes) -> None:
    with pytest.raises(urllib3.exceptions.ProtocolError):
        ends.ask(answer, is_over=True)


def test_bare_line_breaks_are_not_waited_behind(ends: Ends) -> None:
    assert ends.ask(b"HTTP/1.1 200 OK\nContent-Length: 0\n\n").status == 200


def test_an_answer_counts_that_comes_before_all_is_sent(ends: Ends) -> None:
    ends.theirs.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    ends.theirs.close()
    assert ends.ask().status == 413


@pytest.mark.parametrize("value", ["a\r\nX: b", "a\nX: b", "a\rb", "\u20ac"])
def test_a_header_that_cannot_be_sent_is_not(ends: Ends, value: str) -> None:
    with pytest.raises(ValueError, match=r"line break|latin-1"):
        ends.ask(headers={"X-Header": value})
    ends.ours.close()
    assert ends.theirs.recv(1) == b""
