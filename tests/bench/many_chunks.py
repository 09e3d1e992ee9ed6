"""`scripts/bench memory`: what a verification and a restore hold in memory while a bucket has millions of chunks."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.file_systems import file_system_for_small_files
from tests.bench.generated_store import BUCKET, NAME, running_generated_store
from tests.bench.grid import Grid, duration, print_facts, print_grid
from tests.bench.machine import load_average, machine_facts
from tests.bench.processes import BenchFailed
from tests.bench.uploads import Say
from tests.stores.server import StoreAccess

SUBJECTS = ("verify", "dry-run", "metadata-only", "restore")
_SAMPLE_MILLISECONDS = 20


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
    began = time.perf_counter()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "mirrorfs.cli", *words, "--endpoint-url", store.endpoint_url],
            env={**os.environ, **store.environment()},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=said,
        )
        memory, with_files = _most_memory(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            said.seek(0)
            raise BenchFailed(f"{command} has failed: {said.read().decode(errors='replace')[-500:]}")
    seconds = time.perf_counter() - began
    return MemorySample(command, chunks, seconds, usage.ru_utime + usage.ru_stime, memory, with_files)


def _most_memory(pid: int) -> tuple[int, int]:
    """Look at a process until it ends: its own memory, and all that it has mapped."""
    ended, own, everything = select.poll(), 0, 0
    process = os.pidfd_open(pid)
    try:
        ended.register(process, select.POLLIN)
        while not ended.poll(_SAMPLE_MILLISECONDS):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            sizes = {
                name: int(rest.split()[0]) * 1024
                for name, _, rest in (line.partition(":") for line in lines)
                if name in ("RssAnon", "VmHWM")
            }
            own = max(own, sizes.get("RssAnon", 0))
            everything = max(everything, sizes.get("VmHWM", 0))
    finally:
        os.close(process)
    return own, everything


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
