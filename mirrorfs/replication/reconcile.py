"""Finding by looking what no journal told: the datastore's tree against the state, in both directions."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator

import trio

from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.state import ChunkState, State, StateTransaction
from mirrorfs.replication.commits import StateCommits
from mirrorfs.replication.items import ChunkItem, Item, item_of
from mirrorfs.replication.worklist import Worklist

log = logging.getLogger(__name__)

_CHUNK_DIRECTORIES = 65536
# Directories looked at in one visit to a worker thread: enough to make the visit cheap, few enough to stay responsive.
_DIRECTORIES_AT_ONCE = 256
_ALL = sys.maxsize


class Reconciler:
    """Lists as work what may differ; whether it does is decided by whoever handles the item."""

    def __init__(self, tree: Tree, state: State, commits: StateCommits, worklist: Worklist) -> None:
        self._tree = tree
        self._state = state
        self._commits = commits
        self._worklist = worklist

    async def reconcile(self) -> None:
        """Look at the whole datastore: snapshots first, because they count; then chunks that no snapshot has."""
        for item in await self._items_below(""):
            await self._worklist.room()
            self._worklist.add(item)
        await self._count_foreign()
        await self._reconcile_chunks()

    async def reconcile_subtree(self, path: str) -> None:
        """List everything that is in the directory `path`, or that the bucket holds of it.

        Does not wait for room in the worklist: it is called by the workers that make room.
        """
        for item in await self._items_below(path):
            self._worklist.add(item)

    async def recount_foreign(self, path: str) -> None:
        """Count the foreign names anew if some in the directory `path` are gone: it may have moved with them."""
        inside = f"{path}/".encode()
        known = self._state.view(lambda transaction: transaction.foreign(_ALL)[1])
        below = [os.fsdecode(foreign) for foreign in known if foreign.startswith(inside)]
        if below and not await trio.to_thread.run_sync(lambda: all(map(self._tree.exists, below))):
            await self._count_foreign()

    async def _count_foreign(self) -> None:
        before = self._state.view(lambda transaction: set(transaction.foreign(_ALL)[1]))
        found = await trio.to_thread.run_sync(lambda: list(self._tree.foreign()))
        # What the journal told while we looked stays.
        await self._commits.apply(
            lambda transaction: transaction.replace_foreign({*found, *set(transaction.foreign(_ALL)[1]) - before})
        )

    async def _items_below(self, path: str) -> list[Item]:
        return await trio.to_thread.run_sync(
            lambda: list(dict.fromkeys([*self._local_items(path), *self._known_items(path)]))
        )

    def _known_items(self, path: str) -> list[Item]:
        return self._state.view(lambda transaction: list(_known_items(transaction, path)))

    def _local_items(self, path: str) -> Iterator[Item]:
        for namespace in self._tree.namespaces():
            if _touches(namespace.path, path):
                if namespace.parent is not None:
                    yield namespace
                yield from self._local_groups(namespace, path)

    def _local_groups(self, namespace: NamespaceId, path: str) -> Iterator[GroupId | SnapshotId]:
        for group in self._tree.groups(namespace):
            if _touches(group.path, path):
                yield group
                # The newest snapshot first: it is the one that would be missed most.
                snapshots = sorted(self._tree.snapshots(group), reverse=True)
                yield from (snapshot for snapshot in snapshots if _touches(snapshot.path, path))

    async def _reconcile_chunks(self) -> None:
        for first in range(0, _CHUNK_DIRECTORIES, _DIRECTORIES_AT_ONCE):
            numbers = range(first, first + _DIRECTORIES_AT_ONCE)
            for digest in await trio.to_thread.run_sync(self._differing_chunks, numbers):
                await self._worklist.room()
                self._worklist.add(ChunkItem(digest))

    def _differing_chunks(self, numbers: range) -> list[bytes]:
        differing: list[bytes] = []
        for number in numbers:
            local = set(self._tree.chunk_directory(number))
            known = self._known_chunks(number)
            differing += (digest for digest in local if digest not in known or not known[digest].confirmed)
            differing += (digest for digest, chunk in known.items() if digest not in local and chunk.references == 0)
        return differing

    def _known_chunks(self, number: int) -> dict[bytes, ChunkState]:
        return dict(self._state.view(lambda transaction: transaction.chunks_of_directory(number)))


def _touches(candidate: str, path: str) -> bool:
    """Tell whether a path lies in `path`, or `path` in it."""
    return (
        not path
        or not candidate
        or candidate == path
        or candidate.startswith(path + "/")
        or path.startswith(candidate + "/")
    )


def _known_items(transaction: StateTransaction, path: str) -> Iterator[Item]:
    for snapshot, _ in transaction.snapshots(path):
        yield SnapshotId.parse(snapshot)
    for content in transaction.contents(path):
        item = item_of(content.path.removesuffix("/.namespace").encode())
        if content.path.endswith("/.namespace"):
            item = NamespaceId.parse(content.path.removesuffix("/.namespace"))
        if item is not None:
            yield item
