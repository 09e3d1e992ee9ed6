"""Tables: drawn on a terminal, plain Markdown elsewhere."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Grid:
    """One table."""

    title: str
    head: list[str]
    rows: list[list[str]]


def print_facts(facts: dict[str, str]) -> None:
    """Print what the reader has to know of the machine and the run, a line each."""
    for name, value in facts.items():
        print(f"{name:14} {value}")


def print_grid(grid: Grid) -> None:
    """Print a table; nothing if it has no rows."""
    if not grid.rows:
        return
    if sys.stdout.isatty():
        table = Table(*grid.head, title=grid.title, title_justify="left")
        for row in grid.rows:
            table.add_row(*row)
        Console().print("", table)
        return
    widths = [max(len(row[column]) for row in [grid.head, *grid.rows]) for column in range(len(grid.head))]
    print(f"\n{grid.title}\n")
    for row in (grid.head, ["-" * width for width in widths], *grid.rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |")


def duration(seconds: float) -> str:
    """A time with three digits, in the unit that fits; the difference of two times may be less than nothing."""
    if seconds < 0:
        return f"−{duration(-seconds)}"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} µs"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
