"""An upload counts only when it is proved. The stores that lie here are invented: no real one lies on demand."""

from __future__ import annotations

import dataclasses

import pytest

from mirrorfs.objectstore import (
    Confirmation,
    ConfirmationFailed,
    ObjectMissing,
    ObjectStore,
    S3Client,
    StoreCapabilities,
    StoredObject,
    StoreOptions,
)
from mirrorfs.objectstore.client import PutReceipt
from tests.objectstore.test_store import BY_ETAG, BY_HEAD, BY_READING, RIGHTS

pytestmark = pytest.mark.trio


class ForgetfulClient(S3Client):
    """Acknowledges every PUT, but keeps only what comes after the first `lies` of them, the others damaged."""

    def __init__(self, lies: int, loses: bool = False) -> None:
        super().__init__("bucket", StoreOptions(endpoint_url="http://127.0.0.1:9"))
        self.lies = lies
        self.loses = loses
        self.puts = 0
        self.held: dict[str, bytes] = {}

    def put_object(self, key: str, body: bytes, *, crc32c: int | None, md5: bytes | None) -> PutReceipt:
        self.puts += 1
        if self.puts > self.lies:
            self.held[key] = body
            return PutReceipt("" if md5 is None else md5.hex(), crc32c)
        if not self.loses:
            self.held[key] = body[:-1]
        return PutReceipt("0" * 32, None)

    def get_object(self, key: str) -> bytes:
        if key not in self.held:
            raise ObjectMissing(f"read {key} from {self.place}", "there is no such object")
        return self.held[key]

    def head_object(self, key: str) -> StoredObject | None:
        return StoredObject(key, len(self.held[key]), "", None) if key in self.held else None


@pytest.mark.parametrize("capabilities", [RIGHTS, BY_ETAG, BY_HEAD, BY_READING])
@pytest.mark.parametrize("loses", [False, True])
async def test_a_store_that_goes_on_lying_is_found_out(capabilities: StoreCapabilities, loses: bool) -> None:
    client = ForgetfulClient(lies=1000, loses=loses)
    objects = ObjectStore(client, capabilities=capabilities)
    with pytest.raises(ConfirmationFailed, match="Could not store m/a in bucket"):
        await objects.put("m/a", b"content")
    assert 1 < client.puts < 10
    assert objects.uploaded_objects == 0


@pytest.mark.parametrize("capabilities", [RIGHTS, BY_ETAG, BY_HEAD, BY_READING])
async def test_a_store_that_lied_once_gets_the_object_again(capabilities: StoreCapabilities) -> None:
    client = ForgetfulClient(lies=1)
    stored = await ObjectStore(client, capabilities=capabilities).put("m/a", b"content")
    assert client.puts == 2
    assert client.held == {"m/a": b"content"}
    assert stored.size == 7


async def test_an_unknown_store_is_read_back() -> None:
    client = ForgetfulClient(lies=0)
    objects = ObjectStore(client)
    assert objects.capabilities.confirmation is Confirmation.READ_BACK
    await objects.put("m/a", b"content")


@pytest.mark.parametrize("field", ["put_returns_crc32c", "head_returns_crc32c"])
async def test_a_checksum_that_is_only_echoed_proves_nothing(field: str) -> None:
    echoing = dataclasses.replace(BY_READING, **{field: True})
    assert echoing.confirmation is Confirmation.READ_BACK
