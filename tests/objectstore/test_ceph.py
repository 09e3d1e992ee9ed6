"""Against a Ceph RADOS gateway, which ignores x-amz-checksum-crc32c without a word: the other ways of confirming.

Needs MIRRORFS_TEST_CEPH, the path of the file that scripts/ceph-up has written.
"""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest
import trio

from mirrorfs.objectstore.capabilities import UNPROVEN, Confirmation, ObjectLockRule
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import ConfirmationFailed, ObjectMissing, StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.trial import Trial, Verdict
from mirrorfs.objectstore.url import StoreOptions
from tests.objectstore.conftest import open_at, use_credentials
from tests.stores.capabilities import ENOUGH
from tests.stores.fault_proxy import FaultProxy
from tests.stores.server import StoreAccess

pytestmark = [pytest.mark.ceph, pytest.mark.trio]


@dataclass(frozen=True, slots=True)
class Ceph:
    """The gateway behind a proxy that counts requests, and a bucket in it."""

    access: StoreAccess
    proxy: FaultProxy
    bucket: str

    def open(self, bucket: str | None = None) -> ObjectStore:
        return open_at(self.proxy.endpoint_url, bucket or self.bucket)


@pytest.fixture
def ceph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ceph]:
    path = os.environ.get("MIRRORFS_TEST_CEPH")
    if path is None:
        pytest.fail("MIRRORFS_TEST_CEPH is not set: run scripts/ceph-up OUT.json and set it to OUT.json")
    described = json.loads(Path(path).read_text())
    access = StoreAccess(described["endpoint_url"], described["access_key"], described["secret_key"])
    use_credentials(access, monkeypatch)
    with FaultProxy(access.endpoint_url) as proxy:
        yield Ceph(access, proxy, described["bucket"])


@pytest.fixture
def key() -> str:
    return f"test-{secrets.token_hex(6)}/a"


async def test_the_probe_finds_that_crc32c_is_ignored(ceph: Ceph, key: str) -> None:
    capabilities = await ceph.open().probe(f"{key}/probe")
    assert not capabilities.rejects_wrong_crc32c
    assert not capabilities.head_returns_crc32c
    assert capabilities.rejects_wrong_md5
    assert capabilities.etag_is_md5
    assert capabilities.confirmation is Confirmation.ETAG_MD5
    assert (capabilities.copies, capabilities.versioned, capabilities.object_lock) == (True, False, None)
    assert await listed(ceph.open(), key) == []


async def test_a_trial_tells_that_it_does_not_know_its_own_etag_again(ceph: Ceph, key: str) -> None:
    options = StoreOptions(endpoint_url=ceph.access.endpoint_url)
    trial = Trial(S3Client(ceph.bucket, options), options, key)
    found = {one.subject: one for one in await trio.to_thread.run_sync(lambda: list(trial.run()))}
    assert {subject for subject, one in found.items() if one.verdict is not Verdict.GOOD} == {"tls", "conditional put"}


async def test_an_upload_is_confirmed_by_its_etag(ceph: Ceph, key: str) -> None:
    objects = ceph.open()
    await objects.probe(f"{key}/probe")
    before = len(ceph.proxy.requests())
    await objects.put(key, b"content" * 100_000)
    assert [seen.method for seen in ceph.proxy.requests()[before:]] == ["PUT", "HEAD"]
    assert await objects.get(key, ENOUGH) == b"content" * 100_000
    await objects.delete([key])


async def test_an_upload_is_confirmed_by_reading_back_where_nothing_else_is_proved(ceph: Ceph, key: str) -> None:
    objects = ceph.open()
    objects.capabilities = UNPROVEN
    await objects.put(key, b"content")
    assert [seen.method for seen in ceph.proxy.requests()] == ["PUT", "GET"]
    await objects.delete([key])


async def test_damage_on_the_way_is_found(ceph: Ceph, key: str) -> None:
    objects = ceph.open()
    await objects.probe(f"{key}/probe")
    rule = ceph.proxy.corrupt("PUT")
    with pytest.raises(ConfirmationFailed):
        await objects.put(key, b"content")
    rule.release()
    await objects.put(key, b"content")
    assert await objects.get(key, ENOUGH) == b"content"
    await objects.delete([key])


async def test_listing_and_deleting(ceph: Ceph, key: str) -> None:
    objects = ceph.open()
    objects.capabilities = await objects.probe(f"{key}/probe")
    keys = [f"{key}/{name}" for name in ("z", "a b", "é", "n/m")]
    for one in keys:
        await objects.put(one, b"content")
    assert await listed(objects, f"{key}/") == sorted(keys)
    await objects.delete([*keys, f"{key}/never-was"])
    assert await listed(objects, f"{key}/") == []


async def test_a_copy_is_confirmed_by_its_etag(ceph: Ceph, key: str) -> None:
    objects = ceph.open()
    await objects.probe(f"{key}/probe")
    # More than fits into one of its own objects.
    body = b"content" * 1_000_000
    stored = await objects.put(f"{key}/é b+&", body)
    before = len(ceph.proxy.requests())
    assert stored.crc32c is not None
    await objects.copy(f"{key}/é b+&", f"{key}/copy", size=len(body), crc32c=stored.crc32c)
    assert [seen.method for seen in ceph.proxy.requests()[before:]] == ["HEAD", "PUT", "HEAD"]
    assert await objects.get(f"{key}/copy", ENOUGH) == body
    with pytest.raises(ObjectMissing):
        await objects.copy(f"{key}/none", f"{key}/copy", size=1, crc32c=0)
    await objects.delete([f"{key}/é b+&", f"{key}/copy"])


async def test_versions_stay_behind_and_can_be_read(ceph: Ceph, key: str) -> None:
    objects = ceph.open(ceph.access.create_bucket(versioned=True))
    assert (await objects.probe("probe")).versioned
    await objects.put(key, b"first")
    await objects.put(key, b"the second")
    assert await objects.delete_each([key]) == {}
    assert await objects.head(key) is None
    async with aclosing(objects.list_versions(f"{key}")) as found:
        versions = [one async for one in found]
    bodies = {await objects.get(key, ENOUGH, one.version_id) for one in versions if not one.is_delete_marker}
    assert bodies == {b"first", b"the second"}
    (marker,) = [one for one in versions if one.is_delete_marker]
    assert marker.is_latest
    with pytest.raises(ObjectMissing):
        await objects.get(key, ENOUGH, marker.version_id)


async def test_a_retention_is_extended_and_never_shortened(ceph: Ceph, key: str) -> None:
    objects = ceph.open(ceph.access.create_bucket(locked=True))
    assert (await objects.probe("probe")).object_lock == ObjectLockRule(None, None)
    await objects.put(key, b"content")
    assert await objects.retained_until(key) is None
    until = time.time() + 60
    await objects.retain(key, until, "GOVERNANCE")
    await objects.retain(key, until + 60, "COMPLIANCE")
    await objects.retain(key, until, "GOVERNANCE")
    retained = await objects.retained_until(key)
    assert retained is not None
    assert until + 60 <= retained < until + 61
    assert await objects.delete_each([key]) == {}
    assert await objects.retained_until(key) is None


async def test_a_bucket_without_locks_retains_nothing(ceph: Ceph, key: str) -> None:
    objects = ceph.open()
    await objects.put(key, b"content")
    assert await objects.retained_until(key) is None
    with pytest.raises(StoreRejected):
        await objects.retain(key, time.time() + 60, "GOVERNANCE")
    difference = await objects.clock_difference()
    assert difference is not None
    assert abs(difference) < 3
    await objects.delete([key])


async def test_a_wrong_secret_and_a_missing_bucket_are_told_apart(
    ceph: Ceph, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        await open_at(ceph.proxy.endpoint_url, "no-such-bucket-here", AT_ONCE).put(key, b"content")
    assert caught.value.reason is StoreReason.BUCKET_MISSING
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreUnavailable) as caught:
        await open_at(ceph.proxy.endpoint_url, ceph.bucket, AT_ONCE).put(key, b"content")
    assert caught.value.reason is StoreReason.WRONG_KEY


async def listed(objects: ObjectStore, prefix: str) -> list[str]:
    async with aclosing(objects.list(prefix)) as found:
        return sorted([one.key async for one in found])
