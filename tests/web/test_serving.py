"""Whatever is sent, a sentence comes back, in bounded time and memory, and tells nobody what he may not know."""

from __future__ import annotations

import base64
import json
import threading
from dataclasses import replace
from typing import Any

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from mirrorfs.web import serving
from mirrorfs.web.gate import Gate
from mirrorfs.web.overview import MOST_LISTED, Reading
from mirrorfs.web.pages import SECURITY_HEADERS
from tests.web.served import HOSTILE, SHOWN, STATUS, Mirror, exchanged, serving_page

pytestmark = pytest.mark.trio

OPEN = Gate(None, is_local=True)
TOKEN = "a-token-of-some-length"


def request(target: str = "/", *, method: str = "GET", host: str = "localhost", more: str = "") -> bytes:
    return f"{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n".encode("latin-1")


def parts(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = answer.partition(b"\r\n\r\n")
    first, *lines = head.decode("ascii").split("\r\n")
    headers = dict(line.split(": ", 1) for line in lines)
    return int(first.split(" ")[1]), headers, body


async def everything_was_read(port: int) -> None:
    """Return when the answers change no more by themselves."""
    while json.loads(parts(await exchanged(port, request("/live.json")))[2])["history_at"] is None:
        # Each answer is waited for.
        continue


@pytest.mark.parametrize(
    ("target", "kind"),
    [
        ("/", "text/html; charset=utf-8"),
        ("/page.css", "text/css; charset=utf-8"),
        ("/page.js", "text/javascript; charset=utf-8"),
        ("/icon.svg", "image/svg+xml"),
        ("/live.json", "application/json"),
        ("/snapshots.json", "application/json"),
        ("/history.json", "application/json"),
        ("/nothing", "text/plain; charset=utf-8"),
    ],
)
async def test_each_answer_has_every_security_header(target: str, kind: str) -> None:
    async with serving_page(Mirror(), OPEN) as port:
        await everything_was_read(port)
        status, headers, body = parts(await exchanged(port, request(target)))
        assert status == (404 if target == "/nothing" else 200)
        assert {name: headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS
        assert headers["Content-Type"] == kind
        assert int(headers["Content-Length"]) == len(body) > 0
        again, same, nothing = parts(await exchanged(port, request(target, method="HEAD")))
        assert (again, same["Content-Length"], nothing) == (status, headers["Content-Length"], b"")


LONG = "a" * (serving.LONGEST_HEAD + 1000)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
        (b"\r\n" * 40 + b"x\r\n\r\n", 400),
        (b"GET\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: localhost\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost : localhost\r\n\r\n", 400),
        (b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n", 505),
        (b"GET /\xff\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
        (request(more="Content-Length: 5\r\n") + b"hello", 400),
        (request(more="Content-Length: x\r\n"), 400),
        (request(more="Content-Length: 1\r\nContent-Length: 2\r\n"), 400),
        (request(more="Transfer-Encoding: chunked\r\n") + b"5\r\nhello\r\n0\r\n\r\n", 400),
        (request(f"/{LONG}"), 431),
        (request(more=f"X-Long: {LONG}\r\n"), 431),
        (request(more="X-Many: x\r\n" * 3000), 431),
        (request(method="POST"), 405),
        (request(method="DELETE"), 405),
        (request("localhost:1", method="CONNECT"), 405),
        (request("*", method="OPTIONS"), 405),
        (request("/../page.css"), 404),
        (request("/%2e%2e/etc/passwd"), 404),
        (request("//etc/passwd"), 404),
        (request("/page.css/"), 404),
        (request("/?x"), 404),
        (request("http://localhost/"), 404),
        (request(host="rebound.example"), 421),
        (request(host=""), 421),
    ],
)
async def test_what_is_malformed_gets_a_sentence(data: bytes, status: int) -> None:
    async with serving_page(Mirror(), OPEN) as port:
        answer = await exchanged(port, data)
        found, headers, body = parts(answer)
        assert found == status
        assert headers["Content-Type"] == "text/plain; charset=utf-8"
        assert body.endswith(b".\n")
        assert body.count(b"\n") == 1
        assert SECURITY_HEADERS.items() <= headers.items()
        assert parts(await exchanged(port, request()))[0] == 200, "the page must be served to the next one"


@settings(max_examples=60)
@given(st.binary(max_size=300))
async def test_any_bytes_get_http_or_nothing(data: bytes) -> None:
    async with serving_page(Mirror(), OPEN) as port:
        answer = await exchanged(port, data, then_ends=True)
        assert answer == b"" or parts(answer)[0] in (200, 400, 404, 405, 421, 431, 505)


@pytest.mark.parametrize("pause", [0.01, 60.0])
async def test_whoever_takes_too_long_is_sent_away(pause: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_ASK_SECONDS", 0.3)
    async with serving_page(Mirror(), OPEN) as port, trio.open_nursery() as nursery:
        stream = await trio.open_tcp_stream("127.0.0.1", port)

        async def dribble() -> None:
            await stream.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
            while True:
                await trio.sleep(pause)
                await stream.send_all(b"x")

        nursery.start_soon(dribble)
        async with stream:
            assert parts(await stream.receive_some(65536))[0] == 408
            nursery.cancel_scope.cancel()


async def test_no_more_than_so_many_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "MOST_CONNECTIONS", 2)
    async with serving_page(Mirror(), OPEN) as port:
        idle = [await trio.open_tcp_stream("127.0.0.1", port) for _ in range(2)]
        status, _, body = parts(await exchanged(port, b""))
        assert (status, body) == (503, b"Too many others look at this page now: try again.\n")
        for stream in idle:
            await stream.aclose()
        while parts(await exchanged(port, request()))[0] == 503:
            await trio.lowlevel.checkpoint()


async def test_a_mirror_that_hangs_makes_nobody_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "_ANSWER_SECONDS", 0.3)
    mirror, goes_on = Mirror(), threading.Event()
    read = mirror.read

    def hang() -> Reading:
        goes_on.wait(60)
        return read()

    monkeypatch.setattr(mirror, "read", hang)
    async with serving_page(mirror, OPEN) as port:
        assert parts(await exchanged(port, request("/live.json")))[0] == 503
        assert parts(await exchanged(port, request("/")))[0] == 200
        goes_on.set()
        while parts(await exchanged(port, request("/live.json")))[0] == 503:
            await trio.lowlevel.checkpoint()


async def test_an_error_that_nobody_expected_ends_one_answer_only(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving_page(Mirror(), OPEN) as port:
        with monkeypatch.context() as patched:
            patched.setattr(serving, "sentence", None)
            assert await exchanged(port, b"x\r\n\r\n") == b""
        assert parts(await exchanged(port, request()))[0] == 200


async def test_the_token_opens_everything_and_nothing_is_open_without() -> None:
    async with serving_page(Mirror(), Gate(TOKEN, is_local=True)) as port:
        for target in ("/", "/page.css", "/page.js", "/icon.svg", "/live.json", "/snapshots.json", "/nothing"):
            status, headers, body = parts(await exchanged(port, request(target)))
            assert status == 401
            assert headers["WWW-Authenticate"] == 'Basic realm="mirrorfs", charset="UTF-8"'
            assert TOKEN.encode() not in body
        credentials = base64.b64encode(f"root:{TOKEN}".encode()).decode()
        answer = await exchanged(port, request("/live.json", more=f"Authorization: Basic {credentials}\r\n"))
        assert parts(answer)[0] == 200
        assert (
            parts(await exchanged(port, request(host="x.example", more=f"Authorization: Bearer {TOKEN}\r\n")))[0] == 421
        )


async def document(port: int, target: str) -> Any:  # noqa: ANN401
    status, _, body = parts(await exchanged(port, request(target)))
    assert status == 200
    assert body.isascii()
    return json.loads(body)


async def test_names_are_shown_so_that_they_hide_nothing() -> None:
    async with serving_page(Mirror(), OPEN) as port:
        live, snapshots = await document(port, "/live.json"), await document(port, "/snapshots.json")
    assert live["status"]["why"] == f"why {SHOWN}"
    assert list(live["status"]["publishing"]) == [f"vm/1{SHOWN}/2026-01-02T00:00:00Z"]
    assert snapshots[0]["snapshot"] == f"vm/1{SHOWN}/2026-01-01T00:00:00Z"
    assert "\u202e" not in json.dumps([live, snapshots], ensure_ascii=False)


async def test_how_the_store_is_reached_is_nobodys_business() -> None:
    async with serving_page(Mirror(), OPEN) as port:
        assert "secret" not in json.dumps(await document(port, "/live.json"))


async def test_long_lists_are_cut_and_counted() -> None:
    mirror = Mirror()
    held = [{"snapshot": f"vm/1/{n}", "since": 1.0, "reason": "wave", "goes_at": None} for n in range(5000)]
    problems = [{"name": f"vm/{n}", "reason": "x", "since": 1.0, "count": 2} for n in range(5000)]
    retention = {**STATUS["retention"], "held": held}
    mirror.reading = replace(mirror.reading, status={**STATUS, "retention": retention, "problems": problems})
    async with serving_page(mirror, OPEN) as port:
        live = await document(port, "/live.json")
    told, counts = live["status"], live["counts"]
    assert (len(told["retention"]["held"]), counts["held"]) == (MOST_LISTED, 5000)
    assert (len(told["problems"]), counts["problems"]) == (MOST_LISTED, 10000)


async def test_a_mirror_that_does_not_answer_leaves_what_was_known() -> None:
    mirror = Mirror()
    mirror.reading = Reading(None, "the uploader does not run at this moment")
    async with serving_page(mirror, OPEN) as port:
        live = await document(port, "/live.json")
        assert (live["status"], live["read_at"]) == (None, None)
        assert live["error"] == "the uploader does not run at this moment"
        assert (await document(port, "/snapshots.json")) == []
        assert (await document(port, "/history.json"))["points"][0][1:] == [None, None, None]


async def test_many_who_look_ask_the_mirror_once() -> None:
    mirror = Mirror()
    async with serving_page(mirror, OPEN) as port, trio.open_nursery() as nursery:
        for _ in range(20):
            nursery.start_soon(document, port, "/live.json")
    assert mirror.asked == 1


@pytest.mark.parametrize("value", [1.5, "x" * 4096, ["\u2066"], {"\u200e": (HOSTILE, None, True)}])
async def test_whatever_the_mirror_tells_is_json(value: object) -> None:
    mirror = Mirror()
    mirror.reading = replace(mirror.reading, status={**STATUS, "later": value})
    async with serving_page(mirror, OPEN) as port:
        assert "later" in (await document(port, "/live.json"))["status"]
