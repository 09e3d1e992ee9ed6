"""Mirrors for the end-to-end tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that is removed without looking below mounts, after they are gone."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-") as path:
        yield Path(path)


@pytest.fixture
def mirror(base: Path, store: StoreServer, shared_bucket: str, prefix: str) -> Iterator[MirrorUnderTest]:
    """A mirror of an empty datastore, not yet mounted."""
    under_test = MirrorUnderTest(base, store, shared_bucket, store.endpoint_url, prefix)
    under_test.create()
    yield under_test
    under_test.tear_down()


@pytest.fixture
def proxied_mirror(
    base: Path, store: StoreServer, shared_bucket: str, prefix: str, fault_proxy: FaultProxy
) -> Iterator[MirrorUnderTest]:
    """A mirror that reaches the store through `fault_proxy`."""
    under_test = MirrorUnderTest(base, store, shared_bucket, fault_proxy.endpoint_url, prefix)
    under_test.create()
    yield under_test
    under_test.tear_down()
