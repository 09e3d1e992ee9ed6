"""The tables, for people, and the raw figures as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tests.bench.grid import Grid, duration, print_facts, print_grid
from tests.bench.meter import Meter, Part, Spread
from tests.bench.targets import Target
from tests.bench.uploads import UploadSample, UploadSeries

_REFERENCE = "backing"
_LARGE_OBJECT = 64 * 1024


@dataclass(frozen=True, slots=True)
class Results:
    """All that a run has found. Loads are one-minute averages."""

    machine: dict[str, str]
    scale: dict[str, int]
    load_before: float
    load_after: float
    targets: Sequence[Target]
    meter: Meter
    uploads: Sequence[UploadSeries]

    @property
    def parts(self) -> list[Part]:
        """What was measured, in order."""
        return list(self.meter.parts.values())


def print_report(results: Results) -> None:
    """Tables on a terminal, plain Markdown elsewhere."""
    load = f"{results.load_before:.2f} before, {results.load_after:.2f} after"
    print_facts({**results.machine, "load average": load})
    grids = [_ratios(results), _times(results), _processor_times(results), _publications(results)]
    for grid in [*grids, _uploads(results.uploads)]:
        print_grid(grid)


def as_json(results: Results) -> dict[str, Any]:
    """Everything that was measured, each sample by itself; times in seconds, sizes in bytes."""
    return {
        "machine": results.machine,
        "scale": results.scale,
        "load": {"before": results.load_before, "after": results.load_after},
        "operations": [
            {
                **asdict(part),
                "samples": {
                    target.name: [asdict(sample) for sample in results.meter.samples(part, target.name)]
                    for target in results.targets
                },
            }
            for part in results.parts
        ],
        "uploads": [asdict(series) for series in results.uploads],
    }


def _ratios(results: Results) -> Grid:
    others = [target for target in results.targets if target.name != _REFERENCE]
    rows = []
    for part in results.parts:
        spreads = [results.meter.ratios(part, target.name, _REFERENCE) for target in others]
        rows.append([part.title, *("" if spread is None else _ratio_text(spread) for spread in spreads)])
    title = "Time relative to the backing directory: median (least–most) of the rounds"
    return Grid(title, ["operation", *(target.title for target in others)], rows)


def _ratio_text(spread: Spread) -> str:
    return f"{spread.median:.2f} ({spread.least:.2f}–{spread.most:.2f})"


def _times(results: Results) -> Grid:
    def cell(part: Part, target: Target) -> str:
        spread = Spread.of([sample.unit_seconds for sample in results.meter.samples(part, target.name)])
        return f"{duration(spread.median)} ({duration(spread.least)}–{duration(spread.most)})"

    return _grid_of_targets(results, "Time: median (least–most)", results.targets, cell)


def _processor_times(results: Results) -> Grid:
    def cell(part: Part, target: Target) -> str:
        samples = results.meter.samples(part, target.name)
        text = duration(statistics.median(sample.daemon_seconds / sample.count for sample in samples))
        uploader = statistics.median(sample.uploader_seconds / sample.count for sample in samples)
        return f"{text} + {duration(uploader)}" if part.is_mirrored and uploader > 0 else text

    mounted = [target for target in results.targets if target.name != _REFERENCE]
    title = "Processor time of the file system's process (+ the uploader's, until all was mirrored): median"
    return _grid_of_targets(results, title, mounted, cell)


def _grid_of_targets(
    results: Results, title: str, targets: Sequence[Target], cell: Callable[[Part, Target], str]
) -> Grid:
    rows = [
        [part.title, part.unit, *(cell(part, target) for target in targets)]
        for part in results.parts
        if all(results.meter.samples(part, target.name) for target in targets)
    ]
    return Grid(title, ["operation", "per", *(target.title for target in targets)], rows)


def _publications(results: Results) -> Grid:
    rows = []
    for part in results.parts:
        samples = results.meter.samples(part, "mirrorfs")
        delays = [sample.publication_seconds for sample in samples if sample.publication_seconds is not None]
        if part.is_mirrored and delays:
            spread = Spread.of(delays)
            durations = f"{duration(spread.median)} ({duration(spread.least)}–{duration(spread.most)})"
            rows.append([part.title, f"{samples[0].count:g} x {part.unit}", durations])
    title = "From the end of the operation until all of it was in the bucket: median (least–most)"
    return Grid(title, ["operation", "amount", "delay"], rows)


def _uploads(uploads: Sequence[UploadSeries]) -> Grid:
    rows = []
    for series in uploads:
        for title, samples in series.samples.items():
            rows.append([series.title, title, *_upload_cells(samples)])
    head = ["what", "by", "MB/s", "objects/s", "CPU s per GiB", "CPU ms per object", "store's CPU ms per object"]
    return Grid("The uploader alone, file system idle: median of the rounds", head, rows)


def _upload_cells(samples: Sequence[UploadSample]) -> list[str]:
    def median(value: Callable[[UploadSample], float]) -> float:
        return statistics.median(value(sample) for sample in samples)

    # Of tiny objects, what counts is their number.
    is_large = samples[0].size / samples[0].objects > _LARGE_OBJECT
    return [
        f"{median(lambda sample: sample.size / 1e6 / sample.seconds):.1f}" if is_large else "",
        f"{median(lambda sample: sample.objects / sample.seconds):.0f}",
        f"{median(lambda sample: sample.sender_seconds / sample.size * 2**30):.2f}" if is_large else "",
        f"{median(lambda sample: sample.sender_seconds / sample.objects * 1e3):.2f}",
        f"{median(lambda sample: sample.store_seconds / sample.objects * 1e3):.2f}",
    ]
