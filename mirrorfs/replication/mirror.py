"""The parts of the mirror put together, and which of them handles which item."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence

import trio

from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.replication.comparing.adoption import Adoption
from mirrorfs.replication.comparing.inspection import BucketInspection
from mirrorfs.replication.comparing.reconcile import Reconciler
from mirrorfs.replication.comparing.survey import Survey
from mirrorfs.replication.publishing.chunks import ChunkMirror
from mirrorfs.replication.publishing.closures import Closures
from mirrorfs.replication.publishing.groups import GroupMirror, NamespaceMirror
from mirrorfs.replication.publishing.publication import SnapshotPublication
from mirrorfs.replication.publishing.references import CHUNKS_A_COMMIT, References, Unreferenced
from mirrorfs.replication.publishing.replica import Replica
from mirrorfs.replication.retention.absences import Absences
from mirrorfs.replication.retention.chunks import CHUNKS_A_BATCH, ChunkRemoval
from mirrorfs.replication.retention.clock import StoreClock
from mirrorfs.replication.retention.grace import Grace
from mirrorfs.replication.retention.locks import SnapshotLocks
from mirrorfs.replication.retention.removal import SnapshotRemoval
from mirrorfs.replication.retention.snapshots import SnapshotRetention
from mirrorfs.replication.retention.wave import RemovalWaves
from mirrorfs.replication.scrubbing.examination import Examination
from mirrorfs.replication.scrubbing.healing import Healing, foresee, heal_objects
from mirrorfs.replication.scrubbing.kept import KeptSnapshots
from mirrorfs.replication.scrubbing.losses import Losses
from mirrorfs.replication.scrubbing.scrub import Scrub
from mirrorfs.replication.sending.sender import CHUNKS_A_HAND, ChunkSender
from mirrorfs.replication.settings import RetentionSettings
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import ChunkItem, ForeignItem, Item, SubtreeItem, item_of_problem, problem_name
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.problems import Problems
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.steps import reach

_ALIGNED = RetentionSettings()


class Mirror:
    """Makes the bucket equal to the datastore, one item at a time; what is to leave it goes together."""

    def __init__(
        self,
        tree: Tree,
        bucket: Bucket,
        state: CommittedState,
        worklist: Worklist,
        *,
        parallel: int,
        newest: Callable[[], int],
        ownership: Ownership,
        retention: RetentionSettings = _ALIGNED,
        now: Callable[[], float] = time.time,
        references_a_commit: int = CHUNKS_A_COMMIT,
        verify_percent_per_day: float = 0.0,
        sender: ChunkSender | None = None,
        in_memory: trio.CapacityLimiter | None = None,
    ) -> None:
        """Put the parts together that make `bucket` equal to `tree`, as far as `state` knows them to differ.

        `parallel` bounds the chunks that are sent at once, and so the memory: `in_memory` does that together with a
        `sender`, which sends what is new in one go. `newest` tells the newest sequence that
        the journal has given; it is called in a thread. `ownership` is asked before anything is published or removed.
        `now` tells the Unix time by which something becomes old. `verify_percent_per_day` of the objects are scrubbed.
        """
        self.chunks_at_once = parallel if sender is None else parallel * CHUNKS_A_HAND
        """How many chunks are to be handled at a time."""
        self._tree = tree
        self.state = state
        self._worklist = worklist
        self._newest = newest
        self._parallel = parallel
        self.problems = Problems(state)
        self.clock = StoreClock(bucket.store, bucket.layout.own_key(""), now)

        # Publishing, and what may have to go before something is published.
        replica = Replica(bucket, state, ownership)
        self._groups = GroupMirror(tree, replica, state)
        self._namespaces = NamespaceMirror(tree, replica, state)
        self._chunks = ChunkMirror(
            tree,
            bucket,
            state,
            self.problems,
            in_memory=in_memory or trio.CapacityLimiter(parallel),
            sender=sender,
            healed=self._publish_what_waited_for,
            look_again=self._look_at_chunk,
        )
        self.references = References(
            bucket, state, Unreferenced(tree, self._look_at_chunk), chunks_a_commit=references_a_commit
        )
        removal = SnapshotRemoval(replica, state, self.references)
        self.publication = SnapshotPublication(
            tree,
            replica,
            state,
            self._chunks,
            self._groups,
            self._namespaces,
            self.references,
            removal,
            self.problems,
            ownership,
            handle_if_listed=self._handle_if_listed,
            parallel=self.chunks_at_once,
        )

        # Retention.
        self.grace = Grace(
            bucket, state, self.references, self.clock, ownership, delete_after=retention.delete_after, now=now
        )
        self.locks = SnapshotLocks(
            bucket, state, self.references, self.clock, lock_for=retention.lock_for, parallel=parallel, now=now
        )
        self.absences = Absences(
            tree,
            state,
            self.clock,
            unseen_after=retention.unseen_after,
            seen_at=worklist.seen_at,
            now=now,
        )
        self._waves = RemovalWaves(state, self.clock, max_delete_fraction=retention.max_delete_fraction, now=now)
        self._retention = SnapshotRetention(
            tree,
            bucket,
            state,
            self.publication,
            removal,
            self.grace,
            self.absences,
            self._waves,
            self._groups,
            self._namespaces,
            self.problems,
            ownership,
            now=now,
        )
        self._chunk_removal = ChunkRemoval(
            tree, bucket, state, self._chunks, self.problems, ownership, look_again=self._look_at_chunk
        )

        # Comparing.
        self.reconciler = Reconciler(tree, state, worklist, self.problems)
        self.survey = Survey(
            bucket.layout, self.reconciler, self.publication, self._chunks, self._groups, self._namespaces
        )
        self.adoption = Adoption(bucket, state, self.references)
        self.inspection = BucketInspection(tree, bucket, state, self.publication, self.adoption, parallel=parallel)

        # Reading again.
        closures = Closures(tree, bucket)
        self.examination = Examination(bucket, state, worklist, self._chunks, replica, closures, ownership)
        kept = KeptSnapshots(bucket, state)
        self.losses = Losses(self.examination, state, worklist, self.problems, self.references, closures, kept)
        self.scrub = Scrub(self.losses, state, worklist, percent_per_day=verify_percent_per_day, now=now)

    async def reconcile(self, sequence: int) -> None:
        """List everything that may differ or could not be mirrored, standing for the journal's `sequence`."""
        self.problems.refused.ask_again()
        await self.reconciler.reconcile(sequence)
        self.look_again_at_problems(sequence)

    async def handle(self, item: Item) -> None:
        """Have the bucket agree with the datastore about one item; what keeps it from that becomes a problem.

        Where something has to leave the bucket, that is postponed.
        """
        name = problem_name(item)
        async with self.problems.noting(name):
            # Whether all is well with what is postponed is known when it has been removed.
            if await self._settle(item):
                for other in await self.problems.clear(name):
                    self._look_at(other, self._worklist.inherited())

    async def _handle_if_listed(self, digest: bytes) -> None:
        item = ChunkItem(digest)
        with self._worklist.taken(item) as is_taken:
            if is_taken:
                await self.handle(item)

    async def _settle(self, item: Item) -> bool:
        match item:
            case ChunkItem(digest=digest):
                at_a_glance = self._worklist.handles_at_a_glance()
                return await self._chunks.settle(digest, at_a_glance=at_a_glance) or await self._postpone(item)
            case SnapshotId():
                return await self._settle_snapshot(item) or await self._postpone(item)
            case GroupId():
                await self._groups.settle(item)
            case NamespaceId():
                await self._namespaces.settle(item)
            case SubtreeItem(path=""):
                await self.reconcile(self._worklist.inherited())
            case SubtreeItem(path=path):
                await self.reconciler.reconcile_subtree(path, self._worklist.inherited())
            case ForeignItem(path=path):
                present = await trio.to_thread.run_sync(self._tree.is_taken, os.fsdecode(path))
                if present != self.state.view(lambda transaction: transaction.foreign.has(path)):
                    await self.state.apply(lambda transaction: transaction.foreign.set(path, present))
                    reach("foreign.recorded")
        return True

    async def _postpone(self, item: ChunkItem | SnapshotId) -> bool:
        self._worklist.postpone(item, await trio.to_thread.run_sync(self._newest))
        return False

    async def _settle_snapshot(self, snapshot: SnapshotId) -> bool:
        before = self._known(snapshot)
        if not await self.publication.settle(snapshot, at_a_glance=self._worklist.handles_at_a_glance()):
            return False
        known = self._known(snapshot)
        if known is not None and known.phase is SnapshotPhase.PUBLISHED:
            await self._retention.returned(snapshot)
            if known != before:
                self.locks.look_again()
        return True

    def _known(self, snapshot: SnapshotId) -> SnapshotState | None:
        return self.state.view(lambda transaction: transaction.snapshots.get(snapshot.path))

    @property
    def most_chunks_a_removal(self) -> int:
        """How many chunks `remove_chunks` removes with one request."""
        return CHUNKS_A_BATCH

    @property
    def quiet_before_removals(self) -> float:
        """For how many seconds no snapshot must have gone before those that have are judged together."""
        return self._waves.quiet

    async def remove_chunks(self, items: Sequence[ChunkItem]) -> None:
        """Remove chunks from the bucket that are gone and that nobody needs, with one request."""
        await self._chunk_removal.remove([item.digest for item in items])

    async def remove_snapshots(self, snapshots: Sequence[SnapshotId]) -> None:
        """Remove snapshots from the bucket that are gone, as far as retention lets them go."""
        await self._retention.remove(snapshots)

    async def approve_removals(self, below: Sequence[str] = ()) -> list[SnapshotId]:
        """Approve of removals that are held, all or those in the paths `below`, and have them done; returns them."""
        approved = await self._waves.approve(below)
        for snapshot in approved:
            self._worklist.add(snapshot, self._worklist.inherited())
        return approved

    def look_again_at_held(self) -> None:
        """Have those removals looked at anew that were held for a time which is over."""
        for snapshot in self.absences.overdue():
            self._worklist.add(snapshot, self._worklist.inherited())

    async def look_again_at_refused(self) -> None:
        """Have the store asked again to delete the chunks that it has refused to, where it is time for that."""
        await self._chunk_removal.look_again_at_refused()

    async def heal_bucket(self, paths: Sequence[str], *, dry_run: bool) -> Healing:
        """Look at the objects of these datastore paths, and send those again that are damaged. Raises StoreError."""
        return await heal_objects(self.examination, self.losses, paths, parallel=self._parallel, dry_run=dry_run)

    async def foresee_healing(self, damages: Mapping[str, str]) -> Healing:
        """Tell what `heal_bucket` would do about what was just found damaged, from the datastore alone."""
        return await foresee(self.examination, damages)

    async def clear_staging(self) -> None:
        """Delete what an earlier uploader has left behind in the bucket; to be called before anything is handled."""
        await self._chunks.clear_staging()

    def look_again_at_problems(self, sequence: int | None = None) -> None:
        """List everything that could not be mirrored as work, in case it was repaired beneath the mount.

        Without a `sequence` to stand for, nobody who waits already has to wait for it, and of what the store refuses
        for one reason some are tried, when the pause is over.
        """
        names = self.problems.names()
        if sequence is None:
            refused = self.problems.refused.waiting()
            names = [name for name in names if name not in refused] + self.problems.refused.due()
        for name in names:
            self._look_at(name, self._worklist.inherited() if sequence is None else sequence)

    def _look_at(self, name: str, sequence: int) -> None:
        item = item_of_problem(name)
        if item is not None:
            self._worklist.add(item, sequence)

    def _publish_what_waited_for(self, digest: bytes) -> None:
        for snapshot in self.publication.blocked_by(digest):
            self._worklist.add(snapshot, self._worklist.inherited())

    def _look_at_chunk(self, digest: bytes) -> None:
        self._worklist.add(ChunkItem(digest), self._worklist.inherited())
