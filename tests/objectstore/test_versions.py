"""Versioned buckets, Object Lock, and the store's clock; against a SeaweedFS, which enforces locks."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import pytest
import trio
from botocore.exceptions import ClientError

import mirrorfs.objectstore.transport
from mirrorfs.objectstore.answers import StoredVersion
from mirrorfs.objectstore.capabilities import LockMode, ObjectLockRule
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import (
    ObjectLocked,
    ObjectMissing,
    StoreError,
    StoreReason,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import QUICK, open_at
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer

if TYPE_CHECKING:
    from mypy_boto3_s3.type_defs import DefaultRetentionTypeDef

pytestmark = pytest.mark.trio

DAY = 86400.0


async def versions_of(objects: ObjectStore, prefix: str) -> list[StoredVersion]:
    async with aclosing(objects.list_versions(prefix)) as found:
        return [one async for one in found]


@pytest.fixture
def versioned(store: StoreServer, credentials: None) -> ObjectStore:
    return open_at(store.endpoint_url, store.create_bucket(versioned=True))


@pytest.fixture
def locked(fault_proxy: FaultProxy, store: StoreServer, credentials: None) -> ObjectStore:
    return open_at(fault_proxy.endpoint_url, store.create_bucket(locked=True))


async def test_all_versions_are_listed_and_can_be_read(versioned: ObjectStore) -> None:
    began = time.time()
    await versioned.put("m/é b+&%/a", b"first")
    await versioned.put("m/é b+&%/a", b"the second")
    await versioned.delete(["m/é b+&%/a"])
    await versioned.put("m/b", b"other")
    await versioned.put("n/c", b"elsewhere")
    found = await versions_of(versioned, "m/")
    assert all(began - 2 < one.modified_at < time.time() + 2 for one in found)
    assert len({one.version_id for one in found}) == 4
    bodies = {}
    for one in found:
        if one.is_delete_marker:
            assert (one.key, one.size, one.etag, one.is_latest) == ("m/é b+&%/a", 0, "", True)
            with pytest.raises(ObjectMissing):
                await versioned.get(one.key, ENOUGH, one.version_id)
        else:
            body = await versioned.get(one.key, ENOUGH, one.version_id)
            assert one.size == len(body)
            bodies[body] = (one.key, one.is_latest)
    assert bodies == {b"first": ("m/é b+&%/a", False), b"the second": ("m/é b+&%/a", False), b"other": ("m/b", True)}
    with pytest.raises(ObjectMissing):
        await versioned.get("m/é b+&%/a", ENOUGH)
    with pytest.raises(ObjectMissing):
        await versioned.get("m/b", ENOUGH, "0" * 32)


async def test_a_listing_of_versions_of_many_pages_is_complete(versioned: ObjectStore) -> None:
    versioned.capabilities = HONEST

    async def put_twice(key: str) -> None:
        await versioned.put(key, b"1")
        await versioned.put(key, b"22")

    keys = [f"m/{number % 7}/{number}" for number in range(520)]
    async with trio.open_nursery() as nursery:
        for key in keys:
            nursery.start_soon(put_twice, key)
    await versioned.delete(keys[:100])
    found = await versions_of(versioned, "m/")
    assert len(found) == len(set(found)) == 2 * 520 + 100
    assert {(one.key, one.size) for one in found if not one.is_delete_marker} == {
        (key, size) for key in keys for size in (1, 2)
    }
    assert {one.key for one in found if one.is_delete_marker} == set(keys[:100])
    assert {one.key for one in found if one.is_latest and not one.is_delete_marker} == set(keys[100:])


async def test_where_there_never_were_versions_there_is_one_of_each(objects: ObjectStore, prefix: str) -> None:
    await objects.put(f"{prefix}/a", b"first")
    await objects.put(f"{prefix}/a", b"the second")
    (version,) = await versions_of(objects, f"{prefix}/")
    assert (version.key, version.size, version.is_latest) == (f"{prefix}/a", 10, True)
    assert await objects.get(version.key, ENOUGH, version.version_id) == b"the second"
    assert await versions_of(objects, f"{prefix}/none") == []


async def test_a_store_without_versions_says_so(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    fault_proxy.answer(501, "NotImplemented", "GET", "")
    with pytest.raises(StoreRejected, match=r"list the versions of .* in bucket .* NotImplemented.* keeps only"):
        await versions_of(open_at(fault_proxy.endpoint_url, shared_bucket), f"{prefix}/")


async def test_a_store_that_lists_something_else_is_found_out(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/a", b"content")
    body = b"<ListBucketResult><Contents><Key>a</Key></Contents></ListBucketResult>"
    fault_proxy.answer(200, "", "GET", "", times=1, body=body)
    with pytest.raises(StoreRejected, match="another kind of listing"):
        await versions_of(objects, f"{prefix}/")


@pytest.mark.parametrize("marker", ["", "<NextKeyMarker>m/a</NextKeyMarker>"])
async def test_a_listing_of_versions_that_breaks_off_or_stands_still_is_found_out(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, marker: str
) -> None:
    body = f"<ListVersionsResult><IsTruncated>true</IsTruncated>{marker}</ListVersionsResult>".encode()
    fault_proxy.answer(200, "", "GET", "", body=body)
    with pytest.raises(StoreRejected, match="breaks the listing off"):
        await versions_of(open_at(fault_proxy.endpoint_url, shared_bucket), "m/")
    assert fault_proxy.count("GET") == (2 if marker else 1)


@pytest.mark.parametrize(
    ("default", "rule"),
    [
        (None, ObjectLockRule(None, None)),
        ({"Mode": "GOVERNANCE", "Days": 3}, ObjectLockRule("GOVERNANCE", 3 * DAY)),
        ({"Mode": "COMPLIANCE", "Years": 2}, ObjectLockRule("COMPLIANCE", 2 * 365 * DAY)),
    ],
)
async def test_the_probe_sees_object_lock_and_is_not_stopped_by_it(
    store: StoreServer, credentials: None, default: DefaultRetentionTypeDef | None, rule: ObjectLockRule
) -> None:
    bucket = store.create_bucket(locked=True)
    if default is not None:
        store.access.client().put_object_lock_configuration(
            Bucket=bucket,
            ObjectLockConfiguration={"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": default}},
        )
    objects = open_at(store.endpoint_url, bucket)
    for _ in range(2):
        capabilities = await objects.probe("m/probe")
        assert capabilities.object_lock == rule
        assert capabilities.versioned
        assert capabilities.copies
        assert store.access.keys(bucket) == []


async def test_the_probe_sees_versions_without_locks(versioned: ObjectStore) -> None:
    capabilities = await versioned.probe("m/probe")
    assert (capabilities.versioned, capabilities.object_lock) == (True, None)


async def test_the_probe_takes_suspended_versioning_for_none(store: StoreServer, credentials: None) -> None:
    bucket = store.create_bucket(versioned=True)
    store.access.client().put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": "Suspended"})
    assert not (await open_at(store.endpoint_url, bucket).probe("m/probe")).versioned


class SilentClient(S3Client):
    """Fails with an error, some times, when asked for versions or locks."""

    def __init__(self, store: StoreServer, bucket: str, error: StoreError, failures: int) -> None:
        super().__init__(bucket, StoreOptions(endpoint_url=store.endpoint_url))
        self.error = error
        self.failures = {"versions": failures, "locks": failures}

    def _fail(self, kind: str) -> None:
        if self.failures[kind]:
            self.failures[kind] -= 1
            raise self.error

    def is_versioned(self) -> bool:
        self._fail("versions")
        return super().is_versioned()

    def object_lock_rule(self) -> ObjectLockRule | None:
        self._fail("locks")
        return super().object_lock_rule()


@pytest.mark.parametrize(
    "error",
    [
        StoreRejected("ask", "not implemented", code="NotImplemented"),
        StoreUnavailable("ask", "denied", StoreReason.ACCESS_DENIED),
        StoreUnavailable("ask", "there is no such bucket", StoreReason.BUCKET_MISSING),
    ],
)
async def test_what_may_not_be_asked_is_not_there(store: StoreServer, credentials: None, error: StoreError) -> None:
    client = SilentClient(store, store.create_bucket(locked=True), error, failures=1000)
    capabilities = await ObjectStore(client, patience=QUICK).probe("m/probe")
    assert (capabilities.versioned, capabilities.object_lock) == (False, None)
    assert capabilities.head_returns_crc32c


async def test_what_fails_once_is_asked_again(store: StoreServer, credentials: None) -> None:
    error = StoreUnavailable("ask", "it is sick", StoreReason.SERVER_ERROR)
    client = SilentClient(store, store.create_bucket(locked=True), error, failures=1)
    capabilities = await ObjectStore(client, patience=QUICK).probe("m/probe")
    assert (capabilities.versioned, capabilities.object_lock) == (True, ObjectLockRule(None, None))


@pytest.mark.parametrize("mode", ["GOVERNANCE", "COMPLIANCE"])
async def test_a_retention_is_extended_and_never_shortened(
    fault_proxy: FaultProxy, locked: ObjectStore, mode: LockMode
) -> None:
    await locked.put("m/é b+&%/a", b"content")
    assert await locked.retained_until("m/é b+&%/a") is None
    until = time.time() + 60.5
    await locked.retain("m/é b+&%/a", until, mode)
    first = await locked.retained_until("m/é b+&%/a")
    assert first is not None
    assert until <= first < until + 1
    # Another mode than it has would be refused.
    await locked.retain("m/é b+&%/a", until + 60, "GOVERNANCE" if mode == "COMPLIANCE" else "COMPLIANCE")
    second = await locked.retained_until("m/é b+&%/a")
    assert second is not None
    assert until + 60 <= second < until + 61
    puts = fault_proxy.count("PUT")
    await locked.retain("m/é b+&%/a", until, mode)
    assert fault_proxy.count("PUT") == puts
    assert await locked.retained_until("m/é b+&%/a") == second


async def test_what_is_retained_survives_its_deletion(locked: ObjectStore, store: StoreServer) -> None:
    await locked.put("m/a", b"content")
    await locked.retain("m/a", time.time() + 60, "COMPLIANCE")
    assert await locked.delete_each(["m/a"]) == {}
    assert await locked.head("m/a") is None
    (version,) = [one for one in await versions_of(locked, "m/") if not one.is_delete_marker]
    assert await locked.get("m/a", ENOUGH, version.version_id) == b"content"
    bucket = locked.place.split()[1]
    with pytest.raises(ClientError, match="AccessDenied"):
        store.access.client().delete_object(Bucket=bucket, Key="m/a", VersionId=version.version_id)


async def test_a_retention_that_cannot_be_is_refused_with_a_sentence(
    locked: ObjectStore, objects: ObjectStore, prefix: str
) -> None:
    later = time.time() + 60
    for store in (locked, objects):
        await store.put(f"{prefix}/a", b"content")
    with pytest.raises(StoreRejected, match=f"Could not retain {prefix}/a in bucket"):
        await objects.retain(f"{prefix}/a", later, "GOVERNANCE")
    assert await objects.retained_until(f"{prefix}/a") is None
    with pytest.raises(ObjectMissing):
        await locked.retain(f"{prefix}/none", later, "GOVERNANCE")
    assert await locked.retained_until(f"{prefix}/none") is None
    with pytest.raises(StoreRejected):
        await locked.retain(f"{prefix}/a", time.time() - 60, "GOVERNANCE")


async def test_a_copy_can_be_retained_whatever_it_has_taken_over_from_its_source(locked: ObjectStore) -> None:
    # On a SeaweedFS it has the retention of its source, on AWS and Ceph none.
    await locked.probe("m/probe")
    stored = await locked.put("m/a", b"content")
    until = time.time() + 60
    await locked.retain("m/a", until, "GOVERNANCE")
    assert stored.crc32c is not None
    await locked.copy("m/a", "m/b", size=7, crc32c=stored.crc32c)
    await locked.retain("m/b", until + 60, "GOVERNANCE")
    assert (await locked.retained_until("m/b") or 0.0) >= until + 60
    assert (await locked.retained_until("m/a") or 0.0) < until + 1


async def test_a_store_that_names_the_lock_in_a_denial_is_not_waited_for(
    fault_proxy: FaultProxy, locked: ObjectStore
) -> None:
    await locked.put("m/a", b"content")
    body = b"<Error><Code>AccessDenied</Code><Message>shortens an existing retention period</Message></Error>"
    fault_proxy.answer(403, "", "PUT", "m/a", body=body)
    with pytest.raises(ObjectLocked, match="Could not retain m/a"):
        await locked.retain("m/a", time.time() + 60, "GOVERNANCE")


@pytest.mark.parametrize("header", ["PUT", "GET"])
async def test_a_retention_that_fails_for_a_moment_is_tried_again(
    fault_proxy: FaultProxy, locked: ObjectStore, header: str
) -> None:
    await locked.put("m/a", b"content")
    fault_proxy.answer(500, "InternalError", header, "m/a", times=1)
    until = time.time() + 60
    await locked.retain("m/a", until, "GOVERNANCE")
    assert (await locked.retained_until("m/a") or 0.0) >= until


@pytest.mark.parametrize("seconds", [None, 3600.0, -7200.0])
async def test_the_difference_of_the_clocks_is_known(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, seconds: float | None
) -> None:
    if seconds is not None:
        fault_proxy.skew(seconds)
    difference = await open_at(fault_proxy.endpoint_url, shared_bucket).clock_difference()
    assert difference is not None
    assert abs(difference - (seconds or 0.0)) < 3
    assert fault_proxy.count() == 1


@pytest.mark.parametrize("header", ["", "soon"])
async def test_an_answer_without_a_date_tells_no_time(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, header: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if header:
        monkeypatch.setattr("email.utils.formatdate", lambda *_, **__: header)
        fault_proxy.skew(0.0)
    else:
        # What the proxy answers by itself has no date.
        fault_proxy.answer(200, "", "GET", "", body=b"<ListBucketResult><Name>b</Name></ListBucketResult>")
    assert await open_at(fault_proxy.endpoint_url, shared_bucket).clock_difference() is None


class SlowTime:
    """Stands in for the module `time`: every request takes 100 s."""

    def __init__(self) -> None:
        self._at = 0.0

    def time(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        self._at += 100.0
        return self._at


async def test_the_duration_of_the_request_is_allowed_for(
    objects: ObjectStore, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirrorfs.objectstore.transport, "time", SlowTime())
    difference = await objects.clock_difference(f"{prefix}/")
    assert difference is not None
    assert -53 < difference < -47


@pytest.mark.parametrize(
    "ask",
    [
        lambda objects: objects.clock_difference(),
        lambda objects: objects.delete_each(["m/a"]),
        lambda objects: objects.copy("m/a", "m/b", size=1, crc32c=0),
        lambda objects: objects.list_versions("m/").__anext__(),
        lambda objects: objects.get("m/a", ENOUGH, "null"),
    ],
)
async def test_who_will_not_wait_is_told_why(
    fault_proxy: FaultProxy, shared_bucket: str, credentials: None, ask: Callable[[ObjectStore], Awaitable[object]]
) -> None:
    fault_proxy.answer(503, "ServiceUnavailable")
    with pytest.raises(StoreUnavailable) as caught:
        await ask(open_at(fault_proxy.endpoint_url, shared_bucket, AT_ONCE))
    assert caught.value.reason is StoreReason.SERVER_ERROR
