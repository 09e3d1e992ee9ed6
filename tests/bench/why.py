"""`scripts/bench why`: what makes inserts and backups slower while they are mirrored, each cause by itself.

Beside the backing directory and the mirror as it is used, each with one thing changed: an uploader that is stopped
meanwhile (what is left is the mount, and the kernel's telling of events), one that goes last of all or not at all
after others, one whose state is on another disk (in memory), and no mirror at all, but a process that computes.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

from tests.bench.machine import load_average, machine_facts
from tests.bench.meter import Meter
from tests.bench.operations import Backup, InsertChunks, Mark, Operation
from tests.bench.report import Results
from tests.bench.rounds import measure_operations
from tests.bench.scale import FULL as WHOLE_SCALE
from tests.bench.scale import Scale
from tests.bench.stub_store import running_stub_store
from tests.bench.targets import Mirror, Target
from tests.bench.uploads import Say
from tests.stores.seaweedfs import StoreServer

_OPERATIONS: dict[str, type[Operation]] = {"backup": Backup, "insert": InsertChunks, "mark": Mark}
SUBJECTS = tuple(_OPERATIONS)
_MEMORY = Path("/dev/shm")
_LAST_NICE = 19
# As the uploader does with a chunk: without the interpreter's lock.
_COMPUTES = "import hashlib\nchunk = bytes(4 << 20)\nwhile True: hashlib.sha256(chunk)"

FULL = replace(
    WHOLE_SCALE,
    all_chunk_directories=False,
    rounds=7,
    backup_mebibytes=96,
    large_chunks=24,
    small_chunks=2000,
    tiny_chunks=50,
    marked_chunks=4096,
)
QUICK = replace(FULL, rounds=3, backup_mebibytes=48, large_chunks=8, small_chunks=1000, marked_chunks=1024)
SMALLEST = replace(FULL, rounds=1, backup_mebibytes=4, large_chunks=1, small_chunks=2, tiny_chunks=1, marked_chunks=2)


class BesideComputing(Target):
    """The backing directory, while a process computes with the uploader's usual niceness, and touches no file."""

    name = "computing"
    title = "backing directory beside a process that computes"
    _process: subprocess.Popen[bytes] | None = None

    def mount(self) -> None:
        """See Target."""
        command = ["nice", "-n", str(Mirror.nice), sys.executable, "-c", _COMPUTES]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        self._process.send_signal(signal.SIGSTOP)

    def drain(self) -> None:
        """See Target. It computes from here on, until the sample is taken."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def rest(self) -> None:
        """See Target."""
        if self._process is not None:
            self._process.send_signal(signal.SIGSTOP)

    def unmount(self) -> None:
        """See Target."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class WithoutUploader(Mirror):
    """The uploader is stopped while something is measured, and goes on after it."""

    name = "stopped"
    title = "mirrorfs, the uploader stopped"

    def drain(self) -> float:
        """See Target."""
        self._signal(signal.SIGCONT)
        try:
            return super().drain()
        finally:
            self._signal(signal.SIGSTOP)

    def unmount(self) -> None:
        """See Target."""
        self._signal(signal.SIGCONT)
        super().unmount()

    def _signal(self, number: signal.Signals) -> None:
        pid = self.uploader_pid()
        if pid is not None:
            with suppress(ProcessLookupError):
                os.kill(pid, number)


class GoingLast(Mirror):
    """The uploader takes next to nothing that anybody else wants."""

    name = "last"
    title = f"mirrorfs, --nice {_LAST_NICE}"
    nice = _LAST_NICE


class NotYielding(Mirror):
    """The uploader takes what everybody takes."""

    name = "not-yielding"
    title = "mirrorfs, --nice 0"
    nice = 0


class StateElsewhere(Mirror):
    """The state, with its syncs, is not on the disk of the datastore."""

    name = "state-elsewhere"
    title = "mirrorfs, state in memory"

    def __init__(self, base: Path, store: StoreServer, bucket: str, name: str = "bench") -> None:
        super().__init__(base, store, bucket, name)
        self.put_state(Path(tempfile.mkdtemp(prefix="mirrorfs-bench-", dir=_MEMORY)))

    def unmount(self) -> None:
        """See Target."""
        super().unmount()
        shutil.rmtree(self.state, ignore_errors=True)


KINDS: tuple[type[Mirror], ...] = (Mirror, WithoutUploader, GoingLast, NotYielding, StateElsewhere)


def measure_why(
    base: Path, scale: Scale, names: Sequence[str], say: Say, kinds: Sequence[type[Mirror]] = KINDS
) -> Results:
    """Measure the operations that are named without a mirror and on each kind of it, in turns. Raises BenchFailed."""
    load_before = load_average()
    operations = [operation(scale) for name, operation in _OPERATIONS.items() if name in names]
    meter = Meter(base)
    with running_stub_store(is_elsewhere=True) as stub:
        store, bucket = cast(StoreServer, stub), stub.create_bucket("bench")
        targets: list[Target] = [Target(base / "backing"), BesideComputing(base / "computing")]
        targets += [kind(base / kind.name, store, bucket, name=kind.name) for kind in kinds]
        measure_operations(operations, targets, meter, say)
    return Results(machine_facts(base), asdict(scale), load_before, load_average(), targets, meter, [])
