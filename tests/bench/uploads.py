"""The uploader alone: how fast it mirrors a datastore that is there already, beside plain PUTs of the same files."""

from __future__ import annotations

import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.bench.operations import MEBIBYTE
from tests.bench.scale import Scale
from tests.bench.targets import Mirror
from tests.harness.bulk import generate_bulk
from tests.harness.content import BackupPlan, ImagePlan
from tests.harness.names import CHUNK_NAME
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import StoreServer

# As many as the uploader has at the same time unless told otherwise.
_PARALLEL = 8
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class UploadSample:
    """One upload of everything. Seconds; `sender_seconds` is processor time of the uploader without its start, or of
    the plain client, `store_seconds` that of the object store meanwhile."""

    seconds: float
    objects: int
    size: int
    sender_seconds: float
    store_seconds: float


@dataclass(frozen=True, slots=True)
class UploadSeries:
    """The same chunks sent by the uploader and by plain PUTs."""

    name: str
    title: str
    uploader: tuple[UploadSample, ...]
    plain: tuple[UploadSample, ...]


def measure_uploads(base: Path, store: StoreServer, bucket: str, scale: Scale, say: Say) -> list[UploadSeries]:
    """Measure 4 MiB chunks, then tiny ones; everything local is taken away again."""
    large = f"{scale.uploaded_large_chunks} chunks of 4 MiB"
    tiny = f"{scale.uploaded_tiny_chunks} tiny chunks"
    return [
        _measure(_Source(base / "large", store, bucket), "upload-4MiB", large, scale, _make_large, say),
        _measure(_Source(base / "tiny", store, bucket), "upload-tiny", tiny, scale, _make_tiny, say),
    ]


class _Source:
    """A datastore that is mirrored from nothing, several times to several names."""

    def __init__(self, base: Path, store: StoreServer, bucket: str) -> None:
        self.mirror = Mirror(base, store, bucket)
        self._store = store
        self._bucket = bucket
        with DatastoreWriter(self.mirror.backing) as writer:
            writer.create(chunk_directories="when needed")
        self._start_up_seconds = self._measure_start_up()

    def upload(self, name: str) -> UploadSample:
        """From the end of a mount with an empty state to everything published."""
        objects, size = self._chunks()
        self.mirror.change_name(name)
        try:
            self.mirror.mount()
            store = self.mirror.store_seconds()
            elapsed = self.mirror.drain()
            sender = self.mirror.uploader_seconds() - self._start_up_seconds
            store = self.mirror.store_seconds() - store
        finally:
            self.mirror.unmount()
        return UploadSample(elapsed, objects, size, sender, store)

    def _measure_start_up(self) -> float:
        """Processor time of an uploader that finds nothing to do: loading itself, asking the store what it can."""
        self.mirror.change_name(f"{self.mirror.base.name}-empty")
        try:
            self.mirror.mount()
            self.mirror.drain()
            return self.mirror.uploader_seconds()
        finally:
            self.mirror.unmount()

    def put_plainly(self, name: str) -> UploadSample:
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

    def _paths(self) -> list[Path]:
        return [path for path in self.mirror.backing.glob(".chunks/*/*") if CHUNK_NAME.match(path.name)]

    def _chunks(self) -> tuple[int, int]:
        sizes = [path.stat().st_size for path in self._paths()]
        return len(sizes), sum(sizes)


def _measure(
    source: _Source, name: str, title: str, scale: Scale, make: Callable[[Path, Scale], None], say: Say
) -> UploadSeries:
    make(source.mirror.backing, scale)
    uploader, plain = [], []
    for number in range(scale.upload_rounds):
        say(f"{name}, round {number + 1} of {scale.upload_rounds}")
        uploader.append(source.upload(f"{name}-{number}"))
        plain.append(source.put_plainly(f"{name}-plain-{number}"))
    shutil.rmtree(source.mirror.base)
    return UploadSeries(name, title, tuple(uploader), tuple(plain))


def _make_large(datastore: Path, scale: Scale) -> None:
    image = ImagePlan("drive-scsi0.img", scale.uploaded_large_chunks * 4 * MEBIBYTE)
    plan = BackupPlan(images=(image,), compressible_fraction=0.0, zero_fraction=0.0)
    with DatastoreWriter(datastore, default_plan=plan) as writer:
        writer.backup("vm/100", compress=False)


def _make_tiny(datastore: Path, scale: Scale) -> None:
    generate_bulk(str(datastore), snapshots=1, chunks=scale.uploaded_tiny_chunks)


def _own_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
