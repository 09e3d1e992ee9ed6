"""Against a Ceph RADOS gateway, which ignores x-amz-checksum-crc32c without a word: the other ways of confirming.

Needs MIRRORFS_TEST_CEPH, the path of the file that scripts/ceph-up has written.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path

import pytest

from mirrorfs.objectstore import (
    AT_ONCE,
    UNPROVEN,
    Confirmation,
    ConfirmationFailed,
    ObjectStore,
    StoreReason,
    StoreUnavailable,
)
from tests.objectstore.conftest import open_at, use_credentials
from tests.stores.fault_proxy import FaultProxy
from tests.stores.server import StoreAccess

pytestmark = [pytest.mark.ceph, pytest.mark.trio]


@dataclass(frozen=True, slots=True)
class Ceph:
    """The gateway behind a proxy that counts requests, and a bucket in it."""

    proxy: FaultProxy
    bucket: str

    def open(self) -> ObjectStore:
        return open_at(self.proxy.endpoint_url, self.bucket)


@pytest.fixture
def ceph(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ceph]:
    path = os.environ.get("MIRRORFS_TEST_CEPH")
    if path is None:
        pytest.fail("MIRRORFS_TEST_CEPH is not set: run scripts/ceph-up OUT.json and set it to OUT.json")
    described = json.loads(Path(path).read_text())
    access = StoreAccess(described["endpoint_url"], described["access_key"], described["secret_key"])
    use_credentials(access, monkeypatch)
    with FaultProxy(access.endpoint_url) as proxy:
        yield Ceph(proxy, described["bucket"])


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
    assert await listed(ceph.open(), key) == []


async def test_an_upload_is_confirmed_by_its_etag(ceph: Ceph, key: str) -> None:
    objects = ceph.open()
    await objects.probe(f"{key}/probe")
    before = len(ceph.proxy.requests())
    await objects.put(key, b"content" * 100_000)
    assert [seen.method for seen in ceph.proxy.requests()[before:]] == ["PUT", "HEAD"]
    assert await objects.get(key) == b"content" * 100_000
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
    assert await objects.get(key) == b"content"
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
