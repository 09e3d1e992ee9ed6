"""Requests that are made without boto3 are the same as those that boto3 makes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from botocore.awsrequest import AWSPreparedRequest

from mirrorfs.objectstore.answers import Precondition
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.object_requests import ObjectRequests
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import Given, Script

BODY = b"content"
OTHER = "0123456789abcdef0123456789abcdef"
MD5 = hashlib.md5(BODY).digest()
# They tell one request from another, or of one try from the next; nobody decides anything by them.
OF_ONE_REQUEST = {"authorization", "x-amz-date", "amz-sdk-invocation-id", "amz-sdk-request", "expect", "user-agent"}
KEYS = ["m/a", "m/b c/\u00e9+&%=?#~/..", "m//double", "m/*'()!"]

REQUESTS: dict[str, Callable[[S3Client, str], object]] = {
    "put": lambda client, key: client.put_object(key, BODY, crc32c=7, md5=None),
    "put-of-a-file": lambda client, key: client.put_object(key, memoryview(BODY), crc32c=7, md5=None),
    "put-md5": lambda client, key: client.put_object(key, BODY, crc32c=None, md5=MD5),
    "put-nothing": lambda client, key: client.put_object(key, b"", crc32c=0, md5=MD5),
    "put-new": lambda client, key: client.put_object(key, BODY, crc32c=7, md5=None, precondition=Precondition(None)),
    "put-over": lambda client, key: client.put_object(key, BODY, crc32c=7, md5=None, precondition=Precondition(OTHER)),
    "head": lambda client, key: client.look(key),
    "get": lambda client, key: client.get_object(key, 1000),
}
OPTIONS = {
    "http": StoreOptions(endpoint_url="http://s3.example.org:8333"),
    "https": StoreOptions(endpoint_url="https://s3.example.org"),
    "virtual": StoreOptions(endpoint_url="https://s3.example.org", addressing_style="virtual"),
    "aws": StoreOptions(region="eu-central-1"),
    "below": StoreOptions(endpoint_url="https://example.org/s3"),
    "classes": StoreOptions(
        endpoint_url="http://s3.example.org",
        encryption="aws:kms",
        kms_key_id="alias/backups",
        storage_class="STANDARD",
        chunk_storage_class="STANDARD_IA",
    ),
}


@contextmanager
def made_by_boto_alone() -> Iterator[None]:
    """Nothing is learned of what boto3 does, so that it goes on doing it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectRequests, "_learn", lambda self, key: None)
        yield


def sent_by(script: Script, client: S3Client, ask: Callable[[S3Client, str], object], key: str) -> Any:  # noqa: ANN401
    bodies: list[bytes] = []
    answer = script.answer

    def answer_and_note(request: AWSPreparedRequest, body: bytes) -> Given:
        bodies.append(body)
        return answer(request, body)

    script.answer = answer_and_note
    ask(client, key)
    script.answer = answer
    request = script.requests[-1]
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in request.headers.items()
    }
    assert "mirrorfs/" in headers["user-agent"]
    told = {name: value for name, value in headers.items() if name not in OF_ONE_REQUEST}
    scope = headers["authorization"].split(",")[0]
    return request.method, request.url, bodies, scope, told


@pytest.mark.parametrize("options", OPTIONS)
def test_a_request_is_the_one_that_boto3_makes(script: Script, monkeypatch: pytest.MonkeyPatch, options: str) -> None:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    by_boto, client = (S3Client("bucket", OPTIONS[options]) for _ in range(2))
    script.always(200, {"content-length": "7"})
    REQUESTS["head"](client, "m/first")
    for name, ask in REQUESTS.items():
        script.always(200, {"content-length": "7"}, BODY if name == "get" else b"")
        for key in KEYS:
            with made_by_boto_alone():
                expected = sent_by(script, by_boto, ask, key)
            assert "amz-sdk-invocation-id" in script.requests[-1].headers
            found = sent_by(script, client, ask, key)
            assert "amz-sdk-invocation-id" not in script.requests[-1].headers
            if expected[1].startswith("https") and name in ("put", "put-of-a-file", "put-new", "put-over"):
                # boto3 does not see that a checksum which it is given protects a body as one that it calculates does.
                assert found[-1].pop("x-amz-content-sha256") == "UNSIGNED-PAYLOAD"
                assert expected[-1].pop("x-amz-content-sha256") == hashlib.sha256(BODY).hexdigest()
            assert found == expected, (name, key)


def test_a_session_token_is_sent(script: Script, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "a-token")
    script.always(200)
    client = S3Client("bucket", StoreOptions(endpoint_url="http://s3.example.org"))
    for _ in range(2):
        REQUESTS["put"](client, "m/a")
    tokens = [request.headers["X-Amz-Security-Token"] for request in script.requests]
    assert [token if isinstance(token, str) else token.decode() for token in tokens] == ["a-token", "a-token"]


def test_what_is_signed_otherwise_is_left_to_boto3(script: Script) -> None:
    script.always(200)
    client = S3Client("bucket", StoreOptions(endpoint_url="http://s3.example.org"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mirrorfs.objectstore.object_requests._SIGNED", _NEVER)
        for _ in range(3):
            REQUESTS["put"](client, "m/a")
    assert all("amz-sdk-invocation-id" in {name.lower() for name in one.headers} for one in script.requests)


class _Never:
    def match(self, text: str) -> None:
        del text


_NEVER = _Never()


@pytest.mark.trio
async def test_a_real_store_accepts_what_is_signed_without_boto3(objects: ObjectStore, prefix: str) -> None:
    await objects.probe(f"{prefix}/probe")
    for number, name in enumerate(("a b", "\u00e9+&%", "x'()*!~", "c=d?e#f")):
        body = bytes([number]) * 1000
        await objects.put(f"{prefix}/{name}", body)
        assert await objects.get(f"{prefix}/{name}", 1000) == body
