"""What goes over the wire: our own checksums in headers, and never a body in pieces with a trailer."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NoReturn

import crc32c
import pytest
import urllib3

from mirrorfs.objectstore.answers import Retention
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import open_at


@dataclass(frozen=True)
class Sent:
    """A request as it was about to go over the wire."""

    url: str
    headers: dict[str, str]
    body: bytes


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch, credentials: None) -> list[Sent]:
    """The requests that were about to be sent; none is."""
    requests: list[Sent] = []

    def send(
        self: urllib3.HTTPConnectionPool,
        method: str,
        url: str,
        body: io.BytesIO | None,
        headers: Mapping[str, str],
        **_: object,
    ) -> NoReturn:
        requests.append(Sent(f"{self.scheme}://{self.host}{url}", dict(headers), b"" if body is None else body.read()))
        raise urllib3.exceptions.ProtocolError("nothing is sent in this test")

    monkeypatch.setattr(urllib3.HTTPConnectionPool, "urlopen", send)
    return requests


def md5_of(body: bytes) -> str:
    return base64.b64encode(hashlib.md5(body, usedforsecurity=False).digest()).decode()


def headers_of(request: Sent) -> dict[str, str]:
    return {name.lower(): value for name, value in request.headers.items()}


@pytest.mark.trio
@pytest.mark.parametrize("endpoint", ["http://192.0.2.1", "https://192.0.2.1", "https://s3.example.org"])
async def test_a_put_has_both_checksums_and_its_body_in_one_piece(endpoint: str, sent: list[Sent]) -> None:
    body = b"content" * 1000
    with pytest.raises(StoreUnavailable):
        await open_at(endpoint, "bucket", AT_ONCE).put("m/a", body)
    (request,) = sent
    headers = headers_of(request)
    assert request.url == f"{endpoint}/bucket/m/a"
    assert headers["x-amz-checksum-crc32c"] == base64.b64encode(crc32c.crc32c(body).to_bytes(4, "big")).decode()
    assert headers["content-md5"] == md5_of(body)
    assert headers["content-length"] == str(len(body))
    assert "x-amz-trailer" not in headers
    assert "transfer-encoding" not in headers
    assert "aws-chunked" not in headers.get("content-encoding", "")
    assert request.body == body


@pytest.mark.trio
@pytest.mark.parametrize("body", [b"", b"content" * 1000])
async def test_no_put_waits_to_be_told_to_go_on(sent: list[Sent], body: bytes) -> None:
    # Many a proxy refuses the header (417), and some a store never answers it.
    with pytest.raises(StoreUnavailable):
        await open_at("http://192.0.2.1", "bucket", AT_ONCE).put("m/a", body)
    (request,) = sent
    assert "expect" not in headers_of(request)


@pytest.mark.trio
@pytest.mark.parametrize("endpoint", ["http://192.0.2.1", "https://192.0.2.1"])
async def test_a_delete_has_the_md5_that_many_stores_insist_on(endpoint: str, sent: list[Sent]) -> None:
    with pytest.raises(StoreUnavailable):
        await open_at(endpoint, "bucket", AT_ONCE).delete(["m/a", "m/b"])
    (request,) = sent
    assert isinstance(request.body, bytes)
    assert headers_of(request)["content-md5"] == md5_of(request.body)


@pytest.mark.parametrize("endpoint", ["http://192.0.2.1", "https://192.0.2.1"])
def test_a_retention_has_the_md5_that_many_stores_insist_on_and_whole_seconds_in_utc(
    endpoint: str, sent: list[Sent]
) -> None:
    with pytest.raises(StoreUnavailable):
        S3Client("bucket", StoreOptions(endpoint_url=endpoint)).put_retention(
            "m/a", Retention("GOVERNANCE", 1_800_000_000.2)
        )
    (request,) = sent
    assert isinstance(request.body, bytes)
    assert request.url == f"{endpoint}/bucket/m/a?retention"
    assert headers_of(request)["content-md5"] == md5_of(request.body)
    assert b"<RetainUntilDate>2027-01-15T08:00:01Z</RetainUntilDate>" in request.body
    assert "x-amz-bypass-governance-retention" not in headers_of(request)


def test_a_copy_names_its_source_and_asks_for_nothing_else(
    sent: list[Sent],
) -> None:
    with pytest.raises(StoreUnavailable):
        S3Client("bucket", StoreOptions(endpoint_url="http://192.0.2.1")).copy_object("m/\u00e9 b+&", "m/a")
    (request,) = sent
    headers = headers_of(request)
    assert headers["x-amz-copy-source"] == "bucket/m/%C3%A9%20b%2B%26"
    assert not any(name.startswith(("x-amz-metadata", "x-amz-checksum", "expect")) for name in headers)
    assert not request.body
