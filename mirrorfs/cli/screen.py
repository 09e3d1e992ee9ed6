"""What is more than lines: tables and bars on a terminal. The only place that draws with rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import rich.box
import rich.console
import rich.live
import rich.progress
import rich.table
import rich.text

from mirrorfs.output import printable, say

_LONGEST_CELL = 100


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. What stands in one that is `copied` is a name to be given to a command: it is never cut."""

    title: str
    copied: bool = False
    is_number: bool = False


@dataclass(frozen=True, slots=True)
class Row:
    """The cells of a row, and whether it tells of something bad."""

    cells: Sequence[str]
    is_bad: bool = False


def show_table(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    """Print a table: ruled on a terminal, as lines with aligned columns elsewhere."""
    shown = [
        Row([_shown(column, cell) for column, cell in zip(columns, row.cells, strict=True)], row.is_bad) for row in rows
    ]
    if sys.stdout.isatty():
        _draw(columns, shown)
    else:
        _print(columns, shown)


@dataclass(frozen=True, slots=True)
class ViewLine:
    """A line of a view, and whether it tells of something bad, or begins a part of it."""

    text: str
    is_bad: bool = False
    is_head: bool = False


class View:
    """Lines on the terminal that are shown anew in their place, while it is entered; the last ones stay."""

    def __init__(self) -> None:
        self._live = rich.live.Live(console=_console(), auto_refresh=False, vertical_overflow="ellipsis")

    def show(self, lines: Sequence[ViewLine]) -> None:
        """Show these in the place of the last ones. What is too long for the terminal is cut."""
        shown = [rich.text.Text(printable(line.text), style=_style(line), no_wrap=True) for line in lines]
        self._live.update(rich.console.Group(*shown), refresh=True)

    def __enter__(self) -> View:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def _style(line: ViewLine) -> str:
    return f"{'bold' if line.is_head else ''} {'red' if line.is_bad else ''}".strip()


class Bar:
    """A bar on standard error that shows how far something is, while it is entered; it disappears at the end."""

    def __init__(self, description: str) -> None:
        self._progress = rich.progress.Progress(
            rich.progress.TextColumn("{task.description}", markup=False),
            rich.progress.BarColumn(),
            rich.progress.TextColumn("{task.fields[state]}", markup=False),
            rich.progress.TimeElapsedColumn(),
            console=_console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(printable(description), total=None, state="")

    def update(self, description: str, *, completed: float | None = None, total: float | None, state: str = "") -> None:
        """Show how far it is: `completed` of `total`, which is None as long as it is not known."""
        self._progress.update(
            self._task, description=printable(description), completed=completed, total=total, state=printable(state)
        )

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


def _shown(column: Column, cell: str) -> str:
    text = printable(cell)
    return text if column.copied or len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def _draw(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    table = rich.table.Table(box=rich.box.SIMPLE_HEAD)
    for column in columns:
        table.add_column(
            column.title, justify="right" if column.is_number else "left", no_wrap=column.copied, overflow="fold"
        )
    for row in rows:
        table.add_row(*(rich.text.Text(cell, style="red" if row.is_bad else "") for cell in row.cells))
    _console().print(table)


def _print(columns: Sequence[Column], rows: Sequence[Row]) -> None:
    lines = [[column.title for column in columns], *(row.cells for row in rows)]
    widths = [max(len(line[number]) for line in lines) for number in range(len(columns))]
    say(*("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines))


def _console(*, stderr: bool = False) -> rich.console.Console:
    # Nothing in a text is an instruction: no markup, no emoji names, no colours for what looks like a number.
    return rich.console.Console(stderr=stderr, markup=False, emoji=False, highlight=False)
