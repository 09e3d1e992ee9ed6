"""Storing, reading, listing and deleting, against a real SeaweedFS."""

from __future__ import annotations

import os
import random
from contextlib import aclosing

import pytest
import trio

from mirrorfs.objectstore.capabilities import Confirmation, StoreCapabilities
from mirrorfs.objectstore.errors import ObjectMissing, StoreReason, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore, open_store
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import open_at, use_credentials
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer, running_seaweedfs

pytestmark = pytest.mark.trio

BY_ETAG = StoreCapabilities(False, True, False, False, True)
BY_HEAD = StoreCapabilities(True, True, False, True, False)
BY_PUT = StoreCapabilities(True, True, True, False, False)
BY_READING = StoreCapabilities(False, False, False, False, False)


async def keys_of(objects: ObjectStore, prefix: str) -> dict[str, int]:
    async with aclosing(objects.list(prefix)) as found:
        return {one.key: one.size async for one in found}


async def test_the_probe_sees_what_seaweedfs_honours_and_leaves_nothing(
    objects: ObjectStore, store: StoreServer, shared_bucket: str, prefix: str
) -> None:
    assert await objects.probe(f"{prefix}/.mirrorfs/probe") == HONEST
    assert objects.capabilities == HONEST
    assert HONEST.confirmation is Confirmation.HEAD_CHECKSUM
    assert store.access.keys(shared_bucket, prefix) == []


async def test_the_probe_is_not_misled_by_one_object_that_is_lost_or_seen_late(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    fault_proxy.lose("*/probe-right", times=1)
    fault_proxy.stale_head(100.0, times=2)
    assert await open_at(fault_proxy.endpoint_url, shared_bucket).probe(f"{prefix}/probe") == HONEST
    assert fault_proxy.count("PUT", "*/probe-right") > 1


@pytest.mark.parametrize("size", [0, 1, 4096, 5 * 1024 * 1024 + 3])
async def test_what_was_put_is_what_is_got(
    objects: ObjectStore, store: StoreServer, shared_bucket: str, prefix: str, size: int
) -> None:
    objects.capabilities = HONEST
    body = random.Random(size).randbytes(size)
    key = f"{prefix}/a b/é+&%/{size}"
    stored = await objects.put(key, body)
    assert (stored.key, stored.size) == (key, size)
    assert await objects.get(key, ENOUGH) == body
    assert await objects.head(key) == stored
    assert store.access.client().get_object(Bucket=shared_bucket, Key=key)["Body"].read() == body
    assert (objects.uploaded_objects, objects.uploaded_bytes) == (1, size)


async def test_an_object_is_replaced(objects: ObjectStore, prefix: str) -> None:
    await objects.put(f"{prefix}/a", b"old and long")
    await objects.put(f"{prefix}/a", b"new")
    assert await objects.get(f"{prefix}/a", ENOUGH) == b"new"


async def test_a_missing_object_is_none_to_head_and_an_error_to_get(objects: ObjectStore, prefix: str) -> None:
    assert await objects.head(f"{prefix}/none") is None
    with pytest.raises(ObjectMissing, match=f"read {prefix}/none from bucket"):
        await objects.get(f"{prefix}/none", ENOUGH)


async def test_a_missing_bucket_is_not_taken_for_a_missing_object(store: StoreServer, credentials: None) -> None:
    objects = open_at(store.endpoint_url, "no-such-bucket-here", AT_ONCE)
    with pytest.raises(StoreUnavailable) as caught:
        await objects.head("a/b")
    assert caught.value.reason is StoreReason.BUCKET_MISSING


async def test_a_listing_of_many_pages_is_complete_and_deleting_takes_them_all(
    objects: ObjectStore, store: StoreServer, prefix: str
) -> None:
    objects.capabilities = HONEST
    wanted = {f"{prefix}/{number % 7}/{number}": number % 3 for number in range(1100)}
    async with trio.open_nursery() as nursery:
        for key, size in wanted.items():
            nursery.start_soon(objects.put, key, b"x" * size)
    await objects.put(f"{prefix}-beside", b"stays")
    assert await keys_of(objects, f"{prefix}/") == wanted
    assert await keys_of(objects, f"{prefix}/3/") == {
        key: size for key, size in wanted.items() if key.startswith(f"{prefix}/3/")
    }
    await objects.delete([*wanted, f"{prefix}/never-was"])
    assert await keys_of(objects, prefix) == {f"{prefix}-beside": 5}


async def test_deleting_nothing_asks_nothing(fault_proxy: FaultProxy, shared_bucket: str, credentials: None) -> None:
    await open_at(fault_proxy.endpoint_url, shared_bucket).delete([])
    assert fault_proxy.requests() == []


@pytest.mark.parametrize(
    ("capabilities", "confirmation", "requests"),
    [
        (HONEST, Confirmation.HEAD_CHECKSUM, ["PUT", "HEAD"]),
        (BY_HEAD, Confirmation.HEAD_CHECKSUM, ["PUT", "HEAD"]),
        (BY_ETAG, Confirmation.ETAG_MD5, ["PUT", "HEAD"]),
        (BY_PUT, Confirmation.PUT_CHECKSUM, ["PUT", "HEAD"]),
        (BY_READING, Confirmation.READ_BACK, ["PUT", "GET"]),
    ],
)
async def test_each_way_of_confirming_costs_what_it_must(
    fault_proxy: FaultProxy,
    shared_bucket: str,
    prefix: str,
    credentials: None,
    capabilities: StoreCapabilities,
    confirmation: Confirmation,
    requests: list[str],
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = capabilities
    assert capabilities.confirmation is confirmation
    await objects.put(f"{prefix}/a", b"content")
    assert [seen.method for seen in fault_proxy.requests()] == requests


async def test_the_observer_sees_each_step_in_order(
    store: StoreServer, shared_bucket: str, prefix: str, credentials: None
) -> None:
    steps: list[tuple[str, str]] = []
    objects = open_store(
        shared_bucket,
        StoreOptions(endpoint_url=store.endpoint_url),
        observer=lambda step, key: steps.append((step, key.removeprefix(prefix))),
    )
    await objects.put(f"{prefix}/a", b"content")
    await objects.delete([f"{prefix}/a", f"{prefix}/b"])
    assert steps == [
        ("before-put", "/a"),
        ("after-put", "/a"),
        ("before-delete", "/a"),
        ("before-delete", "/b"),
        ("after-delete", "/a"),
        ("after-delete", "/b"),
    ]


async def test_no_more_requests_are_under_way_than_allowed(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket, parallelism=3)
    objects.capabilities = HONEST
    rule = fault_proxy.hold("PUT")
    async with trio.open_nursery() as nursery:
        for number in range(9):
            nursery.start_soon(objects.put, f"{prefix}/{number}", b"content")
        assert await trio.to_thread.run_sync(fault_proxy.wait_until_waiting, 3, "PUT")
        # Time for a fourth one to show up.
        await trio.sleep(0.2)
        assert fault_proxy.waiting("PUT") == 3
        rule.release()
    assert fault_proxy.count("PUT") == 9


async def test_everything_works_over_tls(monkeypatch: pytest.MonkeyPatch) -> None:
    with running_seaweedfs(tls=True) as server:
        use_credentials(server, monkeypatch)
        bucket = server.create_bucket()
        objects = open_at(server.endpoint_url, bucket)
        assert await objects.probe("m/probe") == HONEST
        body = os.urandom(300_000)
        stored = await objects.put("m/a", body)
        assert await objects.head("m/a") == stored
        assert await objects.get("m/a", ENOUGH) == body
        await objects.delete(["m/a"])
        assert await keys_of(objects, "m/") == {}

        monkeypatch.delenv("AWS_CA_BUNDLE")
        with pytest.raises(StoreUnavailable) as caught:
            await open_at(server.endpoint_url, bucket, AT_ONCE).get("m/a", ENOUGH)
        assert caught.value.reason is StoreReason.TLS_FAILED
