"""`scripts/bench retention`: what publishing and unpublishing a huge snapshot, a huge state and removals cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.chunk_removal import Latencies, MountMeanwhile, RemovalRate, Removals, latency_ratio, measure_removals
from tests.bench.grid import Grid, duration, print_facts, print_grid
from tests.bench.machine import load_average, machine_facts
from tests.bench.meter import Spread
from tests.bench.publication import Publications, Series, measure_publications
from tests.bench.state_growth import StateGrowth, measure_state_growth
from tests.stores.seaweedfs import running_seaweedfs
from tests.watchdog import killing_mounts_after

SUBJECTS = ("publication", "state", "removal")

# Far more than one of the parts takes: what lasts longer hangs.
_HUNG_SECONDS = 3600.0
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RetentionScale:
    """Sizes of one run; latencies and durations in seconds."""

    published_chunks: int
    latencies: tuple[float, ...]
    state_chunks: tuple[int, ...]
    removed_chunks: int
    removal_rounds: int
    quiet_seconds: float


FULL = RetentionScale(
    published_chunks=262_144,
    latencies=(0.0, 0.02),
    state_chunks=(1_000_000, 10_000_000),
    removed_chunks=10_000,
    removal_rounds=2,
    quiet_seconds=10.0,
)
QUICK = RetentionScale(
    published_chunks=32_768,
    latencies=(0.0, 0.02),
    state_chunks=(300_000,),
    removed_chunks=2_000,
    removal_rounds=1,
    quiet_seconds=4.0,
)


@dataclass(frozen=True, slots=True)
class RetentionResults:
    """All that a run has found. Loads are one-minute averages."""

    machine: dict[str, str]
    scale: RetentionScale
    load_before: float
    load_after: float
    publications: Publications | None
    states: tuple[StateGrowth, ...]
    removals: Removals | None


def measure_retention(base: Path, scale: RetentionScale, subjects: Sequence[str], say: Say) -> RetentionResults:
    """Measure what is asked for, below `base`. Raises BenchFailed, StoreLaunchError."""
    load_before = load_average()
    publications, removals = None, None
    states: list[StateGrowth] = []
    if "publication" in subjects:
        say(f"snapshots of {scale.published_chunks:,} chunks")
        publications = measure_publications(base / "publication", scale.published_chunks, scale.latencies)
    if "state" in subjects:
        for chunks in scale.state_chunks:
            say(f"a state of {chunks:,} chunks")
            states.append(measure_state_growth(base / f"state-{chunks}", chunks))
    if "removal" in subjects:
        removals = _removals(base, scale, say)
    return RetentionResults(
        machine_facts(base), scale, load_before, load_average(), publications, tuple(states), removals
    )


def _removals(base: Path, scale: RetentionScale, say: Say) -> Removals:
    with running_seaweedfs(base / "store") as store, killing_mounts_after(_HUNG_SECONDS):
        return measure_removals(
            base / "removal",
            store,
            store.create_bucket(),
            chunks=scale.removed_chunks,
            quiet_seconds=scale.quiet_seconds,
            rounds=scale.removal_rounds,
            say=say,
        )


def print_retention(results: RetentionResults) -> None:
    """Tables on a terminal, plain Markdown elsewhere."""
    load = f"{results.load_before:.2f} before, {results.load_after:.2f} after"
    print_facts({**results.machine, "load average": load})
    if results.publications is not None:
        for series in results.publications.series:
            print_grid(_publication_grid(results.publications, series))
    print_grid(_state_grid(results.states))
    if results.removals is not None:
        print_grid(_rate_grid(results.removals.rates))
        print_grid(_meanwhile_grid(results.removals.meanwhile))


def retention_as_json(results: RetentionResults) -> dict[str, Any]:
    """Everything that was measured, each sample by itself; times in seconds, sizes in bytes."""
    return asdict(results)


def _publication_grid(publications: Publications, series: Series) -> Grid:
    rows = []
    for passage in series.passages:
        requests = sum(stage.requests for stage in passage.stages)
        under_way = sum(stage.request_seconds for stage in passage.stages)
        rows.append([passage.title, "all", duration(passage.seconds), f"{requests}", duration(under_way)])
        rows += [
            ["", stage.title, duration(stage.seconds), f"{stage.requests}", duration(stage.request_seconds)]
            for stage in passage.stages
        ]
    title = (
        f"A snapshot of {publications.chunks:,} chunks, 1 % new: {publications.new:,}; the store takes "
        f"{series.latency * 1e3:g} ms a request; at most {publications.memory / 2**20:.0f} MiB of memory"
    )
    return Grid(title, ["passage", "stage", "time", "requests", "of which some under way for"], rows)


def _state_grid(states: Sequence[StateGrowth]) -> Grid:
    rows = [
        [
            f"{state.chunks:,}",
            f"{state.file_bytes / 1e6:,.0f} MB",
            f"{state.bytes_per_chunk:.0f}",
            duration(state.seconds),
            f"{duration(state.reference_seconds[0])}, {duration(max(state.reference_seconds))}",
            f"{state.memory / 2**20:.0f} MiB",
        ]
        for state in states
    ]
    head = ["chunks", "file", "bytes a chunk", "time", "a snapshot's references: first, longest", "memory, at most"]
    return Grid("The state: snapshots of 262,144 chunks one after the other", head, rows)


def _rate_grid(rates: Sequence[RemovalRate]) -> Grid:
    rows = [
        [
            f"{rate.chunks:,}",
            duration(rate.sweep_seconds),
            duration(rate.seconds - rate.sweep_seconds),
            f"{rate.chunks / rate.seconds:.0f}",
            ", ".join(f"{number} {method}" for method, number in sorted(rate.requests.items())),
            duration(rate.uploader_seconds / rate.chunks),
            duration(rate.store_seconds / rate.chunks),
        ]
        for rate in rates
    ]
    head = [
        "chunks",
        "sweep",
        "then until all are gone",
        "chunks/s in all",
        "requests",
        "uploader's CPU a chunk",
        "store's",
    ]
    return Grid("Chunks unlinked through the mount, until they have left the bucket: each round", head, rows)


def _meanwhile_grid(rounds: Sequence[MountMeanwhile]) -> Grid:
    operations: tuple[tuple[str, Callable[[Latencies], Sequence[float]]], ...] = (
        ("open, read and close a tiny chunk", lambda latencies: latencies.reads),
        ("insert a tiny chunk", lambda latencies: latencies.inserts),
    )
    rows = []
    for title, of in operations:
        for meanwhile in rounds:
            rows.append(
                [
                    title,
                    duration(Spread.of(of(meanwhile.quiet)).median),
                    duration(Spread.of(of(meanwhile.removing)).median),
                    f"{latency_ratio(meanwhile, of):.2f}",
                    duration(_nearly_longest(of(meanwhile.quiet))),
                    duration(_nearly_longest(of(meanwhile.removing))),
                    f"{meanwhile.chunks / meanwhile.removal_seconds:.0f}",
                ]
            )
    head = [
        "operation", "quiet: median", "removing: median", "ratio", "quiet: 99 %", "removing: 99 %", "chunks/s removed"
    ]  # fmt: skip
    return Grid("The mount while chunks leave the bucket: each round", head, rows)


def _nearly_longest(seconds: Sequence[float]) -> float:
    return sorted(seconds)[len(seconds) * 99 // 100]
