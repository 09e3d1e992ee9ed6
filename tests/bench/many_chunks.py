"""`scripts/bench memory`: what a verification and a restore hold in memory while a bucket has millions of chunks."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.file_systems import file_system_for_small_files
from tests.bench.generated_store import BUCKET, NAME, running_generated_store
from tests.bench.grid import Grid, duration, print_facts, print_grid
from tests.bench.machine import load_average, machine_facts
from tests.bench.uploads import Say
from tests.bench.watched import run_watched
from tests.stores.server import StoreAccess

SUBJECTS = ("verify", "dry-run", "metadata-only", "restore")


@dataclass(frozen=True, slots=True)
class MemoryScale:
    """How many chunks the bucket has: where they are only listed and read of, and where they are restored."""

    referenced: tuple[int, ...]
    restored: tuple[int, ...]


FULL = MemoryScale(referenced=(100_000, 10_000_000), restored=(10_000, 100_000, 1_000_000))
QUICK = MemoryScale(referenced=(100_000, 1_000_000), restored=(1_000, 10_000))
SMALLEST = MemoryScale(referenced=(1_000,), restored=(10,))


@dataclass(frozen=True, slots=True)
class MemorySample:
    """One command on a bucket of so many chunks: seconds, processor seconds, the most memory that was its own, and the
    most with what the kernel had of its files (an index), in bytes.
    """

    command: str
    chunks: int
    seconds: float
    processor_seconds: float
    memory: int
    with_files: int


@dataclass(frozen=True, slots=True)
class MemoryResults:
    """All that a run has found. Loads are one-minute averages."""

    machine: dict[str, str]
    scale: MemoryScale
    load_before: float
    load_after: float
    samples: tuple[MemorySample, ...]


def measure_memory(base: Path, scale: MemoryScale, names: Sequence[str], say: Say) -> MemoryResults:
    """Measure each command on buckets of each size. Raises BenchFailed."""
    load_before = load_average()
    samples = []
    for command in names:
        for chunks in scale.restored if command == "restore" else scale.referenced:
            say(f"{command}: {chunks} chunks")
            files = chunks if command == "restore" else 0
            with running_generated_store(chunks) as store, _disk(base, files) as disk:
                samples.append(_measure(disk, command, chunks, store))
    return MemoryResults(machine_facts(base), scale, load_before, load_average(), tuple(samples))


@contextmanager
def _disk(base: Path, files: int) -> Iterator[Path]:
    disk = base / "disk"
    disk.mkdir(exist_ok=True)
    with file_system_for_small_files(base / "image", disk, files=files):
        yield disk


def _measure(disk: Path, command: str, chunks: int, store: StoreAccess) -> MemorySample:
    target = disk / "restored"
    words = {
        "verify": ["verify", f"s3://{BUCKET}/{NAME}"],
        "dry-run": ["restore", f"s3://{BUCKET}/{NAME}", str(target), "--dry-run"],
        "metadata-only": ["restore", f"s3://{BUCKET}/{NAME}", str(target), "--metadata-only"],
        "restore": ["restore", f"s3://{BUCKET}/{NAME}", str(target)],
    }[command]
    program = [sys.executable, "-m", "mirrorfs.cli", *words, "--endpoint-url", store.endpoint_url]
    found = run_watched(program, store.environment())
    return MemorySample(
        command, chunks, found.seconds, found.processor_seconds, found.own_memory, with_files=found.memory
    )


def print_memory(results: MemoryResults) -> None:
    """Tables on a terminal, plain Markdown elsewhere."""
    load = f"{results.load_before:.2f} before, {results.load_after:.2f} after"
    print_facts({**results.machine, "load average": load})
    rows = [
        [
            sample.command,
            f"{sample.chunks:,}",
            duration(sample.seconds),
            duration(sample.processor_seconds),
            f"{sample.memory / 1e6:.0f} MB",
            f"{sample.with_files / 1e6:.0f} MB",
        ]
        for sample in results.samples
    ]
    head = ["what", "chunks", "time", "processor", "own memory, at most", "with mapped files"]
    print_grid(Grid("Memory beside the number of chunks", head, rows))


def memory_as_json(results: MemoryResults) -> dict[str, Any]:
    """Each sample."""
    return asdict(results)
