"""No more of an object is read than belongs under its key, whatever it announces."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator

import crc32c
import pytest
import trio
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import IndexFormatError
from mirrorfs.objectstore import transport
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.deadlines import RequestUnderWay
from mirrorfs.objectstore.errors import ObjectTooLarge, StoreRejected
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.transport import BodyLimit, BodyTooLong
from mirrorfs.objectstore.uploads import Expected
from mirrorfs.objectstore.url import StoreOptions
from tests.stores.capabilities import HONEST
from tests.stores.hostile_store import BUCKET, HostileStore, Zeros

pytestmark = pytest.mark.trio

MIB = 1024 * 1024
GIB = 1024 * MIB


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> Iterator[HostileStore]:
    for name, value in HostileStore.environment().items():
        monkeypatch.setenv(name, value)
    with HostileStore().running() as store:
        yield store


@pytest.fixture
def objects(hostile: HostileStore) -> ObjectStore:
    client = S3Client(BUCKET, StoreOptions(endpoint_url=hostile.endpoint_url))
    return ObjectStore(client, patience=AT_ONCE, capabilities=HONEST)


@pytest.mark.parametrize("maximum", [0, 1, 64 * 1024, 17 * MIB])
@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_longer_body_is_cut_off(
    hostile: HostileStore, objects: ObjectStore, maximum: int, is_announced: bool
) -> None:
    hostile.objects["a"] = Zeros(GIB, is_announced=is_announced)
    with pytest.raises(ObjectTooLarge, match=f"at most {maximum} bytes belong there"):
        await objects.get("a", maximum)
    # What the kernel has buffered on the way has gone out too.
    assert hostile.sent < maximum + 32 * MIB
    # The next request does not meet what is left of the last one.
    hostile.objects["b"] = b"content"
    assert await objects.get("b", 7) == b"content"


@pytest.mark.parametrize("is_announced", [True, False])
async def test_a_body_of_just_the_maximum_is_read(
    hostile: HostileStore, objects: ObjectStore, is_announced: bool
) -> None:
    hostile.objects["a"] = Zeros(9 * MIB, b"begin", is_announced)
    assert await objects.get("a", 9 * MIB) == b"begin".ljust(9 * MIB, b"\0")
    with pytest.raises(ObjectTooLarge):
        await objects.get("a", 9 * MIB - 1)


async def test_it_is_an_error_of_this_object_alone(hostile: HostileStore, objects: ObjectStore) -> None:
    hostile.objects["a"] = Zeros(GIB)
    with pytest.raises(StoreRejected):
        await objects.get("a", 5)
    assert objects.condition.is_up


async def test_the_rest_is_not_read_if_the_beginning_is_wrong(hostile: HostileStore, objects: ObjectStore) -> None:
    hostile.objects["a"] = Zeros(GIB, b"begin")
    seen: list[tuple[bytes, int]] = []

    def check(beginning: bytes, length: int) -> None:
        seen.append((beginning[:6], length))
        raise IndexFormatError("it begins like this")

    with pytest.raises(IndexFormatError, match="it begins like this"):
        await objects.get_content("a", 2 * GIB, check_beginning=check)
    # It may have been damaged on its way only.
    assert seen == [(b"begin\0", GIB)] * 3
    assert hostile.sent < 3 * 32 * MIB


async def test_what_is_put_is_confirmed_beside_something_larger(hostile: HostileStore, objects: ObjectStore) -> None:
    """Somebody else puts a larger object at the same moment: it is not taken for ours, nor read."""
    receipt = await objects.put("a", b"content")
    assert receipt.size == 7
    hostile.objects["a"] = Zeros(GIB)
    assert not await objects._uploads.holds(Expected("a", 7, crc32c.crc32c(b"content"), None, b"content"))
    assert hostile.sent < 32 * MIB


@given(st.binary(max_size=50), st.integers(0, 60), st.booleans(), st.booleans())
async def test_the_law_of_reading(body: bytes, maximum: int, is_announced: bool, looks: bool) -> None:
    await trio.lowlevel.checkpoint()
    response = urllib3.HTTPResponse(io.BytesIO(body), preload_content=False)
    seen: list[tuple[bytes, int]] = []
    limit = BodyLimit(maximum, (lambda beginning, length: seen.append((beginning, length))) if looks else None)
    under_way = RequestUnderWay("GetObject", 60.0, time.monotonic)
    try:
        read: Content | None = transport._read_body(
            response, len(body) if is_announced else None, limit, under_way, is_encoded=False
        )
    except BodyTooLong:
        read = None
    assert read == (body if len(body) <= maximum else None)
    assert seen in ([], [(body, len(body))])
