"""What a garbage collection unlinks through the mount, and how fast it leaves the bucket; the mount meanwhile."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.meter import Spread
from tests.bench.operations import insert_chunk, read_chunk, tiny_chunks
from tests.bench.processes import BenchFailed
from tests.bench.targets import Mirror
from tests.harness.content import EncodedChunk
from tests.harness.names import chunk_path
from tests.harness.system_calls import Identity, SystemCalls
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy
from tests.stores.seaweedfs import StoreServer

_READ_CHUNKS = 500
# As dense as in a datastore of some hundred thousand chunks, without having that many.
_DIRECTORIES = 1024
_READS_FOR_AN_INSERT = 5
# More than can be inserted while anything is measured.
_INSERTED_CHUNKS = 10_000
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class RemovalRate:
    """One garbage collection of `chunks` chunks. Seconds; `seconds` is from the first unlink until the last one has
    left the bucket, `sweep_seconds` that of listing and unlinking. Requests are all that were made in that time, by
    method: a POST deletes up to 1,000 objects. Processor times are of the uploader and of the object store."""

    chunks: int
    sweep_seconds: float
    seconds: float
    requests: dict[str, int]
    uploader_seconds: float
    store_seconds: float


@dataclass(slots=True)
class Latencies:
    """Durations of single operations through the mount, in seconds."""

    reads: list[float] = field(default_factory=list)
    inserts: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class MountMeanwhile:
    """The same operations with nothing else to do, before and after, and while chunks are removed from the bucket."""

    quiet: Latencies
    removing: Latencies
    chunks: int
    removal_seconds: float


@dataclass(frozen=True, slots=True)
class Removals:
    """Everything that was measured, each round by itself."""

    rates: tuple[RemovalRate, ...]
    meanwhile: tuple[MountMeanwhile, ...]


def measure_removals(
    base: Path, store: StoreServer, bucket: str, *, chunks: int, quiet_seconds: float, rounds: int, say: Say
) -> Removals:
    """Remove so many chunks twice in each round. `base` is made, and stays. Raises BenchFailed."""
    rates, meanwhile = [], []
    bench = _Bench(Mirror(base, store, bucket, name=base.name), store)
    for number in range(rounds):
        say(f"removal, round {number + 1} of {rounds}: uploading {2 * chunks} chunks")
        observed, counted = bench.prepare(number, chunks)
        say("a garbage collection, and the mount meanwhile")
        meanwhile.append(bench.observe_mount(observed, number, quiet_seconds))
        say("a garbage collection, its requests counted")
        rates.append(bench.measure_rate(counted))
    return Removals(tuple(rates), tuple(meanwhile))


class _Bench:
    def __init__(self, mirror: Mirror, store: StoreServer) -> None:
        self._mirror = mirror
        self._store = store
        self._calls = SystemCalls()
        with DatastoreWriter(mirror.backing) as writer:
            writer.create(chunk_directories="when needed")
        self._read = list(tiny_chunks("read", _READ_CHUNKS, _DIRECTORIES))
        self._put_into_datastore(self._read)

    def prepare(self, number: int, chunks: int) -> tuple[list[str], list[str]]:
        """Have chunks in datastore and bucket that can go; returns the digests of two lots."""
        lots = [list(tiny_chunks(f"removed {number} {lot}", chunks, _DIRECTORIES)) for lot in range(2)]
        for lot in lots:
            self._put_into_datastore(lot)
        # Theirs must not have to be made first while they are measured.
        self._make_directories(_inserted(number))
        self._mirror.go_through(self._store.endpoint_url)
        self._mirror.mount()
        try:
            self._mirror.drain()
        finally:
            self._mirror.unmount()
        first, second = ([chunk.digest for chunk in lot] for lot in lots)
        return first, second

    def observe_mount(self, digests: Sequence[str], number: int, quiet_seconds: float) -> MountMeanwhile:
        """Use the mount while nothing else happens, then while the chunks are removed, then in peace again."""
        self._mirror.mount()
        try:
            self._mirror.drain()
            inserted = _inserted(number)
            quiet, removing = Latencies(), Latencies()
            self._use(quiet, inserted, _for_seconds(quiet_seconds))
            self._mirror.drain()
            self._sweep(digests)
            began = time.perf_counter()
            with self._mirror.waiting() as waiting:
                self._use(removing, inserted, lambda: waiting.poll() is None)
            if waiting.returncode != 0:
                raise BenchFailed("the chunks were not removed from the bucket")
            elapsed = time.perf_counter() - began
            self._mirror.drain()
            self._use(quiet, inserted, _for_seconds(quiet_seconds))
            return MountMeanwhile(quiet, removing, len(digests), elapsed)
        finally:
            self._mirror.unmount()

    def measure_rate(self, digests: Sequence[str]) -> RemovalRate:
        """Remove chunks with nothing else to do. The few requests go through a proxy that counts them."""
        with FaultProxy(self._store.endpoint_url) as proxy:
            self._mirror.go_through(proxy.endpoint_url)
            self._mirror.mount()
            try:
                self._mirror.drain()
                before = Counter(seen.method for seen in proxy.requests())
                uploader, store = self._mirror.uploader_seconds(), self._mirror.store_seconds()
                began = time.perf_counter()
                self._sweep(digests)
                swept = time.perf_counter()
                self._mirror.drain()
                ended = time.perf_counter()
                uploader = self._mirror.uploader_seconds() - uploader
                store = self._mirror.store_seconds() - store
                requests = Counter(seen.method for seen in proxy.requests()) - before
            finally:
                self._mirror.unmount()
        return RemovalRate(len(digests), swept - began, ended - began, dict(requests), uploader, store)

    def _use(self, latencies: Latencies, inserted: Iterator[EncodedChunk], goes_on: Callable[[], bool]) -> None:
        with Identity.for_datastore(str(self._mirror.backing)).acting():
            while goes_on():
                for _ in range(_READS_FOR_AN_INSERT):
                    chunk = self._read[len(latencies.reads) % len(self._read)]
                    began = time.perf_counter()
                    read_chunk(self._calls, f"{self._mirror.path}/{chunk_path(chunk.digest)}")
                    latencies.reads.append(time.perf_counter() - began)
                new = next(inserted)
                began = time.perf_counter()
                insert_chunk(self._calls, self._mirror.path, new)
                latencies.inserts.append(time.perf_counter() - began)

    def _sweep(self, digests: Sequence[str]) -> None:
        """As the second phase of a garbage collection does it."""
        calls, doomed = self._calls, set(digests)
        with Identity.for_datastore(str(self._mirror.backing)).acting():
            for name in sorted({digest[:4] for digest in digests}):
                folder = calls.open_folder("sweep", f"{self._mirror.path}/.chunks/{name}")
                with calls.closing("sweep", folder) as descriptor:
                    for entry in list(calls.read_directory("sweep", descriptor)):
                        calls.stat_link("sweep", entry.name, directory=descriptor)
                        if entry.name in doomed:
                            calls.unlink("sweep", entry.name, directory=descriptor)

    def _put_into_datastore(self, chunks: Sequence[EncodedChunk]) -> None:
        self._make_directories(iter(chunks))
        with Identity.for_datastore(str(self._mirror.backing)).acting():
            for chunk in chunks:
                (self._mirror.backing / chunk_path(chunk.digest)).write_bytes(chunk.raw)

    def _make_directories(self, chunks: Iterator[EncodedChunk]) -> None:
        with Identity.for_datastore(str(self._mirror.backing)).acting():
            for name in {chunk.digest[:4] for chunk in chunks}:
                (self._mirror.backing / ".chunks" / name).mkdir(mode=0o750, exist_ok=True)


def latency_ratio(meanwhile: MountMeanwhile, of: Callable[[Latencies], Sequence[float]]) -> float:
    """By how much the median of an operation is longer while chunks are removed."""
    return Spread.of(of(meanwhile.removing)).median / Spread.of(of(meanwhile.quiet)).median


def _inserted(number: int) -> Iterator[EncodedChunk]:
    return tiny_chunks(f"inserted {number}", _INSERTED_CHUNKS, _DIRECTORIES)


def _for_seconds(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() < end
