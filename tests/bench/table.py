"""`scripts/bench table`: all that the project wants to be measured by, in one run, each figure beside its target."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from tests.bench import restoring, snapshots, uploads
from tests.bench.creation import measure_creations
from tests.bench.grid import duration
from tests.bench.growth import Growth, measure_growth
from tests.bench.lag import measure_lags
from tests.bench.machine import load_average, machine_facts
from tests.bench.meter import Meter, Part, Spread
from tests.bench.operations import MEBIBYTE, OPERATIONS, Backup, InsertChunks, Mark, ReadChunks, Sweep
from tests.bench.processes import BenchFailed, remove_all
from tests.bench.restoring import RestoreScale, RestoreSeries
from tests.bench.rounds import HUNG_SECONDS, measure_operations
from tests.bench.scale import FULL as WHOLE_SCALE
from tests.bench.scale import Scale
from tests.bench.snapshots import SnapshotSample, SnapshotScale
from tests.bench.stub_store import running_stub_store
from tests.bench.targets import Mirror, Target
from tests.bench.uploads import RCLONE, UPLOADER, Say, UploadSample, UploadSeries
from tests.bench.verdict import Row, at_least, at_most, markdown, row_as_json
from tests.stores.seaweedfs import StoreServer, running_seaweedfs
from tests.watchdog import killing_mounts_after

_DOCUMENTS = Path(__file__).parents[2] / "docs"
_BACKING = "backing directory"
_COPY = "`rclone copy`"
# A figure for an item that is not this much larger with ten times the items does not grow with them.
_FLAT = 1.2


@dataclass(frozen=True, slots=True)
class TableScale:
    """How much of everything one run does."""

    cost: Scale
    created_directories: int
    creation_rounds: int
    listing: SnapshotScale
    events: SnapshotScale
    restores: RestoreScale
    lag_mebibytes: int
    lag_rounds: int
    grown_chunks: tuple[int, ...]
    growth_rounds: int


FULL = TableScale(
    cost=replace(
        WHOLE_SCALE,
        rounds=5,
        sweep_rounds=3,
        backup_mebibytes=192,
        small_chunks=1000,
        tiny_chunks=50,
        marked_chunks=8192,
        swept_directories=65_536,
        uploaded_large_chunks=96,
        uploaded_small_chunks=2000,
    ),
    created_directories=65_536,
    creation_rounds=3,
    listing=SnapshotScale(snapshots=5000, rewritten=1000, chunks=0, rounds=4),
    events=SnapshotScale(snapshots=1, rewritten=0, chunks=100_000, rounds=3),
    restores=RestoreScale(large_chunks=4096, small_chunks=32_000, tiny_chunks=0, rounds=3),
    lag_mebibytes=1024,
    lag_rounds=3,
    grown_chunks=(10_000, 100_000, 1_000_000),
    growth_rounds=1,
)
QUICK = TableScale(
    cost=replace(
        FULL.cost,
        all_chunk_directories=False,
        rounds=3,
        sweep_rounds=3,
        backup_mebibytes=48,
        large_chunks=8,
        small_chunks=200,
        marked_chunks=1024,
        swept_directories=4096,
        upload_rounds=1,
        uploaded_large_chunks=32,
        uploaded_small_chunks=500,
    ),
    created_directories=8192,
    creation_rounds=1,
    listing=SnapshotScale(snapshots=500, rewritten=100, chunks=0, rounds=3),
    events=SnapshotScale(snapshots=1, rewritten=0, chunks=5000, rounds=3),
    restores=RestoreScale(large_chunks=32, small_chunks=500, tiny_chunks=0, rounds=1),
    lag_mebibytes=128,
    lag_rounds=3,
    grown_chunks=(10_000, 30_000),
    growth_rounds=2,
)
SMALLEST = TableScale(
    cost=replace(
        QUICK.cost,
        rounds=1,
        sweep_rounds=1,
        backup_mebibytes=4,
        large_chunks=1,
        small_chunks=2,
        tiny_chunks=1,
        marked_chunks=2,
        swept_directories=2,
        uploaded_large_chunks=1,
        uploaded_small_chunks=4,
    ),
    created_directories=16,
    creation_rounds=1,
    listing=SnapshotScale(snapshots=6, rewritten=2, chunks=0, rounds=2),
    events=SnapshotScale(snapshots=1, rewritten=0, chunks=20, rounds=2),
    restores=restoring.SMALLEST,
    lag_mebibytes=4,
    lag_rounds=1,
    grown_chunks=(10, 100),
    growth_rounds=1,
)


@dataclass(frozen=True, slots=True)
class Run:
    """What the measurements of one run have in common. `against` is an older checkout, with a .venv of its own."""

    scale: TableScale
    against: Path | None
    say: Say


@dataclass(frozen=True, slots=True)
class TableResults:
    """All that a run has found. Loads are one-minute averages; `seconds` is how long each section took, `missing` has a
    sentence for each row that there is not."""

    machine: dict[str, str]
    scale: TableScale
    load_before: float
    load_after: float
    rows: tuple[Row, ...]
    missing: tuple[str, ...]
    seconds: dict[str, float]


def measure_table(base: Path, run: Run, names: Sequence[str]) -> TableResults:
    """Measure the sections that are named, in their order, each below a directory of its own that is removed again.

    What one cannot measure keeps no other from it.
    """
    load_before, rows, missing, seconds = load_average(), [], [], {}
    for name, section in SECTIONS.items():
        if name not in names:
            continue
        began = time.monotonic()
        directory = base / name
        directory.mkdir()
        try:
            rows += section(directory, run)
        except BenchFailed as failure:
            missing.append(f"Not measured, {name}: {failure}.")
            run.say(missing[-1])
        remove_all(directory)
        seconds[name] = time.monotonic() - began
    machine = machine_facts(base, _rival(names))
    return TableResults(machine, run.scale, load_before, load_average(), tuple(rows), tuple(missing), seconds)


def _rival(names: Sequence[str]) -> Sequence[str]:
    """Asked for its version where it takes part."""
    return (restoring.rclone(), "version") if {"uploads", "restores"}.intersection(names) else ("python3", "--version")


# -- beside the backing directory --------------------------------------------------------------------------


def _impact(base: Path, run: Run) -> list[Row]:
    scale = run.scale.cost
    kinds = (Backup, InsertChunks, ReadChunks, Mark, Sweep)
    operations = [operation(scale) for operation in OPERATIONS if operation in kinds]
    with _store_elsewhere() as (store, bucket):
        targets = [Target(base / "backing"), Mirror(base / "mirrorfs", store, bucket)]
        meter = Meter(base)
        measure_operations(operations, targets, meter, run.say)
    native = at_least(0.95)

    def speed(workload: str, part: Part) -> Row:
        ratios = tuple(1 / ratio for ratio in _ratios(meter, part))
        backing = Spread.of([sample.unit_seconds for sample in meter.samples(part, Target.name)])
        note = f"{duration(backing.median)} a {part.unit} there"
        return Row(workload, _BACKING, "of its speed", native, ratios, note)

    def backup(workload: str, part: Part) -> Row:
        return Row(workload, f"{_BACKING} with syncfs", "of its time", at_most(1.05), _ratios(meter, part))

    return [
        speed("insert chunks of 4 MiB", InsertChunks.large),
        speed("insert chunks of 64 KiB", InsertChunks.small),
        speed("read chunks of 4 MiB, from memory", ReadChunks.memory),
        speed("utimensat of chunks, names new to the kernel", Mark.new),
        speed("utimensat of chunks, names known to it", Mark.known),
        speed(f"sweep of {scale.swept_directories:,} directories", Sweep.part),
        backup(f"a first backup of {scale.backup_mebibytes} MiB", Backup.first),
        backup("the same, a quarter changed", Backup.incremental),
    ]


def _ratios(meter: Meter, part: Part) -> tuple[float, ...]:
    """Times through mirrorfs over those in the backing directory, round by round."""
    pairs = zip(meter.samples(part, Mirror.name), meter.samples(part, Target.name), strict=True)
    return tuple(sample.unit_seconds / backing.unit_seconds for sample, backing in pairs)


def _creation(base: Path, run: Run) -> list[Row]:
    directories, rounds = run.scale.created_directories, run.scale.creation_rounds
    with _store_elsewhere() as (store, bucket):
        found = measure_creations(base / "creation", store, bucket, directories=directories, rounds=rounds, say=run.say)
    ratios = _over(found.backing, found.mirrorfs)
    note = f"{duration(Spread.of(found.backing).median)} there"
    return [
        Row(f"create a datastore, {directories + 1:,} mkdir", _BACKING, "of its speed", at_least(0.5), ratios, note)
    ]


def _over(dividends: Sequence[float], divisors: Sequence[float]) -> tuple[float, ...]:
    return tuple(dividend / divisor for dividend, divisor in zip(dividends, divisors, strict=True))


@contextmanager
def _store_elsewhere() -> Iterator[tuple[StoreServer, str]]:
    """A stub with a bucket, which takes nothing from what is measured: usually the store is another machine."""
    with running_stub_store(is_elsewhere=True) as stub:
        # It has all that a mirror asks of a store which it does not start or stop.
        yield cast(StoreServer, stub), stub.create_bucket("bench")


# -- the filesystem process --------------------------------------------------------------------------------


def _listing(base: Path, run: Run) -> list[Row]:
    if run.against is None:
        raise BenchFailed("listing is compared with an older checkout, name one by --against")
    scale, against = run.scale.listing, snapshots.title_of(run.against)
    names = ["list", "rewrite"]
    found = snapshots.measure_snapshots(base, scale, names, run.against, run.say, floor=True)
    samples = {(series.passage, series.target): series.samples for series in found.series}

    def row(workload: str, passage: str, quantity: str, of: Callable[[SnapshotSample], float]) -> Row:
        ours, theirs, floor = (
            [of(sample) for sample in samples[passage, target]] for target in ("mirrorfs", against, snapshots.BARE)
        )
        each = f"{duration(Spread.of(ours).median)} each; pyfuse3 alone {Spread.of(_over(floor, theirs)).median:.2f}"
        return Row(workload, against, quantity, at_most(0.5), _over(ours, theirs), each)

    listed = f"list {scale.snapshots:,} snapshots with their manifests"
    return [
        row(listed, snapshots.LISTED, "of its time", lambda sample: sample.seconds),
        row(listed, snapshots.LISTED, "of its CPU", lambda sample: sample.daemon_seconds),
        row(
            f"rewrite {scale.rewritten:,} manifests",
            snapshots.REWRITTEN,
            "of its CPU",
            lambda sample: sample.daemon_seconds,
        ),
    ]


def _events(base: Path, run: Run) -> list[Row]:
    scale = run.scale.events
    found = snapshots.measure_snapshots(base, scale, ["events"], None, run.say)
    (samples,) = [series.samples for series in found.series if series.target == "mirrorfs"]
    changes = f"{2 * scale.chunks * scale.rounds:,} chunks made or removed"
    more = sum(sample.memory for sample in samples[1:]) / MEBIBYTE
    return [
        Row(
            changes,
            "–",
            "of CPU each, filesystem process",
            at_most(30e-6, "seconds"),
            tuple(sample.daemon_seconds for sample in samples),
        ),
        Row("memory meanwhile", "–", "more after the last round than after the first", at_most(4, "MiB"), (more,)),
    ]


# -- the uploader ------------------------------------------------------------------------------------------


def _uploads(base: Path, run: Run) -> list[Row]:
    with running_seaweedfs(base / "store") as store, killing_mounts_after(HUNG_SECONDS):
        bucket = store.create_bucket()
        found = uploads.measure_uploads(base, store, bucket, run.scale.cost, run.say, (UPLOADER, RCLONE))
    return [row for series in found for row in _upload_rows(series)]


def _upload_rows(series: UploadSeries) -> list[Row]:
    least, most = (1.0, 1.2) if "4MiB" in series.name else (0.8, 2.0)
    store = "" if series.name.endswith("-stub") else ", to SeaweedFS"
    ours, theirs = series.samples[UPLOADER], series.samples[RCLONE]

    def each(samples: Sequence[UploadSample], of: Callable[[UploadSample], float]) -> list[float]:
        return [of(sample) for sample in samples]

    seconds = each(theirs, lambda sample: sample.seconds), each(ours, lambda sample: sample.seconds)
    processor = each(ours, lambda sample: sample.sender_seconds), each(theirs, lambda sample: sample.sender_seconds)
    size = Spread.of([sample.size / sample.seconds / 1e6 for sample in ours]).median
    cost = Spread.of([sample.sender_seconds / sample.objects for sample in ours]).median
    workload = f"upload {series.title}{store}"
    return [
        Row(workload, _COPY, "of its speed", at_least(least), _over(*seconds), f"{size:.0f} MB/s"),
        Row(workload, _COPY, "of its CPU", at_most(most), _over(*processor), f"{duration(cost)} a chunk"),
    ]


def _restores(base: Path, run: Run) -> list[Row]:
    found = restoring.measure_restores(base, run.scale.restores, ["4MiB", "64KiB"], run.say)
    return [row for series in found.series for row in _restore_rows(series, run.scale.restores)]


def _restore_rows(series: RestoreSeries, scale: RestoreScale) -> list[Row]:
    ours = [sample.seconds for sample in series.mirrorfs]
    theirs = [sample.seconds for sample in series.rclone]
    # What mirrorfs has brought when it ends is on the disk.
    safe = [sample.seconds_until_safe for sample in series.rclone]
    chunks, size = (scale.large_chunks, "4 MiB") if series.name == "4MiB" else (scale.small_chunks, "64 KiB")
    workload = f"restore {chunks} chunks of {size}"
    speed = f"{Spread.of([series.size / seconds / 1e6 for seconds in ours]).median:.0f} MB/s"
    return [
        Row(workload, f"{_COPY} back", "of its speed", at_least(0.9), _over(theirs, ours), speed),
        Row(workload, f"{_COPY} back, and syncfs", "of its speed", at_least(0.9), _over(safe, ours)),
    ]


def _lag(base: Path, run: Run) -> list[Row]:
    size = run.scale.lag_mebibytes
    with running_seaweedfs(base / "store") as store:
        bucket = store.create_bucket()
        found = measure_lags(base / "lag", store, bucket, mebibytes=size, rounds=run.scale.lag_rounds, say=run.say)
    beyond = tuple(sample.seconds - sample.transfer_seconds for sample in found)
    note = f"{duration(Spread.of([sample.seconds for sample in found]).median)} in all"
    workload = f"from a manifest's rename to its object: {size} MiB, 1 % new, idle"
    return [Row(workload, "–", "beyond the transfer", at_most(0.5, "seconds"), beyond, note)]


# -- many chunks -------------------------------------------------------------------------------------------


def _growth(base: Path, run: Run) -> list[Row]:
    with running_stub_store(is_elsewhere=True) as stub:
        bucket, counts = stub.create_bucket("bench"), run.scale.grown_chunks
        found = measure_growth(
            base / "growth", stub, bucket, counts=counts, rounds=run.scale.growth_rounds, say=run.say
        )
    last, before = found[-1], found[-2]
    starts = f"a start over {last.chunks:,} unchanged chunks"
    publications = f"publish a snapshot of {last.chunks:,} chunks, none new"
    return [
        Row(
            starts,
            "–",
            "in all",
            at_most(15, "seconds"),
            last.start_seconds,
            _each(found[:-1], lambda growth: growth.start_seconds),
        ),
        _flat_row(starts, before, last, lambda growth: _for_a_chunk(growth, growth.start_seconds)),
        _flat_row(publications, before, last, lambda growth: _for_a_chunk(growth, growth.publish_seconds)),
        _flat_row(f"`status` with {last.chunks:,} chunks", found[0], last, lambda growth: growth.status_seconds),
    ]


def _flat_row(workload: str, few: Growth, many: Growth, of: Callable[[Growth], Sequence[float]]) -> Row:
    usual = Spread.of(of(few)).median
    ratios = tuple(value / usual for value in of(many))
    note = f"{duration(Spread.of(of(many)).median)} instead of {duration(usual)}"
    what = "the time" if "status" in workload else "the time a chunk"
    return Row(workload, f"the same with {few.chunks:,}", f"of {what}", at_most(_FLAT), ratios, note)


def _for_a_chunk(growth: Growth, seconds: Sequence[float]) -> list[float]:
    return [value / growth.chunks for value in seconds]


def _each(found: Sequence[Growth], of: Callable[[Growth], Sequence[float]]) -> str:
    return ", ".join(f"{growth.chunks:,}: {duration(Spread.of(of(growth)).median)}" for growth in found)


SECTIONS: Mapping[str, Callable[[Path, Run], list[Row]]] = {
    "impact": _impact,
    "creation": _creation,
    "listing": _listing,
    "uploads": _uploads,
    "restores": _restores,
    "events": _events,
    "lag": _lag,
    "growth": _growth,
}


def table_as_markdown(results: TableResults, picture: Path | None = None) -> str:
    """The table, where it comes from, and a picture that is drawn of it, for a document in docs."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    facts = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    met = sum(row.is_met for row in results.rows)
    about = (
        f"{time.strftime('%Y-%m-%d')}, commit {commit or 'unknown'}: {met} of {len(results.rows)} met; "
        f"{sum(results.seconds.values()) / 60:.0f} minutes, load average {results.load_before:.1f} before and "
        f"{results.load_after:.1f} after. {facts}."
    )
    link = None if picture is None else os.path.relpath(picture, _DOCUMENTS)
    return markdown(results.rows, about, results.missing, link)


def table_as_json(results: TableResults) -> dict[str, Any]:
    """The figure of each round; times in seconds."""
    return {**asdict(results), "rows": [row_as_json(row) for row in results.rows]}
