"""The table as a picture: how far each median is from its target, on which side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tests.bench.processes import BenchFailed
from tests.bench.verdict import Row

# Distinguishable by everybody.
_MET, _NOT_MET, _ENDS = "#0072b2", "#d55e00", "#333333"
_INCHES_WIDE, _INCHES_A_ROW, _INCHES_AROUND = 11.0, 0.24, 1.0
_DOTS_AN_INCH = 100
_POINTS = 8
# What needs next to nothing is that many times better than its target, as far as the picture goes.
_MOST = 10.0
_LEAST = 0.1


def draw(rows: Sequence[Row], file: Path) -> None:
    """Draw the rows, whose medians and ends are shown, into a PNG. Raises BenchFailed without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise BenchFailed("there is no matplotlib: pip install matplotlib, or run scripts/bench") from error
    figure = Figure((_INCHES_WIDE, _INCHES_AROUND + _INCHES_A_ROW * len(rows)), layout="constrained")
    axes = figure.subplots()
    margins = [_margin(row, row.spread.median) for row in rows]
    ends = [sorted(_margin(row, end) for end in (row.spread.least, row.spread.most)) for row in rows]
    axes.barh(
        range(len(rows)),
        [margin - 1 for margin in margins],
        left=1,
        color=[_MET if row.is_met else _NOT_MET for row in rows],
    )
    axes.hlines(range(len(rows)), [low for low, _ in ends], [high for _, high in ends], colors=_ENDS, linewidth=1)
    axes.axvline(1, color=_ENDS)
    axes.set_xscale("log")
    axes.set_xlim(_LEAST, _MOST)
    axes.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], labels=["0.1", "0.2", "0.5", "target", "2", "5", "≥ 10"])
    axes.set_yticks(range(len(rows)), labels=[_label(row) for row in rows], fontsize=_POINTS)
    axes.invert_yaxis()
    # Below the whole picture, not the bars alone: beside long names these are narrower than the text.
    figure.supxlabel(
        "times better than the target (left of it: not met); the lines reach from the worst to the best round",
        fontsize=_POINTS,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=_DOTS_AN_INCH)


def _label(row: Row) -> str:
    # Without backquotes: no Markdown here.
    return f"{row.workload}: {row.bound} {row.of}".replace("`", "")


def _margin(row: Row, value: float) -> float:
    return min(max(row.bound.margin(value), _LEAST), _MOST) if value > 0 else _MOST
