"""Rows of the table: what was measured, beside what it should be."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tests.bench.grid import duration
from tests.bench.meter import Spread

BEGINNING = "<!-- printed by scripts/bench table: from here -->"
END = "<!-- printed by scripts/bench table: to here -->"
_WIDTH = 100
Unit = Literal["times", "seconds", "MiB"]


@dataclass(frozen=True, slots=True)
class Bound:
    """What a median should be: at least, or at most, so much."""

    limit: float
    is_least: bool
    unit: Unit = "times"

    def holds(self, median: float) -> bool:
        """Whether a median keeps to it."""
        return median >= self.limit if self.is_least else median <= self.limit

    def text(self, value: float) -> str:
        """A value in the bound's unit."""
        if self.unit == "seconds":
            return duration(value)
        return f"{value:.2f}" if self.unit == "times" else f"{value:.1f} MiB"

    def __str__(self) -> str:
        limit = f"{self.limit:g}" if self.unit == "times" else self.text(self.limit)
        return f"{'≥' if self.is_least else '≤'} {limit}"

    def margin(self, value: float) -> float:
        """How many times better than the bound a value is; below 1 it is not met. For values above 0."""
        return value / self.limit if self.is_least else self.limit / value


@dataclass(frozen=True, slots=True)
class Row:
    """One workload: the figure of each round, in the unit of its bound. `of` says what the bound is about, and `note`
    what else was measured."""

    workload: str
    against: str
    of: str
    bound: Bound
    values: tuple[float, ...]
    note: str = ""

    @property
    def spread(self) -> Spread:
        """Median and ends."""
        return Spread.of(self.values)

    @property
    def is_met(self) -> bool:
        """Whether the median keeps to the bound."""
        return self.bound.holds(self.spread.median)

    @property
    def cells(self) -> list[str]:
        """What stands in the table."""
        spread, text = self.spread, self.bound.text
        measured = text(spread.median)
        if len(self.values) > 1:
            measured += f" ({text(spread.least)}–{text(spread.most)})"
        measured += f"; {self.note}" if self.note else ""
        return [self.workload, self.against, f"{self.bound} {self.of}", measured, "yes" if self.is_met else "**no**"]


def at_least(limit: float) -> Bound:
    """A ratio that should not be less."""
    return Bound(limit, is_least=True)


def at_most(limit: float, unit: Unit = "times") -> Bound:
    """A ratio, or a figure in a unit, that should not be more."""
    return Bound(limit, is_least=False, unit=unit)


def markdown(rows: Sequence[Row], about: str, missing: Sequence[str], picture: str | None = None) -> str:
    """The table with the comments around it, to be pasted into a document: `about` tells where it comes from, `missing`
    what it lacks, `picture` is the path of the same as a picture, as the document has it."""
    head = ["workload", "against", "target", "measured: median (least–most)", "met"]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *(row.cells for row in rows))]
    said = [textwrap.fill(text, _WIDTH) for text in (about, *missing)]
    shown = [] if picture is None else ["", f"![How far each figure is from its target]({picture})"]
    return "\n".join([BEGINNING, *lines, "", *said, *shown, END])


def row_as_json(row: Row) -> dict[str, Any]:
    """All of a row; times in seconds."""
    return {
        "workload": row.workload,
        "against": row.against,
        "target": f"{row.bound} {row.of}",
        "unit": row.bound.unit,
        "median": row.spread.median,
        "values": row.values,
        "met": row.is_met,
        "note": row.note,
    }
