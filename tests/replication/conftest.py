"""A world for each test, in memory where there is such a place: the state is synced at each commit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.replication.datastore import CHUNK_DIRECTORIES, Datastore
from tests.replication.world import World

_MEMORY = Path("/dev/shm")


@pytest.fixture
def directory() -> Iterator[Path]:
    """A fast directory."""
    path = Path(tempfile.mkdtemp(prefix="mirrorfs-test-", dir=_MEMORY if _MEMORY.is_dir() else None))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def world(directory: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """An empty datastore and an empty store; reconciling looks at the chunk directories that these tests use."""
    monkeypatch.setattr("mirrorfs.replication.comparing.reconcile._CHUNK_DIRECTORIES", CHUNK_DIRECTORIES)
    monkeypatch.setattr("mirrorfs.replication.comparing.reconcile._DIRECTORIES_AT_ONCE", CHUNK_DIRECTORIES)
    datastore = Datastore(directory / "datastore")
    datastore.create()
    return World(datastore, directory / "state")
