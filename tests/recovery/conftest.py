"""Fixtures of the recovery tests: one datastore and its mirror for all, and a fast directory of each test's own."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from tests.recovery.mirror import LONG_AGO, Mirror, Objects, objects_of, upload, write_datastore
from tests.stores.seaweedfs import StoreServer

MEMORY = Path("/dev/shm")


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory in memory where there is one: each restore makes 65,536 directories."""
    directory = Path(tempfile.mkdtemp(prefix="mirrorfs-test-", dir=MEMORY if MEMORY.is_dir() else None))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def base(scratch: Path) -> Iterator[Path]:
    """A directory of this test's own."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(scope="session")
def datastore(scratch: Path) -> Path:
    """The datastore that is mirrored; only to be read."""
    root = scratch / "datastore"
    write_datastore(root)
    return root


@pytest.fixture
def living(datastore: Path, base: Path) -> Path:
    """A copy of the datastore; what stands in it was last used long ago."""
    root = base / "living"
    shutil.copytree(datastore, root)
    for directory, _, filenames in os.walk(root):
        status = (datastore / Path(directory).relative_to(root)).stat()
        os.chown(directory, status.st_uid, status.st_gid)
        for filename in filenames:
            path = Path(directory) / filename
            status = (datastore / path.relative_to(root)).stat()
            os.chown(path, status.st_uid, status.st_gid)
            os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return root


@pytest.fixture(scope="session")
def objects(datastore: Path) -> Mapping[str, bytes]:
    """What the mirror of `datastore` holds."""
    return objects_of(datastore)


@pytest.fixture(scope="session")
def shared_mirror(store: StoreServer, shared_bucket: str, objects: Objects) -> Mirror:
    """The mirror of `datastore`; only to be read."""
    upload(store.access, shared_bucket, "recovery", objects)
    return Mirror(store.access, shared_bucket, "recovery")


@pytest.fixture
def own_mirror(store: StoreServer, shared_bucket: str, prefix: str, objects: Objects) -> Mirror:
    """A mirror of `datastore` of this test's own, to be damaged."""
    upload(store.access, shared_bucket, prefix, objects)
    return Mirror(store.access, shared_bucket, prefix)


@pytest.fixture(autouse=True)
def _credentials(store: StoreServer, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in store.access.environment().items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def few_directories(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that do not look at the frame: making and removing 65,536 directories takes two seconds."""
    for module in ("target", "restore", "drill"):
        monkeypatch.setattr(f"mirrorfs.recovery.{module}.CHUNK_DIRECTORIES", 16)
