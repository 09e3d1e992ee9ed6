"""Replication lag: how long after the rename of its manifest a snapshot stands in the bucket, on a machine with nothing
else to do."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from tests.bench.operations import MEBIBYTE
from tests.bench.rounds import HUNG_SECONDS
from tests.bench.targets import Mirror
from tests.bench.uploads import Say
from tests.harness.content import BackupPlan, ImagePlan
from tests.harness.formats import MANIFEST_NAME
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import StoreServer
from tests.watchdog import killing_mounts_after

_GROUP = "vm/100"
_NEW_FRACTION = 0.01
_THREADS = 2


@dataclass(frozen=True, slots=True)
class LagSample:
    """Seconds from the rename of a manifest until the uploader has had its object confirmed, and those that plain PUTs
    of index and manifest take, one after the other, which no mirror can do before."""

    seconds: float
    transfer_seconds: float


def measure_lags(
    base: Path, store: StoreServer, bucket: str, *, mebibytes: int, rounds: int, say: Say
) -> tuple[LagSample, ...]:
    """Back up an image of that size, then so many times with 1 % of it new. `base` is made, and stays.

    Raises BenchFailed.
    """
    mirror = Mirror(base, store, bucket, name="lag")
    image = ImagePlan("drive-scsi0.img", mebibytes * MEBIBYTE)
    plan = BackupPlan((image,), changed_fraction=_NEW_FRACTION, compressible_fraction=0.0, zero_fraction=0.0)
    with DatastoreWriter(mirror.backing) as writer:
        writer.create(chunk_directories="when needed")
    with killing_mounts_after(HUNG_SECONDS):
        try:
            mirror.mount()
            with DatastoreWriter(mirror.path, default_plan=plan, threads=_THREADS) as writer:
                say(f"lag: a first backup of {mebibytes} MiB")
                writer.backup(_GROUP, compress=False)
                mirror.drain()
                return tuple(_lag(mirror, writer, store, bucket, number, say) for number in range(rounds))
        finally:
            mirror.unmount()


def _lag(mirror: Mirror, writer: DatastoreWriter, store: StoreServer, bucket: str, number: int, say: Say) -> LagSample:
    say(f"lag, round {number + 1}")
    written = writer.backup(_GROUP, compress=False)
    mirror.drain()
    published = time.time()
    snapshot = mirror.backing / written.path
    # What the kernel notes of a rename; whoever asked for it is answered later, when all is on the disk.
    renamed = (snapshot / MANIFEST_NAME).stat().st_ctime
    return LagSample(published - renamed, _transfer(snapshot, store, bucket, f"plain/{number}"))


def _transfer(snapshot: Path, store: StoreServer, bucket: str, prefix: str) -> float:
    client = store.access.client()
    client.head_bucket(Bucket=bucket)
    began = time.perf_counter()
    for path in sorted(snapshot.iterdir(), key=lambda path: path.name == MANIFEST_NAME):
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path.name}", Body=path.read_bytes())
    return time.perf_counter() - began
