"""What is left to the filesystem process where chunks are native: to list thousands of snapshots, to rewrite their
manifests as a verify job does, and to hear of chunks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.bench.bare import REQUESTS
from tests.bench.grid import Grid, duration, print_facts, print_grid
from tests.bench.machine import load_average, machine_facts
from tests.bench.meter import Spread
from tests.bench.processes import BenchFailed, FileSystemDaemon, own_memory, processor_seconds
from tests.bench.targets import sync_file_system
from tests.bench.uploads import Say
from tests.harness.bulk import generate_bulk
from tests.harness.mirror import Mirror
from tests.harness.names import parse_snapshot_time
from tests.harness.system_calls import Identity, SystemCalls
from tests.harness.writer import DatastoreWriter
from tests.watchdog import killing_mounts_after

SUBJECTS = ("list", "rewrite", "events")
LISTED = "list once more"
REWRITTEN = "rewrite a manifest"
BARE = "pyfuse3 alone"
EVENTS = "make a chunk, or remove it"
_SNAPSHOTS_OF_A_GROUP = 50
_HUNG_SECONDS = 600.0
_CHUNK_DIRECTORIES = 256
# What has heard of everything uses next to no processor time from then on.
_REST_SECONDS = 0.5
_REST_SHARE = 0.05
# Nobody listens there: what is measured is the filesystem process, with its journal, beside an uploader that waits.
_NO_STORE = "http://127.0.0.1:1"
_NO_CREDENTIALS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass(frozen=True, slots=True)
class SnapshotScale:
    """Snapshots of each target; manifests that are rewritten, and chunks that are made and removed again, in a round;
    and rounds."""

    snapshots: int
    rewritten: int
    chunks: int
    rounds: int


FULL = SnapshotScale(snapshots=5000, rewritten=1000, chunks=20_000, rounds=5)
QUICK = SnapshotScale(snapshots=500, rewritten=100, chunks=2000, rounds=3)
SMALLEST = SnapshotScale(snapshots=6, rewritten=2, chunks=20, rounds=1)


@dataclass(frozen=True, slots=True)
class SnapshotSample:
    """Seconds for one snapshot or change of a chunk: of time, and of processor time (user and system) of the
    filesystem process; the bytes of memory of its own that this had more afterwards, in all; and of which kinds how
    many requests, where that is counted."""

    seconds: float
    daemon_seconds: float
    memory: int
    requests: dict[str, float]


@dataclass(frozen=True, slots=True)
class SnapshotSeries:
    """The rounds of one passage on one target, in their order."""

    passage: str
    target: str
    samples: tuple[SnapshotSample, ...]


@dataclass(frozen=True, slots=True)
class SnapshotResults:
    """All that a run has found. Loads are one-minute averages."""

    machine: dict[str, str]
    scale: SnapshotScale
    load_before: float
    load_after: float
    series: tuple[SnapshotSeries, ...]


class _Datastore:
    """A datastore, by itself or below a mirrorfs."""

    def __init__(self, base: Path, title: str, python: Path | None) -> None:
        """`python` is the interpreter whose mirrorfs is mounted over it; None: the backing directory alone."""
        self.title = title
        self.path = base / "datastore"
        self.path.mkdir(parents=True)
        self._mirror = None
        if python is not None:
            program = (str(python), "-P", "-m", "mirrorfs.cli")
            state, url = base / "state", "s3://bench/bench"
            self._mirror = Mirror(self.path, state, url, _NO_STORE, _NO_CREDENTIALS, program=program)

    def fill(self, snapshots: int) -> None:
        """Make that many snapshots, as PBS's user."""
        with DatastoreWriter(self.path) as writer:
            writer.create(chunk_directories="when needed")
        groups = -(-snapshots // _SNAPSHOTS_OF_A_GROUP)
        with Identity.for_datastore(str(self.path)).acting():
            generate_bulk(str(self.path), snapshots=snapshots, chunks=0, groups=groups)
            for number in range(_CHUNK_DIRECTORIES):
                (self.path / ".chunks" / f"{number:04x}").mkdir(mode=0o750, exist_ok=True)

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """Have it mounted. Raises BenchFailed."""
        if self._mirror is None:
            yield
            return
        command = [*self._mirror.program, *self._mirror.mount_arguments("--foreground")]
        # Not in the background: that waits for the store for a while.
        daemon = FileSystemDaemon(command, self.path, self._mirror.environment())
        try:
            yield
        finally:
            daemon.stop()
            self._mirror.kill_all()

    def used(self) -> tuple[float, int]:
        """Processor time and memory of the filesystem process so far, once it is at rest."""
        pid = self._pid()
        if pid is None:
            return 0.0, 0
        os.statvfs(self.path)
        before, now = -1.0, processor_seconds(pid)
        while now - before > _REST_SHARE * _REST_SECONDS:
            # It tells nobody when it has read the last event.
            time.sleep(_REST_SECONDS)
            before, now = now, processor_seconds(pid)
        return now, own_memory(pid)

    def requests(self) -> Counter[str]:
        """How many of each kind there have been, where that is counted."""
        return Counter()

    def _pid(self) -> int | None:
        return None if self._mirror is None else self._mirror.mount_pid()


class _Bare(_Datastore):
    """A datastore below the plainest file system that pyfuse3 can serve."""

    def __init__(self, base: Path) -> None:
        super().__init__(base, BARE, None)
        self._daemon: FileSystemDaemon | None = None

    @contextmanager
    def mounted(self) -> Iterator[None]:
        """See _Datastore."""
        self._daemon = FileSystemDaemon([sys.executable, "-m", "tests.bench.bare", str(self.path)], self.path)
        try:
            yield
        finally:
            self._daemon.stop()

    def requests(self) -> Counter[str]:
        """See _Datastore."""
        return Counter(json.loads(os.getxattr(self.path, REQUESTS)))

    def _pid(self) -> int | None:
        return None if self._daemon is None else self._daemon.pid


def measure_snapshots(
    base: Path, scale: SnapshotScale, names: Sequence[str], against: Path | None, say: Say, *, floor: bool = False
) -> SnapshotResults:
    """Measure each passage on the backing directory, on this mirrorfs, and on that of another checkout, in turns.

    `against` is such a checkout, with a virtual environment of its own in .venv; `floor` adds what pyfuse3 needs by
    itself. Raises BenchFailed.
    """
    load_before = load_average()
    targets = [*_targets(base, against), *([_Bare(base / "bare")] if floor else [])]
    samples: dict[tuple[str, str], list[SnapshotSample]] = {}
    for target in targets:
        say(f"{scale.snapshots} snapshots for: {target.title}")
        target.fill(scale.snapshots)
    with ExitStack() as mounts:
        for target in targets:
            mounts.enter_context(target.mounted())
        for number in range(scale.rounds):
            say(f"round {number + 1} of {scale.rounds}")
            first = number % len(targets)
            for target in (*targets[first:], *targets[:first]):
                with killing_mounts_after(_HUNG_SECONDS):
                    for passage, sample in _round(target, scale, names, number):
                        samples.setdefault((passage, target.title), []).append(sample)
        say("unmounting")
    series = tuple(SnapshotSeries(*key, tuple(found)) for key, found in samples.items())
    return SnapshotResults(machine_facts(base), scale, load_before, load_average(), series)


def _targets(base: Path, against: Path | None) -> list[_Datastore]:
    targets = [
        _Datastore(base / "backing", "backing directory", None),
        _Datastore(base / "mirrorfs", "mirrorfs", Path(sys.executable)),
    ]
    if against is not None:
        python = against / ".venv" / "bin" / "python"
        if not python.exists():
            raise BenchFailed(f"there is no {python}: make it with scripts/setup in that checkout")
        targets.append(_Datastore(base / "against", title_of(against), python))
    return targets


def title_of(checkout: Path) -> str:
    """What another checkout is called in a table: by its commit, where it has one."""
    name = subprocess.run(
        ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return f"mirrorfs {name or checkout.name}"


def _round(
    target: _Datastore, scale: SnapshotScale, names: Sequence[str], number: int
) -> Iterator[tuple[str, SnapshotSample]]:
    if "list" in names:
        title = "list, new to the mount" if number == 0 else LISTED
        yield title, _sample(target, scale.snapshots, lambda: _list_all(target.path))
    if "rewrite" in names:
        chosen = _list_all(target.path)[: scale.rewritten]
        with DatastoreWriter(target.path) as writer:
            yield REWRITTEN, _sample(target, len(chosen), lambda: _rewrite(writer, chosen))
    # Without mirrorfs, chunks would pass through FUSE.
    if "events" in names and not isinstance(target, _Bare):
        names_of_chunks = _names_of_chunks(scale.chunks, number)
        yield EVENTS, _sample(target, 2 * scale.chunks, lambda: _make_and_remove(target.path, names_of_chunks))


def _sample(target: _Datastore, count: int, passage: Callable[[], object]) -> SnapshotSample:
    sync_file_system(target.path)
    processor_before, memory_before = target.used()
    requests_before = target.requests()
    with Identity.for_datastore(str(target.path)).acting():
        began = time.perf_counter()
        passage()
        seconds = time.perf_counter() - began
    made = target.requests() - requests_before
    requests = {kind: number / count for kind, number in sorted(made.items())}
    processor, memory = target.used()
    return SnapshotSample(seconds / count, (processor - processor_before) / count, memory - memory_before, requests)


def _list_all(datastore: Path) -> list[str]:
    """What PBS asks for to show the snapshots of all groups: owners, folders, protection, manifests."""
    calls = SystemCalls()
    found = []
    for group in calls.list_folder("list", f"{datastore}/host"):
        path = f"host/{group.name}"
        calls.read_file("list", f"{datastore}/{path}/owner")
        entries = calls.list_folder("list", f"{datastore}/{path}")
        snapshots = [f"{path}/{entry.name}" for entry in entries if parse_snapshot_time(entry.name) is not None]
        for snapshot in snapshots:
            calls.list_folder("list", f"{datastore}/{snapshot}")
            calls.stat("list", f"{datastore}/{snapshot}/.protected")
        for snapshot in snapshots:
            calls.stat("list", f"{datastore}/{snapshot}/.protected")
            calls.read_file("list", f"{datastore}/{snapshot}/index.json.blob")
        found += snapshots
    return found


def _rewrite(writer: DatastoreWriter, snapshots: Sequence[str]) -> None:
    for snapshot in snapshots:
        writer.set_verify_state(snapshot, "ok")


def _names_of_chunks(count: int, round_number: int) -> list[str]:
    return [f"{number % _CHUNK_DIRECTORIES:04x}{round_number:028x}{number:032x}" for number in range(count)]


def _make_and_remove(datastore: Path, names: Sequence[str]) -> None:
    """Small files with names of chunks: what they hold does not matter, nobody reads them."""
    calls = SystemCalls()
    for name in names:
        calls.replace_file("chunk", f"{datastore}/.chunks/{name[:4]}/{name}", name, b"chunk")
    for name in names:
        os.unlink(f"{datastore}/.chunks/{name[:4]}/{name}")


def print_snapshots(results: SnapshotResults) -> None:
    """Tables on a terminal, plain Markdown elsewhere."""
    load = f"{results.load_before:.2f} before, {results.load_after:.2f} after"
    print_facts({**results.machine, "load average": load})
    rows = []
    for series in results.series:
        seconds = Spread.of([sample.seconds for sample in series.samples])
        processor = Spread.of([sample.daemon_seconds for sample in series.samples])
        memory = f"{max(sample.memory for sample in series.samples) / 2**20:.1f} MiB" if processor.most else ""
        rows.append([series.passage, series.target, _text(seconds), _text(processor) if processor.most else "", memory])
    rows.sort(key=lambda row: row[0])
    title = f"{results.scale.snapshots} snapshots; for each, or for each change of a chunk: median (least–most)"
    head = ["passage", "on", "time", "processor time of the filesystem process", "memory more, at most"]
    print_grid(Grid(title, head, rows))
    counted = [
        [series.passage, f"{sum(requests.values()):.2f}", ", ".join(f"{kind} {n:.2f}" for kind, n in requests.items())]
        for series in results.series
        if (requests := series.samples[-1].requests)
    ]
    if counted:
        print_grid(Grid("requests for each, of which kinds", ["passage", "requests", "of which"], counted))


def _text(spread: Spread) -> str:
    return f"{duration(spread.median)} ({duration(spread.least)}–{duration(spread.most)})"


def snapshots_as_json(results: SnapshotResults) -> dict[str, Any]:
    """Each sample."""
    return asdict(results)
