"""Many snapshots, many chunks: the memory of a reconcile does not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.harness.bulk import generate_bulk

SNAPSHOTS = 1_000
CHUNKS = 100_000
ALLOWED_GROWTH_KIB = 200 * 1024


@pytest.mark.long
@pytest.mark.timeout(600)
def test_reconciling_1000_snapshots_with_100000_chunks_needs_little_memory(base: Path) -> None:
    (base / "datastore").mkdir()
    (base / "state").mkdir(mode=0o700)
    made = generate_bulk(str(base / "datastore"), 3, snapshots=SNAPSHOTS, chunks=CHUNKS)
    first = _reconcile(base)
    assert first["published"] == SNAPSHOTS
    assert first["chunks"] == made.chunks
    assert first["most"] - first["before"] < ALLOWED_GROWTH_KIB
    again = _reconcile(base)
    assert again["puts"] == 0
    assert again["most"] - again["before"] < ALLOWED_GROWTH_KIB


def _reconcile(base: Path) -> dict[str, int]:
    program = [sys.executable, "-m", "tests.end_to_end.reconcile_at_scale"]
    done = subprocess.run(
        [*program, str(base / "datastore"), str(base / "state")],
        capture_output=True,
        text=True,
        timeout=500,
        check=True,
    )
    answer: dict[str, int] = json.loads(done.stdout)
    return answer
