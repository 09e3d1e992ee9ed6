"""`scripts/bench`: measure what mirrorfs costs, and take everything away again, also after Ctrl-C."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from tests.bench import many_chunks, picture, restoring, retention, snapshots, table, why
from tests.bench.machine import load_average, machine_facts
from tests.bench.meter import Meter
from tests.bench.operations import OPERATIONS
from tests.bench.processes import BenchFailed, remove_all
from tests.bench.report import Results, as_json, print_report
from tests.bench.rounds import HUNG_SECONDS, measure_operations
from tests.bench.scale import FULL, QUICK, Scale
from tests.bench.targets import Bindfs, Mirror, MirrorThroughFuse, PassThrough, Target
from tests.bench.uploads import Say, UploadSeries, measure_uploads
from tests.stores.seaweedfs import StoreLaunchError, StoreServer, running_seaweedfs
from tests.watchdog import MARK, killing_mounts_after

_UPLOAD = "upload"
_COST_NAMES = (*(operation.name for operation in OPERATIONS), _UPLOAD)
_RETENTION = "retention"
_RESTORE = "restore"
_SNAPSHOTS = "snapshots"
_TABLE = "table"
_MEMORY = "memory"
_WHY = "why"
_NAMES = {
    "cost": _COST_NAMES,
    _RETENTION: retention.SUBJECTS,
    _RESTORE: restoring.SUBJECTS,
    _SNAPSHOTS: snapshots.SUBJECTS,
    _TABLE: tuple(table.SECTIONS),
    _MEMORY: many_chunks.SUBJECTS,
    _WHY: why.SUBJECTS,
}
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main() -> int:
    """Measure and report; 0 whatever the figures are, 1 when they could not be taken, 130 when interrupted."""
    arguments = _arguments()
    os.environ.setdefault(MARK, uuid.uuid4().hex)
    for number in _SIGNALS:
        signal.signal(number, _interrupt)
    try:
        if arguments.subject == _RETENTION:
            _bench_retention(arguments)
        elif arguments.subject == _RESTORE:
            _bench_restore(arguments)
        elif arguments.subject == _MEMORY:
            _bench_memory(arguments)
        elif arguments.subject == _WHY:
            _bench_why(arguments)
        elif arguments.subject == _SNAPSHOTS:
            _bench_snapshots(arguments)
        elif arguments.subject == _TABLE:
            return _bench_table(arguments)
        else:
            _bench_cost(arguments)
    except (BenchFailed, StoreLaunchError) as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything is taken away", file=sys.stderr)
        return 130
    return 0


def _bench_cost(arguments: argparse.Namespace) -> None:
    def report(results: Results) -> None:
        print_report(results)
        _write_json(as_json(results), arguments.json)

    scale = QUICK if arguments.quick else FULL
    _measure_everything(Path(arguments.directory), scale, arguments.only or _COST_NAMES, report)


def _bench_retention(arguments: argparse.Namespace) -> None:
    scale = retention.QUICK if arguments.quick else retention.FULL
    say = _narrator()
    with _scratch_directory(Path(arguments.directory)) as base:
        results = retention.measure_retention(base, scale, arguments.only or retention.SUBJECTS, say)
        retention.print_retention(results)
        _write_json(retention.retention_as_json(results), arguments.json)
        say("taking everything away")


def _bench_restore(arguments: argparse.Namespace) -> None:
    scale = restoring.QUICK if arguments.quick else restoring.FULL
    say = _narrator()
    with _scratch_directory(Path(arguments.directory)) as base:
        results = restoring.measure_restores(base, scale, arguments.only or restoring.SUBJECTS, say)
        restoring.print_restores(results)
        _write_json(restoring.restores_as_json(results), arguments.json)
        say("taking everything away")


def _bench_memory(arguments: argparse.Namespace) -> None:
    scale = many_chunks.QUICK if arguments.quick else many_chunks.FULL
    say = _narrator()
    with _scratch_directory(Path(arguments.directory)) as base:
        results = many_chunks.measure_memory(base, scale, arguments.only or many_chunks.SUBJECTS, say)
        many_chunks.print_memory(results)
        _write_json(many_chunks.memory_as_json(results), arguments.json)


def _bench_why(arguments: argparse.Namespace) -> None:
    scale = why.QUICK if arguments.quick else why.FULL
    say = _narrator()
    with _scratch_directory(Path(arguments.directory)) as base:
        results = why.measure_why(base, scale, arguments.only or why.SUBJECTS, say)
        print_report(results)
        _write_json(as_json(results), arguments.json)
        say("taking everything away")


def _bench_snapshots(arguments: argparse.Namespace) -> None:
    scale = snapshots.QUICK if arguments.quick else snapshots.FULL
    say = _narrator()
    with _scratch_directory(Path(arguments.directory)) as base:
        names = arguments.only or snapshots.SUBJECTS
        results = snapshots.measure_snapshots(base, scale, names, arguments.against, say, floor=True)
        snapshots.print_snapshots(results)
        _write_json(snapshots.snapshots_as_json(results), arguments.json)
        say("taking everything away")


def _bench_table(arguments: argparse.Namespace) -> int:
    """Returns 1 when a part of it could not be measured."""
    say = _narrator()
    with _scratch_directory(Path(arguments.directory)) as base:
        run = table.Run(table.QUICK if arguments.quick else table.FULL, arguments.against, say)
        # There is nothing to compare listing with unless somebody says what.
        possible = [name for name in table.SECTIONS if name != "listing" or arguments.against is not None]
        results = table.measure_table(base, run, arguments.only or possible)
        print(table.table_as_markdown(results, arguments.picture))
        _write_json(table.table_as_json(results), arguments.json)
        if arguments.picture is not None:
            picture.draw(results.rows, arguments.picture)
        say("taking everything away")
    return 1 if results.missing else 0


def _write_json(value: dict[str, Any], file: Path | None) -> None:
    sys.stdout.flush()
    if file is not None:
        file.write_text(json.dumps(value, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure what mirrorfs costs beside the backing directory and bindfs, and how fast it uploads; or "
        "how it copes with huge snapshots, states and garbage collections; or how fast it restores; or "
        "what listing snapshots costs; or the table of docs/performance.md. Run it on an idle machine.",
        epilog="Examples: scripts/bench table --quick; "
        "scripts/bench table --against ../older --json table.json --picture docs/pictures/performance.png; "
        "scripts/bench --only mark --only sweep --directory /mnt/datastore --json bench.json",
    )
    parser.add_argument(
        "subject",
        nargs="?",
        choices=tuple(_NAMES),
        default="cost",
        help="what to measure: the cost of the mount and of uploads (default), publishing and removing in bulk, "
        "restoring beside rclone, listing snapshots and rewriting their manifests, the memory of verify and restore "
        "beside the number of chunks, why inserts and backups are slower while they are mirrored, "
        "or the table: something of all of these, each beside its target",
    )
    parser.add_argument(
        "--quick", action="store_true", help="smaller and fewer: two to four minutes, figures are rougher"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="; ".join(f"for {subject}, one of {', '.join(names)}" for subject, names in _NAMES.items()),
    )
    parser.add_argument(
        "--against",
        type=Path,
        metavar="CHECKOUT",
        help="for snapshots and the table, measure another checkout's mirrorfs (with its own .venv) in the same run",
    )
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE.png",
        help="for the table, also draw how far each figure is from its target",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write each sample there")
    parser.add_argument(
        "--directory",
        default=tempfile.gettempdir(),
        metavar="DIR",
        help="where to make the datastores and the store's data (default: %(default)s)",
    )
    arguments = parser.parse_args()
    names = _NAMES[arguments.subject]
    unknown = set(arguments.only or ()).difference(names)
    if unknown:
        parser.error(f"--only {' '.join(sorted(unknown))}: choose from {', '.join(names)}")
    return arguments


def _interrupt(number: int, _frame: FrameType | None) -> None:
    # Only once: the second Ctrl-C must not interrupt the taking away. Programs started from here on ignore it too.
    for other in _SIGNALS:
        signal.signal(other, signal.SIG_IGN)
    raise KeyboardInterrupt


def _measure_everything(directory: Path, scale: Scale, names: Sequence[str], report: Callable[[Results], None]) -> None:
    say = _narrator()
    load_before = load_average()
    operations = [operation(scale) for operation in OPERATIONS if operation.name in names]
    uploads: list[UploadSeries] = []
    with _scratch_directory(directory) as base, running_seaweedfs(base / "store") as store:
        facts = machine_facts(base)
        bucket = store.create_bucket()
        meter = Meter(base)
        targets = _targets(base, store, bucket)
        if operations:
            measure_operations(operations, targets, meter, say)
        if _UPLOAD in names:
            with killing_mounts_after(HUNG_SECONDS):
                uploads = measure_uploads(base, store, bucket, scale, say)
        # Before the taking away, which lasts minutes on a slow disk: what was measured must not be lost by then.
        report(Results(facts, asdict(scale), load_before, load_average(), targets, meter, uploads))
        say("taking everything away")


def _narrator() -> Say:
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"[{time.monotonic() - began:6.1f} s] {text}", file=sys.stderr, flush=True)

    return say


def _targets(base: Path, store: StoreServer, bucket: str) -> list[Target]:
    return [
        Target(base / "backing"),
        Mirror(base / "mirrorfs", store, bucket),
        MirrorThroughFuse(base / "mirrorfs-fuse", store, bucket, name="bench-fuse"),
        PassThrough(base / "pass-through"),
        Bindfs(base / "bindfs"),
    ]


@contextmanager
def _scratch_directory(parent: Path) -> Iterator[Path]:
    try:
        base = Path(tempfile.mkdtemp(prefix="mirrorfs-bench-", dir=parent))
    except OSError as error:
        raise BenchFailed(f"cannot write into {parent}: {error.strerror}") from error
    # PBS's user must be able to enter the datastores, as on a real server.
    base.chmod(0o755)
    try:
        yield base
    finally:
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        remove_all(base)


if __name__ == "__main__":
    sys.exit(main())
