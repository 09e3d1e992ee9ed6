"""The benchmark of restoring runs, whatever its figures are; with a stand-in for rclone, which no test needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import restoring


def test_it_runs(memory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in = memory / "rclone"
    stand_in.write_text(
        f"#!{sys.executable}\nimport os, sys\n"
        "print('rclone v0') if sys.argv[1] == 'version' else os.mkdir(sys.argv[-1])\n"
    )
    stand_in.chmod(0o755)
    monkeypatch.setattr(restoring, "rclone", lambda: str(stand_in))
    results = restoring.measure_restores(memory, restoring.SMALLEST, ["tiny"], lambda _: None)
    restoring.print_restores(results)
    assert [series.name for series in results.series] == ["tiny"]
    assert results.series[0].objects > 20
    assert results.series[0].mirrorfs[0].memory > 1e7
    assert "mirrorfs restore" in capsys.readouterr().out
    assert restoring.restores_as_json(results)["series"]
