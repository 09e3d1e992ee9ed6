"""The benchmark of restoring runs, whatever its figures are; with a stand-in for rclone, which no test needs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.bench import restoring

# It fills the store, for that is what is restored; what is copied back is compared with nothing.
_STAND_IN = """
import os, pathlib, sys
import boto3
if sys.argv[1] == "version":
    print("rclone v0")
elif sys.argv[-1].startswith("store:"):
    client = boto3.client("s3", endpoint_url=os.environ["RCLONE_CONFIG_STORE_ENDPOINT"])
    bucket, _, prefix = sys.argv[-1].removeprefix("store:").partition("/")
    source = pathlib.Path(sys.argv[-2])
    for path in filter(pathlib.Path.is_file, source.rglob("*")):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.relative_to(source)}", Body=path.read_bytes())
else:
    os.mkdir(sys.argv[-1])
"""


def test_it_runs(memory: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in = memory / "rclone"
    stand_in.write_text(f"#!{sys.executable}\n{_STAND_IN}")
    stand_in.chmod(0o755)
    monkeypatch.setattr(restoring, "rclone", lambda: str(stand_in))
    results = restoring.measure_restores(memory, restoring.SMALLEST, ["tiny"], lambda _: None)
    restoring.print_restores(results)
    assert [series.name for series in results.series] == ["tiny"]
    assert results.series[0].objects > 20
    assert results.series[0].mirrorfs[0].memory > 1e7
    assert "mirrorfs restore" in capsys.readouterr().out
    assert restoring.restores_as_json(results)["series"]
