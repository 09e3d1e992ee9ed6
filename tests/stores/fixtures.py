"""pytest fixtures: one real store for the whole session, and a fresh bucket or a fresh prefix for each test."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer, running_seaweedfs


@pytest.fixture(scope="session")
def store() -> Iterator[StoreServer]:
    """A SeaweedFS shared by all tests of the session: nobody may stop or kill it."""
    with running_seaweedfs() as server:
        yield server


@pytest.fixture
def own_store() -> Iterator[StoreServer]:
    """A SeaweedFS of this test's own, to be killed and restarted at will."""
    with running_seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def shared_bucket(store: StoreServer) -> str:
    """One bucket of the session store; take `prefix` beside it, or `bucket` to be alone."""
    return store.create_bucket()


@pytest.fixture
def bucket(store: StoreServer) -> str:
    """A fresh, empty bucket of the session store."""
    return store.create_bucket()


@pytest.fixture
def prefix() -> str:
    """A prefix that nobody else uses, without a slash at the end."""
    return f"mirror-{secrets.token_hex(6)}"


@pytest.fixture
def fault_proxy(store: StoreServer) -> Iterator[FaultProxy]:
    """A proxy in front of the session store that can be made to fail; transparent at first."""
    with FaultProxy(store.endpoint_url) as proxy:
        yield proxy
