"""The benchmark of snapshots runs, whatever its figures are, also against another checkout; this one stands for it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import snapshots


def test_it_runs(tmp_path: Path, memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkout = tmp_path / "checkout" / ".venv" / "bin"
    checkout.mkdir(parents=True)
    # Not a link: what it belongs to is found by its place.
    (checkout / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (checkout / "python").chmod(0o755)
    said: list[str] = []
    scale = snapshots.SMALLEST
    results = snapshots.measure_snapshots(
        memory, scale, snapshots.SUBJECTS, tmp_path / "checkout", said.append, floor=True
    )
    snapshots.print_snapshots(results)
    assert {series.target for series in results.series} == {
        *("backing directory", "mirrorfs", "mirrorfs checkout", snapshots.BARE)
    }
    assert {series.passage for series in results.series} == {
        "list, new to the mount",
        "rewrite a manifest",
        snapshots.EVENTS,
    }
    for series in results.series:
        for sample in series.samples:
            assert sample.seconds > 0
            assert (sample.daemon_seconds > 0) == (series.target != "backing directory")
            assert bool(sample.requests) == (series.target == snapshots.BARE)
            assert sample.memory < 100 << 20
    assert "mirrorfs checkout" in capsys.readouterr().out
    assert snapshots.snapshots_as_json(results)["series"]
