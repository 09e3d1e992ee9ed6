"""An upload counts only when it is proved. The stores that lie here are invented: no real one lies on demand."""

from __future__ import annotations

import dataclasses
import hashlib
import random
import time
from typing import Any

import crc32c
import pytest
import trio
import trio.testing

from mirrorfs.datastore.content import Content
from mirrorfs.objectstore.answers import CheckBeginning, Precondition, PutReceipt, StoredObject
from mirrorfs.objectstore.capabilities import Confirmation, StoreCapabilities
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import ConfirmationFailed, ObjectMissing
from mirrorfs.objectstore.retry import AT_ONCE, Patience
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import QUICK, open_at
from tests.objectstore.test_store import BY_ETAG, BY_HEAD, BY_PUT, BY_READING
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.fault_proxy import Fault, FaultProxy
from tests.stores.seaweedfs import StoreServer

pytestmark = pytest.mark.trio

EVERY_WAY = [HONEST, BY_ETAG, BY_HEAD, BY_PUT, BY_READING]


class ForgetfulClient(S3Client):
    """Acknowledges every PUT with all that was sent, but keeps the first `lies` of them damaged, or not at all."""

    def __init__(self, lies: int, loses: bool = False) -> None:
        super().__init__("bucket", StoreOptions(endpoint_url="http://127.0.0.1:9"))
        self.lies = lies
        self.loses = loses
        self.puts = 0
        self.held: dict[str, bytes] = {}

    def put_object(
        self,
        key: str,
        body: Content,
        *,
        crc32c: int | None,
        md5: bytes | None,
        precondition: Precondition | None = None,
    ) -> PutReceipt:
        self.puts += 1
        if self.puts > self.lies:
            self.held[key] = bytes(body)
        elif not self.loses:
            # Of the right size, so that only a checksum can tell.
            self.held[key] = bytes(body)[:-1] + b"?"
        return PutReceipt(hashlib.md5(body).hexdigest(), crc32c)

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        if key not in self.held:
            raise ObjectMissing(f"read {key} from {self.place}", "there is no such object")
        return self.held[key]

    def head_object(self, key: str) -> StoredObject | None:
        body = self.held.get(key)
        return (
            None if body is None else StoredObject(key, len(body), hashlib.md5(body).hexdigest(), crc32c.crc32c(body))
        )


@pytest.mark.parametrize("capabilities", EVERY_WAY)
@pytest.mark.parametrize("loses", [False, True])
async def test_a_store_that_goes_on_lying_is_found_out(capabilities: StoreCapabilities, loses: bool) -> None:
    client = ForgetfulClient(lies=1000, loses=loses)
    objects = ObjectStore(client, capabilities=capabilities, patience=QUICK)
    with pytest.raises(ConfirmationFailed, match="Could not store m/a in bucket"):
        await objects.put("m/a", b"content")
    assert 1 < client.puts < 10
    assert objects.uploaded_objects == 0


@pytest.mark.parametrize("capabilities", EVERY_WAY)
@pytest.mark.parametrize("loses", [False, True])
async def test_a_store_that_lied_once_gets_the_object_again(capabilities: StoreCapabilities, loses: bool) -> None:
    client = ForgetfulClient(lies=1, loses=loses)
    stored = await ObjectStore(client, capabilities=capabilities, patience=QUICK).put("m/a", b"content")
    assert client.puts == 2
    assert client.held == {"m/a": b"content"}
    assert stored.size == 7


async def test_tries_of_one_upload_lie_apart(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A hiccup of some seconds must not use all of them up. Waits are drawn from 0 on: chance could make all short.
    seeded = random.Random(1)
    monkeypatch.setattr("mirrorfs.objectstore.retry.random.Random", lambda: seeded)
    client = ForgetfulClient(lies=1000, loses=True)
    started = trio.current_time()
    with pytest.raises(ConfirmationFailed):
        await ObjectStore(client, patience=Patience(first=100.0, ceiling=100.0)).put("m/a", b"content")
    assert trio.current_time() - started > 100


async def test_who_will_not_wait_does_not(autojump_clock: trio.testing.MockClock) -> None:
    client = ForgetfulClient(lies=1000, loses=True)
    started = trio.current_time()
    with pytest.raises(ConfirmationFailed):
        await ObjectStore(client, patience=AT_ONCE).put("m/a", b"content")
    assert trio.current_time() == started


@pytest.mark.parametrize("capabilities", EVERY_WAY)
async def test_a_put_that_is_acknowledged_but_not_stored_is_sent_again(
    fault_proxy: FaultProxy,
    store: StoreServer,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    capabilities: StoreCapabilities,
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = capabilities
    await objects.put(f"{prefix}/a", b"the old one")
    fault_proxy.lose(times=2)
    await objects.put(f"{prefix}/a", b"the new one")
    assert fault_proxy.injected == {"lose": 2}
    answer = store.access.client().get_object(Bucket=shared_bucket, Key=f"{prefix}/a")
    assert answer["Body"].read() == b"the new one"


@pytest.mark.parametrize("capabilities", EVERY_WAY[:-1])
@pytest.mark.parametrize("is_new", [True, False])
async def test_where_a_head_is_stale_the_bytes_decide(
    fault_proxy: FaultProxy,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    capabilities: StoreCapabilities,
    is_new: bool,
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = capabilities
    if not is_new:
        await objects.put(f"{prefix}/a", b"the old one")
    before = fault_proxy.count("PUT")
    # Only just as old as to show what was there before this test's last PUT.
    rule = fault_proxy.stale_head(100.0 if is_new else 0.2)
    await trio.sleep(0.0 if is_new else 0.3)
    await objects.put(f"{prefix}/a", b"the new one")
    rule.release()
    assert fault_proxy.count_injected(Fault.STALE_HEAD) == 1
    assert fault_proxy.count("PUT") == before + 1
    assert fault_proxy.count("GET", f"{prefix}/a") == 1
    assert await objects.get(f"{prefix}/a", ENOUGH) == b"the new one"


class BackwardClient(ForgetfulClient):
    """Its HEAD shows an object of the same content that was put some seconds before the PUT, and is gone."""

    def __init__(self, seconds: float) -> None:
        super().__init__(lies=1, loses=True)
        self.seconds = seconds
        self.gets = 0

    def put_object(
        self,
        key: str,
        body: Content,
        *,
        crc32c: int | None,
        md5: bytes | None,
        precondition: Precondition | None = None,
    ) -> PutReceipt:
        receipt = super().put_object(key, body, crc32c=crc32c, md5=md5)
        return dataclasses.replace(receipt, began_at=1000.0)

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        self.gets += 1
        return super().get_object(key, maximum, check_beginning)

    def head_object(self, key: str) -> StoredObject:
        etag = hashlib.md5(b"content").hexdigest()
        return StoredObject(key, 7, etag, crc32c.crc32c(b"content"), 1000.0 - self.seconds)


@pytest.mark.parametrize("capabilities", EVERY_WAY[:3])
@pytest.mark.parametrize(("seconds", "puts", "gets"), [(3.0, 2, 2), (1.0, 1, 0), (-1.0, 1, 0)])
async def test_an_older_object_of_the_same_content_proves_nothing(
    capabilities: StoreCapabilities, seconds: float, puts: int, gets: int
) -> None:
    client = BackwardClient(seconds)
    await ObjectStore(client, capabilities=capabilities, patience=QUICK).put("m/a", b"content")
    assert (client.puts, client.gets) == (puts, gets)


class ForgetsChecksums(ForgetfulClient):
    """Honours CRC32C as it was probed, and tells of none any more."""

    def head_object(self, key: str) -> StoredObject | None:
        head = super().head_object(key)
        return None if head is None else dataclasses.replace(head, crc32c=None)

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        raise AssertionError(f"{key} is read though its MD5 tells all")


async def test_an_md5_proves_what_was_put_where_a_head_has_no_checksum_for_once() -> None:
    client = ForgetsChecksums(lies=0)
    await ObjectStore(client, capabilities=HONEST, patience=QUICK).put("m/a", b"content")
    assert client.puts == 1


async def test_a_store_tells_when_a_put_began_and_when_the_object_was_put(
    store: StoreServer, shared_bucket: str, prefix: str, credentials: None
) -> None:
    client = S3Client(shared_bucket, StoreOptions(endpoint_url=store.endpoint_url))
    before = time.time()
    receipt = client.put_object(f"{prefix}/a", b"content", crc32c=None, md5=None)
    after = time.time()
    head = client.head_object(f"{prefix}/a")
    assert head is not None
    assert head.modified_at is not None
    assert receipt.began_at is not None
    # All in whole seconds, rounded down.
    assert before - 2 < receipt.began_at <= after
    assert before - 2 < head.modified_at <= after + 1


async def test_an_unknown_store_is_read_back() -> None:
    client = ForgetfulClient(lies=0)
    objects = ObjectStore(client)
    assert objects.capabilities.confirmation is Confirmation.READ_BACK
    await objects.put("m/a", b"content")


@pytest.mark.parametrize("field", ["put_returns_crc32c", "head_returns_crc32c"])
async def test_a_checksum_that_is_only_echoed_proves_nothing(field: str) -> None:
    changes: dict[str, Any] = {field: True}
    echoing = dataclasses.replace(BY_READING, **changes)
    assert echoing.confirmation is Confirmation.READ_BACK
