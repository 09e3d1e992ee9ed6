"""Nobody looks at the page who may not."""

from __future__ import annotations

import base64
from http import HTTPStatus

import pytest

from mirrorfs.web.gate import Gate, is_local_host
from mirrorfs.web.pages import SECURITY_HEADERS

TOKEN = "a-token-of-some-length"


@pytest.mark.parametrize("host", ["localhost", "LocalHost:9861", "127.0.0.1", "127.0.0.53:80", "[::1]", "[::1]:9861"])
def test_names_of_this_machine(host: str) -> None:
    assert is_local_host(host)


@pytest.mark.parametrize(
    "host",
    [
        "", "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:9861", "192.0.2.1",
        "localhost:", "localhost:123456", "localhost:x", "user@localhost", "localhost/", "localhost\r\nx", "[::2]",
        "::1", "0.0.0.1", "127.1", "[localhost", " localhost", "l\xf6calhost",
    ],
)  # fmt: skip
def test_names_of_others(host: str) -> None:
    assert not is_local_host(host)


def refused(gate: Gate, *headers: tuple[bytes, bytes]) -> HTTPStatus | None:
    refusal = gate.refusal(headers)
    assert refusal is None or refusal.sentence.endswith(".")
    return None if refusal is None else refusal.status


def test_on_loopback_the_host_is_looked_at() -> None:
    gate = Gate(None, is_local=True)
    assert refused(gate, (b"host", b"localhost:9861")) is None
    assert refused(gate, (b"host", b"rebound.example:9861")) is HTTPStatus.MISDIRECTED_REQUEST
    assert refused(gate) is HTTPStatus.MISDIRECTED_REQUEST
    assert refused(gate, (b"host", b"localhost"), (b"host", b"localhost")) is HTTPStatus.MISDIRECTED_REQUEST


def basic(text: bytes) -> tuple[bytes, bytes]:
    return b"authorization", b"Basic " + base64.b64encode(text)


@pytest.mark.parametrize("is_local", [True, False])
def test_the_token_is_demanded(is_local: bool) -> None:
    gate, host = Gate(TOKEN, is_local), (b"host", b"localhost")
    token = TOKEN.encode()
    for header in (basic(b"root:" + token), basic(b":" + token), (b"authorization", b"bearer " + token)):
        assert refused(gate, host, header) is None
    for wrong in (
        basic(token),
        basic(token + b":"),
        basic(b"root:" + token + b"x"),
        basic(b"root:" + token[:-1]),
        basic(b"root:\xff\xfe"),
        basic(b""),
        (b"authorization", b"Basic !!!"),
        (b"authorization", b"Bearer"),
        (b"authorization", b"Bearer \xff"),
        (b"authorization", b"Digest " + token),
        (b"authorization", token),
        (b"authorization", b""),
        (b"x-token", token),
    ):
        assert refused(gate, host, wrong) is HTTPStatus.UNAUTHORIZED
    assert refused(gate, host, basic(b":" + token), basic(b":" + token)) is HTTPStatus.UNAUTHORIZED


def test_whoever_listens_for_others_is_called_as_they_call_it() -> None:
    assert refused(Gate(TOKEN, is_local=False), (b"host", b"pbs.example"), basic(b":" + TOKEN.encode())) is None


def test_the_policy_lets_nothing_in_from_elsewhere() -> None:
    policy = SECURITY_HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none';")
    assert "unsafe" not in policy
    assert "http" not in policy
    assert "frame-ancestors 'none'" in policy
