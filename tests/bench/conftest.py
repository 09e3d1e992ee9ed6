"""Fixtures for the benchmarks' smoke tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: a restored datastore has 65,536 directories, which a disk is long in making."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as path:
        yield Path(path)
