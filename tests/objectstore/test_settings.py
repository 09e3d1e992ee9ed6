"""What is set about a store reaches the wire."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreReason, StoreUnavailable
from mirrorfs.objectstore.url import StoreOptions, parse_url
from tests.objectstore.conftest import Script, use_credentials
from tests.stores.seaweedfs import StoreServer

ENDPOINT = "http://s3.example.org"
COPIED = b"<CopyObjectResult><ETag>x</ETag></CopyObjectResult>"


def headers_of_last(script: Script) -> dict[str, str]:
    return {
        name.lower(): value.decode() if isinstance(value, bytes) else str(value)
        for name, value in script.requests[-1].headers.items()
    }


def client_with(bucket: str = "bucket", **settings: Any) -> S3Client:  # noqa: ANN401
    options = StoreOptions(endpoint_url=ENDPOINT, **settings)
    return S3Client(bucket, options, is_chunk=lambda key: key.startswith("m/.chunks/"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"encryption": "AES256"}, {"x-amz-server-side-encryption": "AES256"}),
        (
            {"encryption": "aws:kms:dsse", "kms_key_id": "alias/b"},
            {
                "x-amz-server-side-encryption": "aws:kms:dsse",
                "x-amz-server-side-encryption-aws-kms-key-id": "alias/b",
            },
        ),
        ({"storage_class": "STANDARD"}, {"x-amz-storage-class": "STANDARD"}),
    ],
)
@pytest.mark.parametrize("copies", [False, True])
def test_what_a_new_object_gets_is_asked_for_also_of_a_copy(
    script: Script,
    settings: Any,  # noqa: ANN401
    expected: dict[str, str],
    copies: bool,
) -> None:
    client = client_with(**settings)
    script.always(200, {}, COPIED if copies else b"")
    if copies:
        client.copy_object("m/a", "m/b")
    else:
        client.put_object("m/a", b"content", crc32c=None, md5=None)
    sent = headers_of_last(script)
    assert {name: value for name, value in sent.items() if "encryption" in name or "storage" in name} == expected


def test_a_copy_of_a_chunk_gets_the_class_of_chunks(script: Script) -> None:
    script.always(200, {}, COPIED)
    client_with(chunk_storage_class="STANDARD_IA", storage_class="STANDARD").copy_object("m/x", "m/.chunks/b")
    assert headers_of_last(script)["x-amz-storage-class"] == "STANDARD_IA"


def test_the_region_is_signed(script: Script) -> None:
    script.always(200)
    client_with(region="eu-west-3").put_object("m/a", b"content", crc32c=None, md5=None)
    assert "/eu-west-3/s3/aws4_request" in headers_of_last(script)["authorization"]


def test_the_profile_has_the_keys(script: Script, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "credentials"
    path.write_text("[backups]\naws_access_key_id = AKIABACKUPS\naws_secret_access_key = secret\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    script.always(200)
    client_with(profile="backups").put_object("m/a", b"content", crc32c=None, md5=None)
    assert "Credential=AKIABACKUPS/" in headers_of_last(script)["authorization"]


@pytest.mark.parametrize("bucket", ["Old_Bucket", "UPPER", "a..b", "under_score.and.dot", "x" * 200])
@pytest.mark.parametrize("style", [None, "auto", "path"])
def test_a_bucket_of_an_old_store_is_addressed_in_the_path(script: Script, bucket: str, style: Any) -> None:  # noqa: ANN401
    assert parse_url(f"s3://{bucket}/m").bucket == bucket
    script.always(200)
    client_with(bucket, addressing_style=style).put_object("m/a", b"content", crc32c=None, md5=None)
    assert script.requests[-1].url == f"{ENDPOINT}/{bucket}/m/a"


def test_a_storage_class_stands_at_the_object(
    store: StoreServer, shared_bucket: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_credentials(store, monkeypatch)
    options = StoreOptions(
        endpoint_url=store.endpoint_url, chunk_storage_class="STANDARD_IA", storage_class="REDUCED_REDUNDANCY"
    )
    client = S3Client(shared_bucket, options, is_chunk=lambda key: key.endswith("/chunk"))
    for name, expected in (("chunk", "STANDARD_IA"), ("rest", "REDUCED_REDUNDANCY")):
        client.put_object(f"{prefix}/{name}", b"content", crc32c=None, md5=None)
        found = store.access.client().head_object(Bucket=shared_bucket, Key=f"{prefix}/{name}")
        assert found["StorageClass"] == expected


# -- time-outs


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A listener that the kernel connects to, and that nobody serves."""
    with socket.create_server(("127.0.0.1", 0), backlog=1) as listener:
        yield listener


@pytest.fixture
def full(silent: socket.socket) -> Iterator[socket.socket]:
    """One with as many waiting as it takes: others are not connected."""
    silent.listen(0)
    waiting: list[socket.socket] = []
    try:
        for _ in range(8):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(silent.getsockname())
            waiting.append(one)
        yield silent
    finally:
        for one in waiting:
            one.close()


def failure_at(listener: socket.socket, **settings: Any) -> StoreUnavailable:  # noqa: ANN401
    host, port = listener.getsockname()
    client = S3Client("bucket", StoreOptions(endpoint_url=f"http://{host}:{port}", **settings))
    with pytest.raises(StoreUnavailable) as caught:
        client.put_object("m/a", b"content", crc32c=None, md5=None)
    assert caught.value.reason is StoreReason.UNREACHABLE
    return caught.value


# The other time-outs are longer than any test may take.
def test_a_silence_ends_with_the_time_out_for_reading(silent: socket.socket, keys: None) -> None:
    error = failure_at(silent, read_timeout=0.3, connect_timeout=3000.0, request_timeout=3000.0)
    assert "no answer in time" in error.cause
    assert error.may_be_done


def test_a_connection_that_is_not_made_ends_with_the_time_out_for_it(full: socket.socket, keys: None) -> None:
    error = failure_at(full, connect_timeout=0.3, read_timeout=3000.0, request_timeout=3000.0)
    assert "no answer in time" in error.cause
    assert not error.may_be_done
