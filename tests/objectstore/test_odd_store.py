"""A real store behind something that answers oddly: it may cost time, but loses, makes up and ends nothing."""

from __future__ import annotations

from contextlib import aclosing, suppress

import pytest

from mirrorfs.objectstore.errors import StoreRejected
from tests.objectstore.conftest import open_at
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.fault_proxy import FaultProxy
from tests.stores.odd_answers import ODD_ANSWERS

pytestmark = pytest.mark.trio


@pytest.mark.parametrize("name", ODD_ANSWERS)
async def test_an_odd_answer_now_and_then_hurts_nothing(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None, name: str
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    objects.capabilities = HONEST
    kinds = ODD_ANSWERS[name].requests
    if "PUT" in kinds:
        fault_proxy.odd(name, "PUT", "?*", times=1)
    if ODD_ANSWERS[name].refuses_object:
        # An error of its own; once more is for whoever asked.
        with suppress(StoreRejected):
            await objects.put(f"{prefix}/a:1", b"content")
    await objects.put(f"{prefix}/a:1", b"content")
    fault_proxy.clear()
    for method in kinds & {"GET", "HEAD"}:
        fault_proxy.odd(name, method, "?*", times=1)
    assert await objects.get(f"{prefix}/a:1", ENOUGH) == b"content"
    found = await objects.head(f"{prefix}/a:1")
    assert found is not None
    assert found.size == 7
    fault_proxy.clear()
    if "listing" in kinds:
        fault_proxy.odd(name, "GET", "", times=1)
    async with aclosing(objects.list(f"{prefix}/")) as listed:
        assert [(one.key, one.size) async for one in listed] == [(f"{prefix}/a:1", 7)]
    fault_proxy.clear()
    if "delete" in kinds:
        fault_proxy.odd(name, "POST", "", times=1)
    await objects.delete([f"{prefix}/a:1"])
    fault_proxy.clear()
    assert await objects.head(f"{prefix}/a:1") is None
    if "question" in kinds:
        fault_proxy.odd(name, "GET", "", times=2)
        await objects.probe(prefix)


async def test_an_answer_that_trickles_is_read_to_its_end(
    fault_proxy: FaultProxy, shared_bucket: str, prefix: str, credentials: None
) -> None:
    objects = open_at(fault_proxy.endpoint_url, shared_bucket)
    body = b"content" * 1000
    await objects.put(f"{prefix}/a", body)
    rule = fault_proxy.trickle(0.5, times=1)
    assert await objects.get(f"{prefix}/a", ENOUGH) == body
    assert rule.reached.is_set()
