"""A snapshot of a whole 1 TiB image comes and goes: how long that takes, stage by stage.

`python -m tests.bench.publication DIRECTORY CHUNKS LATENCY...` is an uploader but for two things: it has no mount
before it, and its store confirms everything after LATENCY seconds and keeps no chunk. The chunks are a few bytes each,
their number is what counts. It prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import crc32c
import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.journal import JournalReader, JournalWriter
from mirrorfs.objectstore.answers import PutReceipt, StoredObject
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.mirror import Mirror
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.drain import Drain
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.state import State
from tests.bench.processes import answer_and_memory, own_memory
from tests.harness import formats
from tests.harness.formats import MANIFEST_NAME, ManifestFile
from tests.harness.names import chunk_path
from tests.harness.writer import DatastoreWriter
from tests.replication.unwatched import Unwatched
from tests.stores.capabilities import HONEST

_PARALLEL = 8
_TREE_WORKERS = 4
_CHUNK_SIZE = 4 * 1024 * 1024
_CHUNKS_A_COMMIT = 10_000
_NEW_FRACTION = 0.01
_IMAGE = "drive-scsi0.img.fidx"
_PUBLISHING = (
    "read and check manifest and index, send the chunks that are missing",
    "send the index",
    "note that, count the references",
    "send the manifest, note that it is published",
)
_REMOVING = (
    "notice that it is gone, note that it goes",
    "delete the manifest",
    "read the index, from the bucket",
    "check it, give the references back, look for chunks that nobody has",
    "delete the index, note that it is gone",
)


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of a passage: how long it took, how many requests began in it, and for how long one or more were under
    way."""

    title: str
    seconds: float
    requests: int
    request_seconds: float


@dataclass(frozen=True, slots=True)
class Passage:
    """A snapshot's way into the bucket or out of it, from the record in the journal to the note in the state."""

    title: str
    stages: tuple[Stage, ...]

    @property
    def seconds(self) -> float:
        """All of it."""
        return sum(stage.seconds for stage in self.stages)


@dataclass(frozen=True, slots=True)
class Series:
    """What was measured with a store that takes `latency` seconds for each request."""

    latency: float
    passages: tuple[Passage, ...]


@dataclass(frozen=True, slots=True)
class Publications:
    """What was measured with snapshots of `chunks` chunks, of which `new` are new. `memory` is the most that the
    process took beyond what it had before, in bytes."""

    chunks: int
    new: int
    series: tuple[Series, ...]
    memory: int


def measure_publications(directory: Path, chunks: int, latencies: Sequence[float]) -> Publications:
    """Measure in a process of its own; `directory` is made, and stays. Raises BenchFailed."""
    directory.mkdir()
    arguments = [str(directory), str(chunks), *map(str, latencies)]
    answer, most = answer_and_memory([sys.executable, "-m", "tests.bench.publication", *arguments])
    series = tuple(Series(one["latency"], tuple(map(_passage, one["passages"]))) for one in answer["series"])
    return Publications(chunks, answer["new"], series, most - answer["memory"])


def _passage(value: Mapping[str, Any]) -> Passage:
    return Passage(value["title"], tuple(Stage(**stage) for stage in value["stages"]))


@dataclass(frozen=True, slots=True)
class _Request:
    """A request for the objects `keys`, and when it was under way."""

    keys: Sequence[str]
    began: float
    ended: float

    def is_for(self, name: str) -> bool:
        """Whether it is for a file of that name."""
        return any(key.endswith(f"/{name}") for key in self.keys)


class _ForgetfulClient:
    """A store that confirms everything and keeps what is no chunk. Remembers requests."""

    def __init__(self, directory: Path) -> None:
        """What is kept stands in `directory`, which is made, and not in the memory that is measured."""
        directory.mkdir()
        self.latency = 0.0
        self._directory = directory
        self._shown: dict[str, StoredObject] = {}
        self._lock = threading.Lock()
        self.requests: list[_Request] = []

    @property
    def place(self) -> str:
        return "no bucket"

    def put_object(self, key: str, body: bytes, *, crc32c: int | None, md5: bytes | None) -> PutReceipt:
        with self._answering(key):
            etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
            if not _is_chunk(key):
                self._file(key).write_bytes(body)
            self._shown[key] = StoredObject(key, len(body), etag, crc32c)
            return PutReceipt(etag, crc32c)

    def head_object(self, key: str) -> StoredObject | None:
        with self._answering(key):
            # A chunk is asked for once, after its PUT: nothing grows.
            return self._shown.pop(key, None) if _is_chunk(key) else self._shown.get(key)

    def get_object(self, key: str) -> bytes:
        with self._answering(key):
            try:
                return self._file(key).read_bytes()
            except FileNotFoundError as error:
                raise ObjectMissing(f"read {key}", "there is none") from error

    def delete_objects(self, keys: Sequence[str]) -> dict[str, Exception]:
        with self._answering(*keys):
            for key in keys:
                self._file(key).unlink(missing_ok=True)
                self._shown.pop(key, None)
            return {}

    def _file(self, key: str) -> Path:
        return self._directory / hashlib.sha256(key.encode()).hexdigest()

    @contextmanager
    def _answering(self, *keys: str) -> Iterator[None]:
        began = time.perf_counter()
        time.sleep(self.latency)
        with self._lock:
            yield
            self.requests.append(_Request(keys, began, time.perf_counter()))


def _is_chunk(key: str) -> bool:
    return "/.chunks/" in key


def _ends_of_publishing(requests: Sequence[_Request]) -> tuple[float, ...]:
    """When the stages ended but for the last, by requests in the order in which they began."""
    of_index = [request for request in requests if request.is_for(_IMAGE)]
    sent = of_index[-1].ended
    return of_index[0].began, sent, next(request.began for request in requests if request.began >= sent)


def _ends_of_removing(requests: Sequence[_Request]) -> tuple[float, ...]:
    """When the stages ended but for the last, by requests in the order in which they began."""
    of_manifest = next(request for request in requests if request.is_for(MANIFEST_NAME))
    reading, deleting = (request for request in requests if request.is_for(_IMAGE))
    return of_manifest.began, reading.began, reading.ended, deleting.began


class Image:
    """A datastore with one group, whose snapshots are images of so many chunks."""

    def __init__(self, path: Path, chunks: int) -> None:
        """Makes the datastore below `path`, which may be there already."""
        self.path = path
        self._source = random.Random(chunks)
        self._number = 0
        self._snapshots = 0
        path.mkdir(exist_ok=True)
        with DatastoreWriter(path) as writer:
            writer.create(chunk_directories="all" if chunks > 0x10000 else "when needed")
        self.digests = self.make_chunks(chunks)

    def make_chunks(self, count: int) -> list[str]:
        """Write so many chunks of a few bytes, and return their digests, in the order of their numbers.

        They are written directory by directory: a million of them, here and there, takes a disk several times as long.
        """
        contents = [number.to_bytes(8, "big") for number in range(self._number, self._number + count)]
        self._number += count
        digests = [hashlib.sha256(content).hexdigest() for content in contents]
        directory = ""
        for digest, content in sorted(zip(digests, contents, strict=True)):
            # A Path would take longer than the file.
            path = f"{self.path}/{chunk_path(digest)}"
            if directory != digest[:4]:
                directory = digest[:4]
                os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb", buffering=0) as file:
                file.write(_blob(content))
        return digests

    def change(self, fraction: float) -> list[str]:
        """Have as many chunks of the image be new ones, and return these."""
        new = self.make_chunks(int(len(self.digests) * fraction))
        for slot, digest in zip(self._source.sample(range(len(self.digests)), len(new)), new, strict=True):
            self.digests[slot] = digest
        return new

    def blobs(self, first: int = 0) -> Iterator[tuple[bytes, bytes]]:
        """Digest and file of all chunks, from this number on."""
        for number in range(first, self._number):
            content = number.to_bytes(8, "big")
            yield hashlib.sha256(content).digest(), _blob(content)

    def write_snapshot(self) -> str:
        """Write the image as it is now as a snapshot, and return the path of that."""
        body = b"".join(map(bytes.fromhex, self.digests))
        size = len(self.digests) * _CHUNK_SIZE
        self._snapshots += 1
        created = 1_750_000_000 + self._snapshots
        directory = self.path / "vm/100" / time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(created))
        directory.mkdir(parents=True)
        header = formats.fixed_index_header(hashlib.sha256(body).digest()[:16], created, size, _CHUNK_SIZE)
        (directory / _IMAGE).write_bytes(formats.with_index_csum(header, body))
        listed = ManifestFile(_IMAGE, size, hashlib.sha256(body).hexdigest(), "none")
        manifest = formats.make_manifest("vm", "100", created, [listed], signature=None, unprotected={})
        (directory / MANIFEST_NAME).write_bytes(formats.encode_manifest(manifest))
        return str(directory.relative_to(self.path))


def _blob(content: bytes) -> bytes:
    return formats.encode_blob(content, compress=False)


class _JournalKeeper:
    """Holds the journal for writing as the filesystem process does: in another process, since LMDB takes one handle of
    a database in each."""

    def __init__(self, directory: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other_end = context.Pipe()
        self._process = context.Process(target=_keep_journal, args=(directory, other_end), daemon=True)
        self._process.start()
        other_end.close()
        self._connection.recv()

    def append(self, paths: Sequence[bytes]) -> None:
        """Note that names have changed."""
        self._connection.send(paths)
        self._connection.recv()


def _keep_journal(directory: str, connection: Connection) -> None:
    journal = JournalWriter(directory)
    connection.send(journal.sequence)
    while True:
        try:
            paths = connection.recv()
        except EOFError:
            return
        connection.send(journal.append_all(paths))


class _Uploader:
    """The product's parts, put together as its own uploader does it."""

    def __init__(self, image: Image, base: Path, client: _ForgetfulClient) -> None:
        self._image = image
        self._client = client
        self._keeper = _JournalKeeper(str(base / "journal"))
        journal = JournalReader(str(base / "journal"))
        state = State(str(base / "state"))
        confirm_all(state, list(image.blobs()))
        store = ObjectStore(cast(S3Client, client), parallelism=_PARALLEL, capabilities=HONEST)
        tree = Tree(os.open(image.path, os.O_RDONLY | os.O_DIRECTORY))
        worklist = Worklist()
        self._state = CommittedState(state)
        self._mirror = Mirror(
            tree,
            Bucket(BucketLayout("bench"), store),
            self._state,
            worklist,
            parallel=_PARALLEL,
            newest=journal.last_sequence,
            ownership=Unwatched(),
        )
        self._drain = Drain(journal, self._state, worklist, self._mirror)

    def start(self, nursery: trio.Nursery) -> None:
        """Have everything work until the nursery is cancelled."""
        drain = self._drain
        nursery.start_soon(self._state.run)
        nursery.start_soon(drain.intake)
        nursery.start_soon(drain.handle_chunk_removals)
        nursery.start_soon(drain.handle_snapshot_removals)
        nursery.start_soon(drain.save_position, lambda position: None)
        for _ in range(_PARALLEL):
            nursery.start_soon(drain.handle_chunks)
        for _ in range(_TREE_WORKERS):
            nursery.start_soon(drain.handle_tree)

    async def reconcile(self) -> None:
        """Look through the datastore, as at each start, and wait for what that leads to."""
        await self._drain.reconcile()
        await self._drain.settled()

    async def send(self, digests: Sequence[str]) -> None:
        """Have the chunks mirrored."""
        self._tell([chunk_path(digest) for digest in digests])
        await self._drain.settled()

    async def publish(self, title: str, snapshot: str, new: Sequence[str] = ()) -> Passage:
        """Publish a snapshot that has been written, whose `new` chunks are unknown until that moment."""
        self._tell([chunk_path(digest) for digest in new])
        return await self._measure(title, snapshot, _PUBLISHING, _ends_of_publishing)

    async def remove(self, title: str, snapshot: str) -> Passage:
        """Remove a snapshot from the datastore, and with it from the bucket."""
        shutil.rmtree(self._image.path / snapshot)
        return await self._measure(title, snapshot, _REMOVING, _ends_of_removing)

    async def _measure(
        self,
        title: str,
        snapshot: str,
        stages: Sequence[str],
        ends_of: Callable[[Sequence[_Request]], tuple[float, ...]],
    ) -> Passage:
        """Tell that the snapshot's manifest is another; `ends_of` gives the ends of all `stages` but the last."""
        self._client.requests.clear()
        began = time.perf_counter()
        self._tell([f"{snapshot}/{MANIFEST_NAME}"])
        await self._drain.settled()
        ended = time.perf_counter()
        requests = sorted(self._client.requests, key=lambda request: request.began)
        moments = (began, *ends_of(requests), ended)
        spans = zip(stages, pairwise(moments), strict=True)
        return Passage(title, tuple(_stage(stage, start, end, requests) for stage, (start, end) in spans))

    def _tell(self, paths: Sequence[str]) -> None:
        self._keeper.append([path.encode() for path in paths])
        self._drain.wake()


def confirm_all(state: State, blobs: Sequence[tuple[bytes, bytes]]) -> None:
    """Have the state say what it would if the chunks, of which these are digest and file, had been sent before."""
    for start in range(0, len(blobs), _CHUNKS_A_COMMIT):
        batch = blobs[start : start + _CHUNKS_A_COMMIT]
        state.update(
            lambda transaction, batch=batch: [  # type: ignore[misc]
                transaction.chunks.confirm(digest, len(blob), crc32c.crc32c(blob)) for digest, blob in batch
            ]
        )


def _stage(title: str, began: float, ended: float, requests: Sequence[_Request]) -> Stage:
    """`requests` are in the order in which they began."""
    under_way, until = 0.0, began
    for request in requests:
        under_way += max(0.0, min(request.ended, ended) - max(request.began, until))
        until = max(until, min(request.ended, ended))
    return Stage(title, ended - began, sum(began <= request.began < ended for request in requests), under_way)


async def _measure(base: Path, chunks: int, latencies: Sequence[float]) -> dict[str, Any]:
    client = _ForgetfulClient(base / "objects")
    image = Image(base / "datastore", chunks)
    uploader = _Uploader(image, base, client)
    memory = own_memory()
    series = []
    async with trio.open_nursery() as nursery:
        uploader.start(nursery)
        await uploader.reconcile()
        for client.latency in latencies:
            passages = await _publish_and_remove(image, uploader)
            series.append(asdict(Series(client.latency, tuple(passages))))
        nursery.cancel_scope.cancel()
    return {"new": int(chunks * _NEW_FRACTION), "memory": memory, "series": series}


async def _publish_and_remove(image: Image, uploader: _Uploader) -> list[Passage]:
    passages = [await uploader.publish("publish, no new chunk", image.write_snapshot())]
    await uploader.send(image.change(_NEW_FRACTION))
    passages.append(await uploader.publish("publish, 1 % new, sent before", image.write_snapshot()))
    new = image.change(_NEW_FRACTION)
    last = image.write_snapshot()
    passages.append(await uploader.publish("publish, 1 % new, none sent yet", last, new))
    passages.append(await uploader.remove("unpublish", last))
    return passages


if __name__ == "__main__":
    print(json.dumps(trio.run(_measure, Path(sys.argv[1]), int(sys.argv[2]), [*map(float, sys.argv[3:])])))
