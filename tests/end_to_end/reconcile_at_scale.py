"""`python -m tests.end_to_end.reconcile_at_scale DATASTORE STATE_DIRECTORY`: a whole reconcile and its memory.

Everything is the product's own but the store's side of the network, which takes whatever it is sent and forgets it: the
memory of this process is what is measured, and a hundred thousand real PUTs would only take longer. Prints one line of
JSON: memory in KiB before and at the most, published snapshots, confirmed chunks, PUTs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import cast

import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.journal import JournalReader, JournalWriter
from mirrorfs.objectstore.answers import PutReceipt, StoredObject
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.mirror import Mirror
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.drain import Drain
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.snapshots import SnapshotPhase
from mirrorfs.state.state import State
from tests.replication.unwatched import Unwatched
from tests.stores.capabilities import HONEST

_PARALLEL = 8


class _ForgetfulClient:
    """A store that confirms everything and keeps nothing."""

    def __init__(self) -> None:
        self.puts = 0
        self._shown: dict[str, StoredObject] = {}

    def put_object(self, key: str, body: bytes, *, crc32c: int | None, md5: bytes | None) -> PutReceipt:
        self.puts += 1
        etag = hashlib.md5(body).hexdigest()
        self._shown[key] = StoredObject(key, len(body), etag, crc32c)
        return PutReceipt(etag, crc32c)

    def head_object(self, key: str) -> StoredObject | None:
        # Each is asked for once, after its PUT: nothing grows.
        return self._shown.pop(key, None)


async def _reconcile(datastore: str, directory: str) -> dict[str, int]:
    JournalWriter(f"{directory}/journal").close()
    state = CommittedState(State(f"{directory}/state"))
    client = _ForgetfulClient()
    store = ObjectStore(cast(S3Client, client), parallelism=_PARALLEL, capabilities=replace(HONEST, copies=False))
    tree = Tree(os.open(datastore, os.O_RDONLY | os.O_DIRECTORY))
    worklist = Worklist()
    journal = JournalReader(f"{directory}/journal")
    mirror = Mirror(
        tree,
        Bucket(BucketLayout("many"), store),
        state,
        worklist,
        parallel=_PARALLEL,
        newest=journal.last_sequence,
        ownership=Unwatched(),
    )
    drain = Drain(journal, state, worklist, mirror)
    before = _memory("VmRSS")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(state.run)
        nursery.start_soon(drain.intake)
        for _ in range(_PARALLEL):
            nursery.start_soon(drain.handle_chunks)
        for _ in range(4):
            nursery.start_soon(drain.handle_tree)
        nursery.start_soon(drain.handle_chunk_removals)
        nursery.start_soon(drain.handle_snapshot_removals)
        await drain.reconcile()
        await drain.settled()
        nursery.cancel_scope.cancel()
    snapshots = state.view(lambda transaction: [snapshot.phase for _, snapshot in transaction.snapshots.all()])
    return {
        "before": before,
        "most": _memory("VmHWM"),
        "published": snapshots.count(SnapshotPhase.PUBLISHED),
        "chunks": state.view(lambda transaction: transaction.chunks.count()),
        "puts": client.puts,
    }


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise LookupError(field)


if __name__ == "__main__":
    print(json.dumps(trio.run(_reconcile, sys.argv[1], sys.argv[2])))
