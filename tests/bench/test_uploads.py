"""The benchmark of uploads runs, whatever its figures are; with a stand-in for rclone, which no test needs."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from tests.bench import report, small_chunk, uploads
from tests.bench.scale import QUICK
from tests.bench.stub_store import running_stub_store
from tests.stores.seaweedfs import StoreServer


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory, removed when the mounts in it are gone."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as path:
        yield Path(path)


def test_it_runs(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in = memory / "rclone"
    stand_in.write_text(f"#!{sys.executable}\nimport sys\nassert sys.argv[1] == 'copy'\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(uploads, "_RCLONE", stand_in)
    scale = replace(QUICK, upload_rounds=1, uploaded_small_chunks=20)
    with running_stub_store() as stub:
        stub.access.create_bucket("bench")
        source = uploads._Source(memory / "source", cast(StoreServer, stub), "bench")
        series = uploads._measure(source, "upload-64KiB-stub", scale, uploads._make_small, lambda _: None)
    assert {sample.objects for rounds in series.samples.values() for sample in rounds} == {20}
    rows = {(row[0], row[1]) for row in report._uploads([series]).rows}
    assert rows == {("20 chunks of 64 KiB, to a stub", sender) for sender in uploads.SENDERS}


def test_the_parts_of_a_small_chunk_are_measured(memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scale = replace(QUICK, uploaded_small_chunks=16)
    with running_stub_store() as stub:
        stub.access.create_bucket("bench")
        for name, value in stub.environment().items():
            monkeypatch.setenv(name, value)
        found = small_chunk.measure_small_chunk(memory, stub, scale)
    parts = dict(found)
    assert parts.pop(small_chunk.WHOLE) == pytest.approx(sum(parts.values()))
    assert parts[small_chunk.READ] > 0
