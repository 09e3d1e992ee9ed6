"""Operations on several targets, in turns, so that a drift of the machine meets all of them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.bench.meter import Meter
from tests.bench.operations import Operation
from tests.bench.targets import Target
from tests.bench.uploads import Say
from tests.harness.system_calls import Identity
from tests.harness.writer import DatastoreWriter
from tests.watchdog import killing_mounts_after

# Far more than any sample takes: what lasts longer hangs.
HUNG_SECONDS = 600.0


def measure_operations(operations: Sequence[Operation], targets: Sequence[Target], meter: Meter, say: Say) -> None:
    """Make a datastore for each target, mount them, do all rounds of each operation, unmount. Raises BenchFailed."""
    for target in targets:
        say(f"making a datastore for: {target.title}")
        _make_datastore(target.backing, operations)
    with ExitStack() as mounts:
        for target in targets:
            mounts.callback(target.unmount)
            target.mount()
        for operation in operations:
            for number in range(operation.rounds):
                say(f"{operation.name}, round {number + 1} of {operation.rounds}")
                _run_round(operation, targets, meter, number)
        say("unmounting")


def _make_datastore(datastore: Path, operations: Sequence[Operation]) -> None:
    scale = operations[0].scale
    with DatastoreWriter(datastore) as writer:
        writer.create(chunk_directories="all" if scale.all_chunk_directories else "when needed")
    with Identity.for_datastore(str(datastore)).acting():
        for operation in operations:
            if not scale.all_chunk_directories:
                for name in operation.chunk_directories():
                    (datastore / ".chunks" / name).mkdir(mode=0o750, exist_ok=True)
            operation.prepare(datastore)


def _run_round(operation: Operation, targets: Sequence[Target], meter: Meter, number: int) -> None:
    # Each round begins with another target, so that none is always the one after a busy neighbour.
    first = number % len(targets)
    for target in [*targets[first:], *targets[:first]]:
        with killing_mounts_after(HUNG_SECONDS):
            operation.run(meter, target, number)
