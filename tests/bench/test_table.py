"""The table is measured, whatever its figures are: each section at its smallest; uploads and restores, whose workloads
have tests of their own, from figures that are given."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import pytest

from tests.bench import picture, restoring, table, uploads
from tests.bench.processes import BenchFailed
from tests.bench.restoring import RestoreResults, RestoreSeries
from tests.bench.table import SECTIONS, SMALLEST, Run, TableResults
from tests.bench.uploads import UploadSample, UploadSeries
from tests.bench.verdict import BEGINNING, END, Row, at_least, at_most, markdown

_ROWS = {"impact": 8, "creation": 1, "listing": 3, "uploads": 8, "restores": 4, "events": 2, "lag": 1, "growth": 4}


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads and restores as if measured: ours take twice as long as rclone, and half of its processor time."""
    ours, theirs = UploadSample(2.0, 8, 8 << 22, 1.0, 0.5), UploadSample(1.0, 8, 8 << 22, 2.0, 0.5)
    samples: dict[str, tuple[UploadSample, ...]] = {uploads.UPLOADER: (ours,), uploads.RCLONE: (theirs,)}
    sent = [
        UploadSeries(f"upload-{name}", f"8 chunks of {name}", samples)
        for name in ("4MiB", "4MiB-stub", "64KiB", "64KiB-stub")
    ]
    brought = tuple(
        RestoreSeries(name, 8, 8 << 22, (restoring.Sample(2.0, 2.0, 1.0, 1),), (restoring.Sample(1.0, 1.5, 1.0, 1),))
        for name in ("4MiB", "64KiB")
    )
    results = RestoreResults({}, SMALLEST.restores, 0.0, 0.0, brought)
    monkeypatch.setattr(uploads, "measure_uploads", lambda *_: sent)
    monkeypatch.setattr(restoring, "measure_restores", lambda *_: results)
    monkeypatch.setattr(table, "_rival", lambda _: ("python3", "--version"))


@pytest.mark.usefixtures("figures")
@pytest.mark.parametrize("name", SECTIONS)
def test_each_section_gives_its_rows(name: str, memory: Path) -> None:
    results = table.measure_table(memory, Run(SMALLEST, _checkout(memory), lambda _: None), [name])
    assert results.missing == ()
    assert len(results.rows) == _ROWS[name]
    for row in results.rows:
        assert all(map(math.isfinite, row.values))
    assert [path.name for path in memory.iterdir()] == ["checkout"], "what was made is taken away"
    text = table.table_as_markdown(results)
    assert text.count("\n| ") == 2 + _ROWS[name]
    assert table.table_as_json(results)["rows"][0]["workload"] == results.rows[0].workload


def _checkout(base: Path) -> Path:
    """This one, as if it were another."""
    python = base / "checkout" / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    # Not a link: what it belongs to is found by its place.
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    return base / "checkout"


@pytest.mark.usefixtures("figures")
def test_a_section_that_fails_costs_no_other(memory: Path) -> None:
    results = table.measure_table(memory, Run(SMALLEST, None, lambda _: None), ["listing", "restores"])
    assert len(results.rows) == _ROWS["restores"]
    assert results.missing == (
        "Not measured, listing: listing is compared with an older checkout, name one by --against.",
    )
    assert results.missing[0] in table.table_as_markdown(results).replace("\n", " ")


def test_a_median_is_held_against_its_bound() -> None:
    assert Row("read", "rclone", "of its speed", at_least(0.9), (0.95, 0.2, 0.91)).is_met
    assert not Row("read", "rclone", "of its speed", at_least(0.9), (0.95, 0.2, 0.89)).is_met
    assert Row("lag", "–", "beyond", at_most(0.5, "seconds"), (0.5,)).is_met
    assert not Row("lag", "–", "beyond", at_most(0.5, "seconds"), (0.51,)).is_met


def test_what_is_printed_can_be_pasted() -> None:
    rows = [
        Row("read", "rclone", "of its speed", at_least(0.9), (0.95, 0.2, 0.91), "7 MB/s"),
        Row("lag", "–", "beyond the transfer", at_most(0.5, "seconds"), (0.75, 0.9, -0.0177)),
    ]
    lines = markdown(rows, "word " * 40, ["Not measured: nothing."]).splitlines()
    assert (lines[0], lines[-1]) == (BEGINNING, END)
    assert lines[3:5] == [
        "| read | rclone | ≥ 0.9 of its speed | 0.91 (0.20–0.95); 7 MB/s | yes |",
        "| lag | – | ≤ 500 ms beyond the transfer | 750 ms (−17.7 ms–900 ms) | **no** |",
    ]
    assert all(len(line) <= 100 for line in lines)


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="only scripts/bench installs it")
    rows = [
        Row("read", "rclone", "of its speed", at_least(0.9), (0.95, 0.2, 0.91)),
        Row("memory", "–", "more", at_most(4, "MiB"), (0.0,)),
    ]
    picture.draw(rows, tmp_path / "pictures" / "table.png")
    assert (tmp_path / "pictures" / "table.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(BenchFailed, match="pip install matplotlib"):
        picture.draw([], tmp_path / "table.png")


def test_no_result_is_lost_when_nothing_was_measured() -> None:
    results = TableResults({}, SMALLEST, 0.0, 0.0, (), ("Not measured.",), {})
    text = table.table_as_markdown(results, table._DOCUMENTS / "pictures" / "table.png")
    assert "Not measured." in text
    assert "](pictures/table.png)" in text
