"""A store that crashes under load and comes back: nothing is lost, and the log says so twice."""

from __future__ import annotations

import random

import pytest
import trio

from mirrorfs.objectstore.store import ObjectStore
from tests.objectstore.conftest import LogWatcher, open_at, use_credentials
from tests.stores.capabilities import ENOUGH, HONEST
from tests.stores.seaweedfs import StoreServer

pytestmark = pytest.mark.trio

OBJECTS = 60


def body_of(number: int) -> bytes:
    return random.Random(number).randbytes(200_000)


@pytest.fixture
def own_objects(own_store: StoreServer, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """A bucket in a store of this test's own."""
    use_credentials(own_store, monkeypatch)
    objects = open_at(own_store.endpoint_url, own_store.create_bucket("outage"))
    objects.capabilities = HONEST
    return objects


async def test_puts_live_through_a_killed_store(
    own_store: StoreServer, own_objects: ObjectStore, log_watcher: LogWatcher
) -> None:
    some_are_stored = trio.Event()

    async def put(number: int) -> None:
        await own_objects.put(f"m/{number}", body_of(number))
        if own_objects.uploaded_objects >= OBJECTS // 4:
            some_are_stored.set()

    async with trio.open_nursery() as nursery:
        for number in range(OBJECTS):
            nursery.start_soon(put, number)
        await some_are_stored.wait()
        # Not in a worker thread: the store would die with the thread that starts it.
        own_store.kill()
        await log_watcher.wait_for("is not usable")
        assert not own_objects.condition.is_up
        assert own_objects.uploaded_objects < OBJECTS
        own_store.restart(wait_until_ready=False)
    assert own_objects.condition.is_up
    assert own_objects.uploaded_objects == OBJECTS
    for number in range(OBJECTS):
        assert await own_objects.get(f"m/{number}", ENOUGH) == body_of(number)
    assert (log_watcher.count("is not usable"), log_watcher.count("is usable again")) == (1, 1)


async def test_what_waits_for_a_dead_store_can_be_cancelled(
    own_store: StoreServer, own_objects: ObjectStore, log_watcher: LogWatcher
) -> None:
    own_store.kill()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_objects.put, "m/a", b"content")
        await log_watcher.wait_for("is not usable")
        nursery.cancel_scope.cancel()
    assert own_objects.uploaded_objects == 0
