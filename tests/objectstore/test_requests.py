"""What goes over the wire: our own checksums in headers, and never a body in pieces with a trailer."""

from __future__ import annotations

import base64
import hashlib
import io
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

import crc32c
import pytest
import urllib3

from mirrorfs.objectstore.answers import Retention
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import open_at
from tests.objectstore.test_store import BY_ETAG, BY_HEAD, BY_PUT
from tests.stores.capabilities import HONEST


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


def crc32c_of(body: bytes) -> str:
    return base64.b64encode(crc32c.crc32c(body).to_bytes(4, "big")).decode()


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
    assert headers["x-amz-checksum-crc32c"] == crc32c_of(body)
    assert headers["content-md5"] == md5_of(body)
    assert headers["content-length"] == str(len(body))
    assert "x-amz-trailer" not in headers
    assert "transfer-encoding" not in headers
    assert "aws-chunked" not in headers.get("content-encoding", "")
    assert request.body == body


@pytest.mark.trio
@pytest.mark.parametrize(
    ("capabilities", "with_md5"), [(HONEST, False), (BY_HEAD, False), (BY_PUT, False), (BY_ETAG, True)]
)
async def test_a_put_has_an_md5_only_where_its_crc32c_does_not_prove_as_much(
    capabilities: StoreCapabilities, with_md5: bool, sent: list[Sent]
) -> None:
    objects = open_at("http://192.0.2.1", "bucket", AT_ONCE)
    objects.capabilities = capabilities
    with pytest.raises(StoreUnavailable):
        await objects.put("m/a", b"content")
    (request,) = sent
    assert ("content-md5" in headers_of(request)) == with_md5
    assert headers_of(request)["x-amz-checksum-crc32c"] == crc32c_of(b"content")


class Hashed:
    """How many bytes each checksum was calculated of."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: Counter[str] = Counter()
        for name in ("md5", "sha256"):
            monkeypatch.setattr(hashlib, name, self._counted(name, getattr(hashlib, name)))
        monkeypatch.setattr(crc32c, "crc32c", self._counted("crc32c", crc32c.crc32c))
        # botocore has names of its own for these.
        monkeypatch.setattr("botocore.auth.sha256", hashlib.sha256)

    def _counted(self, name: str, calculate: Callable[..., Any]) -> Callable[..., Any]:
        def counted(data: bytes = b"", *rest: Any, **named: Any) -> Any:  # noqa: ANN401
            self.sizes[name] += len(data)
            return calculate(data, *rest, **named)

        return counted


@pytest.mark.trio
@pytest.mark.parametrize("knows_crc32c", [True, False])
async def test_what_is_put_is_hashed_once(
    objects: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch, knows_crc32c: bool
) -> None:
    body = random.Random(1).randbytes(1024 * 1024)
    await objects.probe(f"{prefix}/probe")
    checksum = crc32c.crc32c(body) if knows_crc32c else None
    hashed = Hashed(monkeypatch)
    await objects.put(f"{prefix}/a", body, crc32c=checksum)
    assert hashed.sizes["md5"] == 0
    assert hashed.sizes["crc32c"] == (0 if knows_crc32c else len(body))
    # Over http the signature holds for the body, too.
    assert len(body) <= hashed.sizes["sha256"] < len(body) + 100_000


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
