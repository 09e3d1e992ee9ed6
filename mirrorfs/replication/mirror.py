"""The parts of the mirror put together, and which of them handles which item."""

from __future__ import annotations

import os

import trio

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.state import State
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.chunks import ChunkMirror
from mirrorfs.replication.commits import StateCommits
from mirrorfs.replication.groups import GroupMirror, NamespaceMirror
from mirrorfs.replication.inspection import BucketInspection
from mirrorfs.replication.items import ChunkItem, ForeignItem, Item, SubtreeItem, item_of_problem, problem_name
from mirrorfs.replication.problems import CannotMirror, Problems
from mirrorfs.replication.publication import SnapshotPublication
from mirrorfs.replication.reconcile import Reconciler
from mirrorfs.replication.removal import SnapshotRemoval
from mirrorfs.replication.replica import Replica
from mirrorfs.replication.survey import Survey
from mirrorfs.replication.worklist import Worklist
from mirrorfs.steps import reach


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
        self.reconciler = Reconciler(tree, state, self.commits, worklist, self.problems)
        replica = Replica(layout, store, state, self.commits)
        self._chunks = ChunkMirror(
            tree,
            layout,
            store,
            state,
            self.commits,
            parallel=parallel,
            healed=self._publish_what_waited_for,
            unpinned=self._look_at_chunk,
            postpone=lambda digest: worklist.postpone(ChunkItem(digest)),
        )
        self._groups = GroupMirror(tree, replica, state)
        self._namespaces = NamespaceMirror(tree, replica)
        removal = SnapshotRemoval(tree, replica, state, self.commits, unreferenced=self._look_at_chunk)
        publication = SnapshotPublication(
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
        self.publication = publication
        self.inspection = BucketInspection(tree, layout, store, state, self.commits, publication, parallel=parallel)
        self.survey = Survey(tree, layout, state, self.reconciler, publication)

    async def handle(self, item: Item) -> None:
        """Have the bucket agree with the datastore about one item; what keeps it from that becomes a problem."""
        name = problem_name(item)
        try:
            await self._settle(item)
        except CannotMirror as failure:
            await self.problems.note(failure.name, failure.reason)
            if failure.name != name:
                await self.problems.clear(name)
        except (StoreRejected, ConfirmationFailed, DatastoreError) as error:
            await self.problems.note(name, str(error))
        except OSError as error:
            await self.problems.note(name, f"it cannot be read: {error.strerror}")
        else:
            await self.problems.clear(name)

    async def _settle(self, item: Item) -> None:
        match item:
            case ChunkItem(digest=digest):
                await self._chunks.settle(digest)
            case SnapshotId():
                await self.publication.settle(item, at_a_glance=self._worklist.handles_at_a_glance())
            case GroupId():
                await self._groups.settle(item)
            case NamespaceId():
                await self._namespaces.settle(item)
            case SubtreeItem(path=""):
                await self.reconciler.reconcile(self._worklist.inherited())
                self.look_again_at_problems()
            case SubtreeItem(path=path):
                await self.reconciler.reconcile_subtree(path, self._worklist.inherited())
            case ForeignItem(path=path):
                present = await trio.to_thread.run_sync(self._tree.is_taken, os.fsdecode(path))
                await self.commits.apply(lambda transaction: transaction.set_foreign(path, present))
                reach("foreign.recorded")

    def look_again_at_problems(self, sequence: int | None = None) -> None:
        """List everything that could not be mirrored as work, in case it was repaired beneath the mount.

        Without a `sequence` to stand for, nobody who waits already has to wait for it.
        """
        for name in self.problems.names():
            item = item_of_problem(name)
            if item is not None:
                self._worklist.add(item, self._worklist.inherited() if sequence is None else sequence)

    def _publish_what_waited_for(self, digest: bytes) -> None:
        for snapshot in self.publication.blocked_by(digest):
            self._worklist.add(snapshot, self._worklist.inherited())

    def _look_at_chunk(self, digest: bytes) -> None:
        self._worklist.add(ChunkItem(digest), self._worklist.inherited())
