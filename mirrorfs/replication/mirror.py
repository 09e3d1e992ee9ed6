"""The parts of the mirror put together, and which of them handles which item."""

from __future__ import annotations

import logging

import trio

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import (
    CLIENT_LOG_NAME,
    PROTECTED_NAME,
    GroupDirectoryName,
    GroupId,
    NamespaceDirectoryName,
    NamespaceId,
    SnapshotDirectoryName,
    SnapshotId,
    chunk_path,
    classify,
)
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.state import State
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.chunks import ChunkMirror
from mirrorfs.replication.commits import StateCommits
from mirrorfs.replication.groups import GroupMirror, NamespaceMirror
from mirrorfs.replication.items import ChunkItem, ForeignItem, Item, SubtreeItem, item_of
from mirrorfs.replication.problems import CannotMirror, Problems
from mirrorfs.replication.publication import SnapshotPublication
from mirrorfs.replication.reconcile import Reconciler
from mirrorfs.replication.removal import SnapshotRemoval
from mirrorfs.replication.replica import Replica
from mirrorfs.replication.worklist import Worklist

log = logging.getLogger(__name__)


class Mirror:
    """Makes the bucket equal to the datastore, one item at a time."""

    def __init__(
        self, tree: Tree, layout: BucketLayout, store: ObjectStore, state: State, worklist: Worklist, *, parallel: int
    ) -> None:
        """`parallel` bounds the chunks that are sent at once, and so the memory."""
        self.commits = StateCommits(state)
        self.problems = Problems(state, self.commits)
        self._tree = tree
        self._worklist = worklist
        self.reconciler = Reconciler(tree, state, self.commits, worklist)
        replica = Replica(layout, store, state, self.commits)
        self._chunks = ChunkMirror(
            tree, layout, store, state, self.commits, parallel=parallel, healed=self._publish_what_waited_for
        )
        self._groups = GroupMirror(tree, replica, state)
        self._namespaces = NamespaceMirror(tree, replica)
        removal = SnapshotRemoval(
            tree,
            replica,
            state,
            self.commits,
            self.problems,
            unreferenced=lambda digest: worklist.add(ChunkItem(digest)),
        )
        self.publication = SnapshotPublication(
            tree,
            replica,
            state,
            self.commits,
            self._chunks,
            self._groups,
            self._namespaces,
            removal,
            self.problems,
            parallel=parallel,
        )

    async def handle(self, item: Item) -> None:
        """Have the bucket agree with the datastore about one item; what keeps it from that becomes a problem."""
        name = _name_of(item)
        try:
            await self._settle(item)
        except CannotMirror as failure:
            await self.problems.note(failure.name, failure.reason)
            if failure.name != name:
                await self._clear(item, but=failure.name)
        except (StoreRejected, ConfirmationFailed, DatastoreError) as error:
            await self.problems.note(name, str(error))
        except OSError as error:
            await self.problems.note(name, f"it cannot be read: {error.strerror}")
        else:
            await self._clear(item)

    async def _clear(self, item: Item, *, but: str = "") -> None:
        names = [_name_of(item)]
        if isinstance(item, SnapshotId):
            names += [f"{item.path}/{extra}" for extra in (CLIENT_LOG_NAME, PROTECTED_NAME)]
        for name in names:
            if name != but:
                await self.problems.clear(name)

    async def _settle(self, item: Item) -> None:
        match item:
            case ChunkItem(digest=digest):
                await self._chunks.settle(digest)
            case SnapshotId():
                await self.publication.settle(item)
            case GroupId():
                await self._groups.settle(item)
            case NamespaceId():
                await self._namespaces.settle(item)
            case SubtreeItem(path=""):
                await self.reconciler.reconcile()
            case SubtreeItem(path=path):
                await self.reconciler.reconcile_subtree(path)
                await self.reconciler.recount_foreign(path)
            case ForeignItem(path=path):
                present = await trio.to_thread.run_sync(self._tree.exists, path.decode("utf-8", "surrogateescape"))
                await self.commits.apply(lambda transaction: transaction.set_foreign(path, present))

    def look_again_at_problems(self) -> None:
        """List everything that could not be mirrored as work, in case it was repaired beneath the mount."""
        for name in self.problems.names():
            item = _item_of_problem(name)
            if item is not None:
                self._worklist.add(item)

    def _publish_what_waited_for(self, digest: bytes) -> None:
        for snapshot in self.publication.blocked_by(digest):
            self._worklist.add(snapshot)


def _name_of(item: Item) -> str:
    match item:
        case ChunkItem(digest=digest):
            return chunk_path(digest)
        case ForeignItem(path=path):
            return path.decode("utf-8", "surrogateescape")
        case SubtreeItem(path=path):
            # Not to be taken for the group or snapshot of the same path.
            return f"{path}/"
        case _:
            return item.path


def _item_of_problem(name: str) -> Item | None:
    path = name.encode("utf-8", "surrogateescape")
    match classify(path):
        case SnapshotDirectoryName(snapshot=snapshot):
            return snapshot
        case GroupDirectoryName(group=group):
            return group
        case NamespaceDirectoryName(namespace=namespace):
            return namespace
    return item_of(path.rstrip(b"/"))
