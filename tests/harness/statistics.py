"""What a run has done and what came of it: counted, for the table at its end."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Statistics:
    """Any thread. `violations` are sentences that begin with the promise that was broken."""

    operations: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    checks: Counter[str] = field(default_factory=Counter)
    bytes_written: int = 0
    rounds: int = 0
    violations: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    _mutex: threading.Lock = field(default_factory=threading.Lock)

    def count_operation(self, name: str, size: int = 0) -> None:
        """An operation was answered with success; `size` in bytes is what it wrote."""
        with self._mutex:
            self.operations[name] += 1
            self.bytes_written += size

    def count_fault(self, name: str, times: int = 1) -> None:
        """A fault has really struck so often."""
        if times:
            with self._mutex:
                self.faults[name] += times

    def violate(self, sentences: Iterable[object]) -> None:
        """Promises were broken."""
        with self._mutex:
            self.violations += [str(sentence) for sentence in sentences]

    def line(self) -> str:
        """How far the run is, in one line."""
        return (
            f"{time.monotonic() - self.began:6.0f} s  round {self.rounds:3}  {self.operations.total():5} operations  "
            f"{self.bytes_written / 1e6:7.1f} MB  {self.faults.total():5} faults  "
            f"{self.checks.total():6} checks  {len(self.violations)} violations"
        )

    def table(self) -> str:
        """Everything that was counted, as a table in Markdown."""
        rows = [
            ("time", f"{time.monotonic() - self.began:.0f} s"),
            ("rounds", f"{self.rounds}"),
            ("operations", f"{self.operations.total()}"),
            ("bytes written by PBS", f"{self.bytes_written}"),
            *((f"operation: {name}", f"{count}") for name, count in sorted(self.operations.items())),
            *((f"operation refused or cut short: {name}", f"{count}") for name, count in sorted(self.refused.items())),
            *((f"fault: {name}", f"{count}") for name, count in sorted(self.faults.items())),
            *((f"check: {name}", f"{count}") for name, count in sorted(self.checks.items())),
            ("violations", f"{len(self.violations)}"),
        ]
        lines = ["| what | count |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)]
        return "\n".join(lines)
