"""An object takes the place of the one that was seen, or of none: where the store can tell, and where it cannot."""

from __future__ import annotations

import pytest

from mirrorfs.objectstore.errors import ObjectChanged
from mirrorfs.objectstore.store import ObjectStore
from tests.objectstore.conftest import open_at
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.fault_proxy import FaultProxy
from tests.stores.hostile_store import BUCKET, HostileStore

pytestmark = pytest.mark.trio

_NAME = "conditional-put"


async def etag_of(objects: ObjectStore, key: str) -> str:
    found = await objects.head(key)
    assert found is not None
    return found.etag


async def test_nothing_takes_the_place_of_what_was_not_seen(objects: ObjectStore, prefix: str) -> None:
    key = f"{prefix}/claim"
    await objects.put_over(key, b"first", None)
    first = await etag_of(objects, key)
    with pytest.raises(ObjectChanged, match="PreconditionFailed"):
        await objects.put_over(key, b"second", None)
    await objects.put_over(key, b"second", first)
    with pytest.raises(ObjectChanged, match="PreconditionFailed"):
        await objects.put_over(key, b"third", first)
    assert await objects.get(key, ENOUGH) == b"second"
    second = await etag_of(objects, key)
    await objects.delete([key])
    with pytest.raises(ObjectChanged):
        await objects.put_over(key, b"third", second)
    assert await objects.head(key) is None
    assert objects.done_without == {}


@pytest.mark.parametrize("is_probed", [False, True])
async def test_a_lost_answer_is_not_taken_for_somebody_else(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, is_probed: bool
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    if is_probed:
        objects.capabilities = HONEST
    fault_proxy.drop_after("PUT", f"{prefix}/claim", times=1)
    await objects.put_over(f"{prefix}/claim", b"first", None)
    fault_proxy.drop_after("PUT", f"{prefix}/claim", times=1)
    await objects.put_over(f"{prefix}/claim", b"second", await etag_of(objects, f"{prefix}/claim"))
    assert await objects.get(f"{prefix}/claim", ENOUGH) == b"second"
    assert objects.done_without == {}


@pytest.mark.parametrize(("status", "code"), [(501, "NotImplemented"), (400, "InvalidArgument")])
async def test_a_store_that_refuses_a_condition_is_not_asked_again(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, status: int, code: str
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    # With checksum headers, which may be what it refuses, and without.
    fault_proxy.answer(status, code, "PUT", f"{prefix}/claim", times=2)
    await objects.put_over(f"{prefix}/claim", b"first", None)
    assert list(objects.done_without) == [_NAME]
    assert code in objects.done_without[_NAME]
    sent = fault_proxy.count("PUT", f"{prefix}/claim")
    await objects.put_over(f"{prefix}/claim", b"second", None)
    assert fault_proxy.count("PUT", f"{prefix}/claim") == sent + 1
    assert await objects.get(f"{prefix}/claim", ENOUGH) == b"second"


async def test_a_refusal_of_any_object_is_none_of_the_condition(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    fault_proxy.answer(503, "SlowDown", "PUT", f"{prefix}/claim", times=2)
    await objects.put_over(f"{prefix}/claim", b"first", None)
    assert objects.done_without == {}


async def test_a_store_that_finds_something_else_where_nothing_has_changed_is_done_without(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    fault_proxy.answer(412, "PreconditionFailed", "PUT", f"{prefix}/claim", times=1)
    await objects.put_over(f"{prefix}/claim", b"first", None)
    assert objects.done_without == {}
    fault_proxy.answer(412, "PreconditionFailed", "PUT", f"{prefix}/claim", times=2)
    await objects.put_over(f"{prefix}/claim", b"second", await etag_of(objects, f"{prefix}/claim"))
    assert list(objects.done_without) == [_NAME]
    assert await objects.get(f"{prefix}/claim", ENOUGH) == b"second"


@pytest.mark.parametrize(("status", "code"), [(404, "NoSuchKey"), (409, "ConditionalRequestConflict")])
async def test_what_else_aws_answers_is_looked_into(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, status: int, code: str
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    await objects.put(f"{prefix}/claim", b"first")
    etag = await etag_of(objects, f"{prefix}/claim")
    await objects.put(f"{prefix}/claim", b"second")
    fault_proxy.answer(status, code, "PUT", f"{prefix}/claim", times=1)
    with pytest.raises(ObjectChanged):
        await objects.put_over(f"{prefix}/claim", b"third", etag)
    fault_proxy.answer(status, code, "PUT", f"{prefix}/claim", times=1)
    await objects.put_over(f"{prefix}/claim", b"third", await etag_of(objects, f"{prefix}/claim"))
    assert await objects.get(f"{prefix}/claim", ENOUGH) == b"third"
    assert objects.done_without == {}


async def test_a_store_that_ignores_conditions_is_found_out_by_the_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in HostileStore.environment().items():
        monkeypatch.setenv(name, value)
    with HostileStore().running() as store:
        objects = open_at(store.endpoint_url, BUCKET)
        await objects.put_over("claim", b"first", None)
        assert not (await objects.probe("probe")).conditional_puts
        assert "put an object in the place of another" in objects.done_without[_NAME]
        await objects.put_over("claim", b"second", None)
        assert await objects.get("claim", ENOUGH) == b"second"
