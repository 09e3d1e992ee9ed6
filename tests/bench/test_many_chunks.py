"""The benchmark of memory runs, whatever its figures are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import many_chunks


def test_it_runs(memory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["verify", "metadata-only"]
    results = many_chunks.measure_memory(memory, many_chunks.SMALLEST, names, lambda _: None)
    many_chunks.print_memory(results)
    assert [sample.command for sample in results.samples] == names
    assert all(sample.memory > 1e7 for sample in results.samples)
    assert "metadata-only" in capsys.readouterr().out
    assert many_chunks.memory_as_json(results)["samples"]
