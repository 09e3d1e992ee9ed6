"""The operations that PBS does on a datastore, each with the system calls that were recorded of it."""

from __future__ import annotations

import functools
import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.bench.meter import Meter, Part
from tests.bench.scale import Scale
from tests.bench.targets import Target, sync_file_system
from tests.harness.content import BackupPlan, EncodedChunk, Encoder, ImagePlan, plan_of_size
from tests.harness.names import chunk_path
from tests.harness.system_calls import SystemCalls
from tests.harness.writer import DatastoreWriter

MEBIBYTE = 1024 * 1024
_LARGE = 4 * MEBIBYTE
_SMALL = 64 * 1024
# Such small archives are seen in recordings.
_TINY = 78
_WRITER_THREADS = 2
_PLAIN = Encoder(compress=False)


class Operation:
    """One thing that is compared. `prepare` is called on every target before any is mounted, `run` once a round and
    target; what it measures goes to the meter."""

    name = ""
    parts: tuple[Part, ...] = ()

    def __init__(self, scale: Scale) -> None:
        self.scale = scale
        self.calls = SystemCalls()

    @property
    def rounds(self) -> int:
        """How often it is repeated."""
        return self.scale.rounds

    def chunk_directories(self) -> set[str]:
        """The chunk directories that must be there before the operation is prepared, but for backups."""
        return set()

    def prepare(self, datastore: Path) -> None:
        """Put into a datastore what the operation needs to find there."""

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """Do it and measure it; `number` counts the rounds."""
        raise NotImplementedError

    def chunks(self, label: str, count: int, size: int) -> Iterator[EncodedChunk]:
        """Sound chunks of random bytes, the same each time they are asked for."""
        source = random.Random(f"{self.name} {label}")
        for _ in range(count):
            yield _PLAIN.encode_chunk(source.randbytes(size))

    def insert(self, datastore: Path, chunk: EncodedChunk) -> None:
        """See `insert_chunk`."""
        insert_chunk(self.calls, datastore, chunk)


def insert_chunk(calls: SystemCalls, datastore: Path, chunk: EncodedChunk) -> None:
    """Insert a chunk as PBS does: stat, temporary file, one write, rename, close."""
    path = f"{datastore}/{chunk_path(chunk.digest)}"
    calls.stat("chunk", path)
    calls.replace_file("chunk", path, chunk.digest, chunk.raw)


def read_chunk(calls: SystemCalls, path: str) -> None:
    """Read a chunk as restore and verify do."""
    with calls.closing("chunk", calls.open("chunk", path, os.O_RDONLY | os.O_CLOEXEC)) as descriptor:
        size = calls.stat_descriptor("chunk", descriptor).st_size
        calls.seek("chunk", descriptor, 0, os.SEEK_CUR)
        while calls.read("chunk", descriptor, size):
            continue


def tiny_chunks(label: str, count: int, directories: int = 0x10000) -> Iterator[EncodedChunk]:
    """Sound chunks of random bytes as small as they are seen in recordings, the same each time for a label; only such
    as belong into the first so many chunk directories."""
    source = random.Random(label)
    while count > 0:
        content = source.randbytes(_TINY)
        if int.from_bytes(hashlib.sha256(content).digest()[:2], "big") < directories:
            count -= 1
            yield _PLAIN.encode_chunk(content)


class Backup(Operation):
    """Whole backups of an image, with syncfs at the end; a quarter of the second one has changed."""

    name = "backup"
    first = Part("backup-first", "backup, first", "MiB", is_mirrored=True)
    incremental = Part("backup-incremental", "backup, incremental", "MiB", is_mirrored=True)
    parts = (first, incremental)

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """See Operation."""
        size = self.scale.backup_mebibytes
        image = ImagePlan("drive-scsi0.img", size * MEBIBYTE)
        plan = BackupPlan(images=(image,), compressible_fraction=0.0, zero_fraction=0.0)
        with DatastoreWriter(target.path, default_plan=plan, threads=_WRITER_THREADS) as writer:
            for generation, part in enumerate(self.parts):
                with meter.sample(part, target, size):
                    writer.backup(f"vm/{number + 100}", generation=generation, compress=False)


class InsertChunks(Operation):
    """Chunks alone, without a client that has to make them."""

    name = "insert"
    large = Part("insert-4MiB", "insert a chunk of 4 MiB", "chunk", is_mirrored=True)
    small = Part("insert-64KiB", "insert a chunk of 64 KiB", "chunk", is_mirrored=True)
    tiny = Part("insert-tiny", "create, write, rename, close a tiny file", "file", is_mirrored=True)
    parts = (large, small, tiny)

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """See Operation."""
        for part in self.parts:
            chunks = list(self._chunks_of(part, number))
            with meter.sample(part, target, len(chunks)):
                for chunk in chunks:
                    self.insert(target.path, chunk)

    @functools.cache  # noqa: B019
    def chunk_directories(self) -> set[str]:
        """See Operation."""
        return {
            chunk.digest[:4]
            for part in self.parts
            for number in range(self.rounds)
            for chunk in self._chunks_of(part, number)
        }

    def _chunks_of(self, part: Part, number: int) -> Iterator[EncodedChunk]:
        count, size = {
            self.large.name: (self.scale.large_chunks, _LARGE),
            self.small.name: (self.scale.small_chunks, _SMALL),
            self.tiny.name: (self.scale.tiny_chunks, _TINY),
        }[part.name]
        return self.chunks(f"{part.name} {number}", count, size)


def _has_pages_of_its_own(target: Target) -> bool:
    """Whether what is read through a mount is cached apart; native chunks are the backing directory's own files."""
    return os.stat(target.path / ".chunks").st_dev != os.stat(target.backing / ".chunks").st_dev


class ReadChunks(Operation):
    """All chunks as restore and verify read them: open, fstat, lseek, one read, one more, close."""

    name = "read"
    disk = Part("read-disk", "read chunks, from disk", "MiB")
    memory = Part("read-memory", "read chunks, in the backing file system's memory", "MiB")
    again = Part("read-again", "read chunks once more", "MiB")
    parts = (disk, memory, again)

    def chunk_directories(self) -> set[str]:
        """See Operation."""
        return {chunk.digest[:4] for chunk in self._stored()}

    def prepare(self, datastore: Path) -> None:
        """See Operation."""
        for chunk in self._stored():
            self.insert(datastore, chunk)

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """See Operation."""
        paths = [chunk_path(chunk.digest) for chunk in self._stored()]
        size = self.scale.large_chunks * _LARGE / MEBIBYTE
        for part in self.parts:
            if part is not self.again and _has_pages_of_its_own(target):
                self._drop_from_memory(target.path, paths)
            if part is self.disk:
                self._drop_from_memory(target.backing, paths)
            with meter.sample(part, target, size):
                for path in paths:
                    read_chunk(self.calls, f"{target.path}/{path}")

    @functools.cache  # noqa: B019
    def _stored(self) -> list[EncodedChunk]:
        return list(self.chunks("stored", self.scale.large_chunks, _LARGE))

    def _drop_from_memory(self, datastore: Path, paths: Sequence[str]) -> None:
        sync_file_system(datastore)
        for path in paths:
            with self.calls.closing("chunk", os.open(datastore / path, os.O_RDONLY)) as descriptor:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


class Mark(Operation):
    """The first phase of a garbage collection: utimensat on every chunk, of which each round has its own."""

    name = "mark"
    new = Part("mark-new", "GC mark, name not in the kernel's cache", "chunk")
    known = Part("mark-known", "GC mark, name in the kernel's cache", "chunk")
    parts = (new, known)

    def chunk_directories(self) -> set[str]:
        """See Operation."""
        return {chunk.digest[:4] for number in range(self.rounds) for chunk in self._chunks_of(number)}

    def prepare(self, datastore: Path) -> None:
        """See Operation."""
        for number in range(self.rounds):
            for chunk in self._chunks_of(number):
                (datastore / chunk_path(chunk.digest)).write_bytes(chunk.raw)

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """See Operation."""
        paths = [f"{target.path}/{chunk_path(chunk.digest)}" for chunk in self._chunks_of(number)]
        for part in self.parts:
            with meter.sample(part, target, len(paths)):
                for path in paths:
                    self.calls.touch("mark", path)

    def _chunks_of(self, number: int) -> Iterator[EncodedChunk]:
        return self.chunks(str(number), self.scale.marked_chunks, _TINY)


class Names(Operation):
    """stat, with which PBS asks before each insert whether it has a chunk already."""

    name = "stat"
    known = Part("stat-known", "stat of a name in the kernel's cache", "name")
    unknown = Part("stat-unknown", "stat of a name that is not there", "name")
    parts = (known, unknown)
    _LOOPS = 5

    def chunk_directories(self) -> set[str]:
        """See Operation."""
        unknown = {digest[:4] for number in range(self.rounds) for digest in self._unknown_digests(number)}
        return unknown | {chunk.digest[:4] for chunk in self._known_chunks()}

    def prepare(self, datastore: Path) -> None:
        """See Operation."""
        for chunk in self._known_chunks():
            (datastore / chunk_path(chunk.digest)).write_bytes(chunk.raw)

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """See Operation."""
        known = [f"{target.path}/{chunk_path(chunk.digest)}" for chunk in self._known_chunks()]
        self._stat_all(known)
        with meter.sample(self.known, target, len(known) * self._LOOPS):
            for _ in range(self._LOOPS):
                self._stat_all(known)
        unknown = [f"{target.path}/{chunk_path(digest)}" for digest in self._unknown_digests(number)]
        with meter.sample(self.unknown, target, len(unknown)):
            self._stat_all(unknown)

    def _unknown_digests(self, number: int) -> Iterator[str]:
        for name in range(self.scale.unknown_names):
            yield hashlib.sha256(f"{number} {name}".encode()).hexdigest()

    def _known_chunks(self) -> Iterator[EncodedChunk]:
        return self.chunks("known", self.scale.known_names, _TINY)

    def _stat_all(self, paths: list[str]) -> None:
        for path in paths:
            self.calls.stat("chunk", path)


class Sweep(Operation):
    """The second phase of a garbage collection: every chunk directory listed, every chunk in it looked at."""

    name = "sweep"
    part = Part("sweep", "GC sweep", "directory")
    parts = (part,)

    @property
    def rounds(self) -> int:
        """See Operation."""
        return self.scale.sweep_rounds

    def chunk_directories(self) -> set[str]:
        """See Operation."""
        return {f"{number:04x}" for number in range(self.scale.swept_directories)}

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """See Operation."""
        with meter.sample(self.part, target, self.scale.swept_directories):
            for directory in range(self.scale.swept_directories):
                with os.scandir(f"{target.path}/.chunks/{directory:04x}") as entries:
                    for entry in entries:
                        entry.stat(follow_symlinks=False)


class ReplaceManifest(Operation):
    """A change of notes: the manifest read, made anew, renamed into place."""

    name = "manifest"
    alone = Part("manifest", "replace a manifest", "manifest", is_mirrored=True)
    synced = Part("manifest-syncfs", "replace a manifest, then syncfs", "manifest", is_mirrored=True)
    parts = (alone, synced)
    _GROUP = "host/notes"

    def prepare(self, datastore: Path) -> None:
        """See Operation."""
        with DatastoreWriter(datastore, default_plan=plan_of_size(64 * 1024)) as writer:
            writer.backup(self._GROUP, generation=0)

    def run(self, meter: Meter, target: Target, number: int) -> None:
        """See Operation."""
        with DatastoreWriter(target.path) as writer:
            snapshot = writer.snapshots(self._GROUP)[0]
            for part in self.parts:
                with meter.sample(part, target, self.scale.manifests):
                    for change in range(self.scale.manifests):
                        writer.set_notes(snapshot, f"{part.name} {number} {change}")
                        if part is self.synced:
                            sync_file_system(target.path)


# In the order in which they run: a sweep makes all names known, which those before it must not be.
OPERATIONS: tuple[type[Operation], ...] = (Backup, InsertChunks, ReadChunks, Mark, Names, Sweep, ReplaceManifest)
