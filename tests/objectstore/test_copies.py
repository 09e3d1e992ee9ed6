"""A copy that the store makes counts only when it is proved, as an upload does."""

from __future__ import annotations

import contextlib
import hashlib

import crc32c
import pytest
import trio

from mirrorfs.objectstore.answers import CheckBeginning, PutReceipt, StoredObject
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.errors import (
    ConfirmationFailed,
    CopyUnsupported,
    ObjectMissing,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore, open_store
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import QUICK, open_at
from tests.objectstore.test_confirmation import EVERY_WAY, ForgetfulClient
from tests.objectstore.test_store import BY_ETAG, BY_HEAD, BY_PUT, BY_READING
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.fault_proxy import Fault, FaultProxy
from tests.stores.seaweedfs import StoreServer

pytestmark = pytest.mark.trio

BODY = b"content" * 100_000
_FAULTS_OF_A_COPY = (Fault.LOSE, Fault.DROP_BEFORE, Fault.DROP_AFTER, Fault.SERVER_ERROR, Fault.STALE_HEAD)


async def copy(
    objects: ObjectStore, source_key: str, key: str, body: bytes = BODY, *, gives_md5: bool = True
) -> StoredObject:
    """With the checksums that the body has."""
    md5 = hashlib.md5(body, usedforsecurity=False).digest()
    return await objects.copy(
        source_key, key, size=len(body), crc32c=crc32c.crc32c(body), body_md5=md5 if gives_md5 else None
    )


@pytest.mark.parametrize(
    ("capabilities", "gives_md5", "requests"),
    [
        (HONEST, True, ["PUT", "HEAD"]),
        (HONEST, False, ["PUT", "HEAD"]),
        (BY_HEAD, False, ["PUT", "HEAD"]),
        (BY_ETAG, True, ["PUT", "HEAD"]),
        (BY_ETAG, False, ["HEAD", "PUT", "HEAD"]),
        # The answer to a copy tells no checksum there.
        (BY_PUT, True, ["PUT", "HEAD", "GET"]),
        (BY_READING, True, ["PUT", "GET"]),
        (BY_READING, False, ["PUT", "GET"]),
    ],
)
async def test_a_copy_is_what_its_source_is_and_costs_what_it_must(
    fault_proxy: FaultProxy,
    store: StoreServer,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    capabilities: StoreCapabilities,
    gives_md5: bool,
    requests: list[str],
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    source_key, key = f"{prefix}/a b/é+&%/source", f"{prefix}/ü ?#/copy"
    await objects.put(source_key, BODY)
    await objects.put(key, b"what was there before")
    objects.capabilities = capabilities
    before, uploaded = len(fault_proxy.requests()), objects.uploaded_objects
    stored = await copy(objects, source_key, key, gives_md5=gives_md5)
    assert [seen.method for seen in fault_proxy.requests()[before:]] == requests
    assert (stored.key, stored.size, stored.crc32c) == (key, len(BODY), crc32c.crc32c(BODY))
    assert await objects.head(key) == stored
    assert store.access.client().get_object(Bucket=shared_bucket, Key=key)["Body"].read() == BODY
    assert objects.uploaded_objects == uploaded


@pytest.mark.parametrize("capabilities", EVERY_WAY)
async def test_there_is_no_copy_of_nothing(objects: ObjectStore, prefix: str, capabilities: StoreCapabilities) -> None:
    objects.capabilities = capabilities
    for gives_md5 in (True, False):
        with pytest.raises(ObjectMissing, match=f"copy {prefix}/none"):
            await copy(objects, f"{prefix}/none", f"{prefix}/a", gives_md5=gives_md5)


@pytest.mark.parametrize("capabilities", EVERY_WAY)
async def test_a_source_of_another_content_is_found_out(
    objects: ObjectStore, prefix: str, capabilities: StoreCapabilities
) -> None:
    objects.capabilities = capabilities
    await objects.put(f"{prefix}/source", b"content")
    with pytest.raises(ConfirmationFailed, match=f"copy {prefix}/source to {prefix}/a in bucket"):
        await copy(objects, f"{prefix}/source", f"{prefix}/a", b"Content")


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (405, "MethodNotAllowed"), (501, ""), (400, "NotSupported")]
)
async def test_a_store_that_cannot_copy_says_so_once(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, status: int, code: str
) -> None:
    fault_proxy.answer(status, code, "PUT")
    with pytest.raises(CopyUnsupported, match=f"copy {prefix}/source to {prefix}/a in bucket") as caught:
        await copy(open_at(fault_proxy.endpoint_url, shared_bucket), f"{prefix}/source", f"{prefix}/a")
    assert caught.value.code == (code or str(status))
    assert fault_proxy.count("PUT") == 1


async def test_another_refusal_is_not_taken_for_an_inability(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    fault_proxy.answer(400, "EntityTooLarge", "PUT")
    with pytest.raises(StoreRejected) as caught:
        await copy(open_at(fault_proxy.endpoint_url, shared_bucket), f"{prefix}/source", f"{prefix}/a")
    assert not isinstance(caught.value, CopyUnsupported)


@pytest.mark.parametrize("capabilities", EVERY_WAY)
async def test_a_copy_that_is_acknowledged_but_not_made_is_made_again(
    fault_proxy: FaultProxy,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    capabilities: StoreCapabilities,
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/source", BODY)
    await objects.put(f"{prefix}/a", BODY[:-1] + b"?")
    objects.capabilities = capabilities
    fault_proxy.lose(f"{prefix}/a", times=2)
    await copy(objects, f"{prefix}/source", f"{prefix}/a")
    assert fault_proxy.count_injected(Fault.LOSE) == 2
    assert await objects.get(f"{prefix}/a", ENOUGH) == BODY


async def test_a_copy_whose_answer_is_lost_is_made_again(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/source", BODY)
    fault_proxy.drop_after("PUT", f"{prefix}/a", times=1)
    await copy(objects, f"{prefix}/source", f"{prefix}/a")
    assert fault_proxy.count("PUT", f"{prefix}/a") == 2
    assert await objects.get(f"{prefix}/a", ENOUGH) == BODY


async def test_where_a_head_is_stale_the_bytes_decide(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/source", BODY)
    objects.capabilities = HONEST
    fault_proxy.stale_head(100.0, f"{prefix}/a")
    await copy(objects, f"{prefix}/source", f"{prefix}/a")
    assert fault_proxy.count_injected(Fault.STALE_HEAD) == 1
    assert (fault_proxy.count("PUT", f"{prefix}/a"), fault_proxy.count("GET", f"{prefix}/a")) == (1, 1)


async def test_a_source_that_was_put_in_parts_proves_nothing_by_its_etag(
    fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str, prefix: str, credentials: None
) -> None:
    client, key = store.access.client(), f"{prefix}/source"
    upload = client.create_multipart_upload(Bucket=shared_bucket, Key=key)["UploadId"]
    part = client.upload_part(Bucket=shared_bucket, Key=key, UploadId=upload, PartNumber=1, Body=BODY)
    client.complete_multipart_upload(
        Bucket=shared_bucket,
        Key=key,
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = BY_ETAG
    await copy(objects, key, f"{prefix}/a", gives_md5=False)
    assert [seen.method for seen in fault_proxy.requests()] == ["HEAD", "PUT", "HEAD", "GET"]


class ForgetfulCopier(ForgetfulClient):
    """Keeps the first `lies` copies damaged, and tells no CRC32C of any of them."""

    def __init__(self, lies: int) -> None:
        super().__init__(0)
        self.held["m/source"] = b"content"
        self.copies = self.gets = 0
        self.copy_lies = lies

    def copy_object(self, source_key: str, key: str) -> PutReceipt:
        self.copies += 1
        body = self.held[source_key]
        self.held[key] = body if self.copies > self.copy_lies else body[:-1] + b"?"
        return PutReceipt(hashlib.md5(body).hexdigest(), None)

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        self.gets += 1
        return super().get_object(key, maximum, check_beginning)

    def head_object(self, key: str) -> StoredObject | None:
        found = super().head_object(key)
        return None if found is None else StoredObject(found.key, found.size, found.etag, None)


@pytest.mark.parametrize("capabilities", EVERY_WAY)
@pytest.mark.parametrize("gives_md5", [True, False])
async def test_a_damaged_copy_is_found_out(capabilities: StoreCapabilities, gives_md5: bool) -> None:
    client = ForgetfulCopier(lies=1)
    objects = ObjectStore(client, capabilities=capabilities, patience=QUICK)
    await copy(objects, "m/source", "m/a", b"content", gives_md5=gives_md5)
    assert client.copies == 2
    assert client.held["m/a"] == b"content"


async def test_where_copies_have_no_checksum_the_etag_proves_them() -> None:
    client = ForgetfulCopier(lies=0)
    objects = ObjectStore(client, capabilities=HONEST, patience=QUICK)
    await copy(objects, "m/source", "m/a", b"content")
    assert (client.copies, client.gets) == (1, 0)
    await copy(objects, "m/source", "m/a", b"content", gives_md5=False)
    assert (client.copies, client.gets) == (2, 1)


async def test_the_observer_sees_a_copy_as_a_put(
    store: StoreServer, shared_bucket: str, prefix: str, credentials: None
) -> None:
    steps: list[tuple[str, str]] = []
    objects = open_store(
        shared_bucket,
        StoreOptions(endpoint_url=store.endpoint_url),
        observer=lambda step, key: steps.append((step, key.removeprefix(prefix))),
    )
    await objects.put(f"{prefix}/source", BODY)
    steps.clear()
    await copy(objects, f"{prefix}/source", f"{prefix}/a")
    assert steps == [("before-put", "/a"), ("after-put", "/a")]


async def test_a_storm_neither_loses_nor_damages_a_copy(
    fault_proxy: FaultProxy, store: StoreServer, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket, parallelism=8)
    objects.capabilities = HONEST
    bodies = {f"{prefix}/{number}": f"content {number}".encode() * 100 for number in range(16)}
    for key, body in bodies.items():
        await objects.put(f"{key}-source", body)
        await objects.put(key, body[::-1])
    fault_proxy.storm(7, _FAULTS_OF_A_COPY, probability=0.4)

    async def copy_at_last(key: str, body: bytes) -> None:
        while True:
            with contextlib.suppress(ConfirmationFailed):
                await copy(objects, f"{key}-source", key, body)
                return

    async with trio.open_nursery() as nursery:
        for key, body in bodies.items():
            nursery.start_soon(copy_at_last, key, body)
    fault_proxy.clear()
    assert sum(fault_proxy.injected.values()) > 5
    for key, body in bodies.items():
        assert store.access.client().get_object(Bucket=shared_bucket, Key=key)["Body"].read() == body


@pytest.mark.parametrize(
    ("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument"), (403, "AccessDenied"), (500, "")]
)
async def test_the_probe_finds_that_a_store_does_not_copy(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, status: int, code: str
) -> None:
    fault_proxy.answer(status, code, "PUT", "*/probe-copy")
    capabilities = await open_at(fault_proxy.endpoint_url, shared_bucket).probe(f"{prefix}/probe")
    assert not capabilities.copies
    assert capabilities.rejects_wrong_crc32c


async def test_the_probe_finds_that_copies_are_not_kept(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    fault_proxy.lose("*/probe-copy")
    assert not (await open_at(fault_proxy.endpoint_url, shared_bucket).probe(f"{prefix}/probe")).copies


async def test_the_probe_is_not_misled_by_a_copy_that_fails_once(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    fault_proxy.answer(500, "InternalError", "PUT", "*/probe-copy", times=1)
    fault_proxy.lose("*/probe-copy", times=1)
    assert (await open_at(fault_proxy.endpoint_url, shared_bucket).probe(f"{prefix}/probe")).copies


async def test_the_probe_of_who_will_not_wait_fails_with_the_store(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    fault_proxy.answer(503, "ServiceUnavailable", "PUT", "*/probe-copy")
    fault_proxy.answer(503, "ServiceUnavailable", "GET", "")
    with pytest.raises(StoreUnavailable):
        await open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE).probe(f"{prefix}/probe")
