"""Why something is slower is measured, whatever comes of it."""

from __future__ import annotations

import math
from pathlib import Path

from tests.bench import why
from tests.bench.report import as_json, print_report
from tests.bench.targets import Target


def test_each_cause_has_its_samples(memory: Path) -> None:
    class Both(why.WithoutUploader, why.StateElsewhere):
        """One mount is enough for a test."""

    results = why.measure_why(memory, why.SMALLEST, ["insert"], lambda _: None, [Both])
    assert [target.name for target in results.targets] == ["backing", "computing", "stopped"]
    for part in results.parts:
        for target in results.targets:
            spread = results.meter.ratios(part, target.name, Target.name)
            assert spread is not None
            assert math.isfinite(spread.median)
    print_report(results)
    assert as_json(results)["operations"]
    assert not list(why._MEMORY.glob("mirrorfs-bench-*/mirrorfs*")), "no state is left in memory"
