"""Where the processor time of a small chunk goes: `python -m tests.bench.small_chunk`, as root, on an idle machine.

The parts are measured in one thread, each by itself, the whole in an uploader that mirrors to the same stub. What the
whole takes beyond them is the event loop, visits to threads, and threads that wait for the interpreter.
"""

from __future__ import annotations

import hashlib
import os
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, cast

from mirrorfs.datastore.blob import check_chunk
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.signing import Credentials, Signer
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.state.state import State, StateTransaction
from tests.bench.scale import FULL, Scale
from tests.bench.stub_store import RunningStub, running_stub_store
from tests.bench.uploads import UPLOADER, _make_small, _Source
from tests.harness.names import CHUNK_NAME
from tests.stores.seaweedfs import StoreServer
from tests.watchdog import MARK

_ROUNDS = 3
_CHUNKS_A_COMMIT = 8
_BUCKET = "bench"
_SIGNER = Signer("127.0.0.1:80", "us-east-1", "s3")
Item = TypeVar("Item")
READ, SIGN, PUT, HEAD, NOTE, REST, WHOLE = (
    "read and check it, CRC32C",
    "sign PUT and HEAD, with a SHA-256",
    "the rest of the PUT",
    "the rest of the HEAD",
    "note it before and after, 8 in a commit",
    "all else",
    "whole",
)


def measure_small_chunk(base: Path, stub: RunningStub, scale: Scale) -> Mapping[str, float]:
    """Seconds of processor time a chunk, the least of some rounds of each part; with the stub's keys in os.environ."""
    source = _Source(base / "source", cast(StoreServer, stub), _BUCKET)
    _make_small(source.mirror.backing, scale)
    samples = [source.send_by(UPLOADER, f"whole-{number}") for number in range(_ROUNDS)]
    whole = min(sample.sender_seconds / sample.objects for sample in samples)
    found = _parts(base, source.mirror.backing, stub)
    return {**found, REST: whole - sum(found.values()), WHOLE: whole}


def _parts(base: Path, datastore: Path, stub: RunningStub) -> dict[str, float]:
    digests = sorted(bytes.fromhex(path.name) for path in datastore.glob(".chunks/*/*") if CHUNK_NAME.match(path.name))
    descriptor = os.open(datastore, os.O_RDONLY | os.O_DIRECTORY)
    state = State(str(base / "state"))
    try:
        tree, layout = Tree(descriptor), BucketLayout("parts")
        chunks = {layout.chunk_key(digest): tree.read_chunk(digest) for digest in digests}
        checksums = {key: calculate_crc32c(data) for key, data in chunks.items()}
        client = S3Client(_BUCKET, StoreOptions(endpoint_url=stub.endpoint_url))
        signing = _a_chunk(lambda key: _sign(key, chunks[key]), list(chunks))
        put = _a_chunk(
            lambda key: client.put_object(key, chunks[key], crc32c=checksums[key], md5=None),
            list(chunks),
        )
        head = _a_chunk(client.look, list(chunks))
        # A PUT signs the body, a HEAD has none.
        signing_head = _a_chunk(lambda key: _sign(key, b""), list(chunks))
        return {
            READ: _a_chunk(lambda digest: _read(tree, digest), digests),
            SIGN: signing + signing_head,
            PUT: put - signing,
            HEAD: head - signing_head,
            NOTE: _a_chunk(lambda some: _note(state, some), _commits(digests), rounds=1) / _CHUNKS_A_COMMIT,
        }
    finally:
        state.close()
        os.close(descriptor)


def _a_chunk(work: Callable[[Item], object], items: Sequence[Item], rounds: int = _ROUNDS) -> float:
    found = []
    for _ in range(rounds):
        began = time.thread_time()
        for item in items:
            work(item)
        found.append((time.thread_time() - began) / len(items))
    return min(found)


def _read(tree: Tree, digest: bytes) -> None:
    data = tree.read_chunk_unless_quarantined(digest)
    assert data is not None
    check_chunk(data, digest, content=True)
    calculate_crc32c(data)


def _sign(key: str, body: bytes) -> None:
    headers = {"x-amz-checksum-crc32c": "AAAAAA==", "User-Agent": "mirrorfs"}
    payload = hashlib.sha256(body).hexdigest()
    _SIGNER.signed("PUT", f"/{_BUCKET}/{key}", headers, payload, Credentials("key", "secret"))


def _commits(digests: Sequence[bytes]) -> list[Sequence[bytes]]:
    return [digests[at : at + _CHUNKS_A_COMMIT] for at in range(0, len(digests), _CHUNKS_A_COMMIT)]


def _note(state: State, digests: Sequence[bytes]) -> None:
    def confirm(transaction: StateTransaction) -> None:
        for digest in digests:
            transaction.chunks.confirm(digest, 65548, 1)

    state.update(lambda transaction: transaction.chunks.intend(digests))
    state.update(confirm)


def main() -> int:
    """Measure and print."""
    os.environ.setdefault(MARK, uuid.uuid4().hex)
    with tempfile.TemporaryDirectory(prefix="mirrorfs-bench-", dir="/var/tmp") as base, running_stub_store() as stub:
        stub.access.create_bucket(_BUCKET)
        os.environ.update(stub.environment())
        for part, seconds in measure_small_chunk(Path(base), stub, FULL).items():
            print(f"| {part} | {seconds * 1e6:.0f} µs |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
