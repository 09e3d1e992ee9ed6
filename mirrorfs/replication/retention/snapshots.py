"""What leaves the datastore leaves the bucket, when it may: snapshot by snapshot."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

import trio

from mirrorfs.datastore.names import PROTECTED_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.events import EventName, about
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected
from mirrorfs.replication.publishing.groups import GroupMirror, NamespaceMirror
from mirrorfs.replication.publishing.publication import SnapshotPublication
from mirrorfs.replication.retention.absences import Absences
from mirrorfs.replication.retention.clock import utc
from mirrorfs.replication.retention.grace import Grace
from mirrorfs.replication.retention.refusals import asked_again_at
from mirrorfs.replication.retention.removal import SnapshotRemoval
from mirrorfs.replication.retention.wave import RemovalWaves
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import item_of_problem
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.problems import CannotMirror, Problems
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.steps import reach

log = logging.getLogger(__name__)


class SnapshotRetention:
    """Removes snapshots whose manifests are gone from the datastore, after everything that may replace them is up."""

    def __init__(
        self,
        tree: Tree,
        bucket: Bucket,
        state: CommittedState,
        publication: SnapshotPublication,
        removal: SnapshotRemoval,
        grace: Grace,
        absences: Absences,
        waves: RemovalWaves,
        groups: GroupMirror,
        namespaces: NamespaceMirror,
        problems: Problems,
        ownership: Ownership,
        *,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._tree = tree
        self._bucket = bucket
        self._state = state
        self._publication = publication
        self._removal = removal
        self._grace = grace
        self._absences = absences
        self._waves = waves
        self._groups = groups
        self._namespaces = namespaces
        self._problems = problems
        self._ownership = ownership
        self._now = now

    async def remove(self, snapshots: Sequence[SnapshotId]) -> None:
        """Remove those that are still gone and may go. What keeps one of them becomes a problem of its name."""
        gone = []
        for snapshot in snapshots:
            async with self._problems.noting(snapshot.path):
                if await trio.to_thread.run_sync(self._is_gone, snapshot):
                    # Once for all: by the time that the claim was looked at, the clock may have been set back.
                    self._refuse_before_retry(snapshot)
                    gone.append(snapshot)
        unpublished = [snapshot for snapshot in gone if self._was_never_up(snapshot)]
        judged = [snapshot for snapshot in gone if snapshot not in unpublished]
        admitted = [*unpublished, *await self._waves.admit(await self._absences.pass_on(judged))]
        if admitted:
            await self._ownership.confirm_for_removal()
        for snapshot in admitted:
            async with self._problems.noting(snapshot.path), self._publication.alone(snapshot):
                # It may have come back while others were removed; then a record says so.
                if await trio.to_thread.run_sync(self._is_gone, snapshot):
                    await self._remove(snapshot)
                    await self._problems.clear(snapshot.path)

    async def returned(self, snapshot: SnapshotId) -> None:
        """To be called when a snapshot is published: whatever its earlier removal has left is over."""
        await self._forget_what_held_it(snapshot)
        await self._grace.end(snapshot.path)

    async def _forget_what_held_it(self, snapshot: SnapshotId) -> None:
        await self._waves.forget(snapshot)
        if self._state.view(lambda transaction: transaction.retention.refused(snapshot.path)) is not None:
            await self._state.apply(lambda transaction: transaction.retention.clear_refused([snapshot.path]))
            reach("retention.refusal-over")

    def _was_never_up(self, snapshot: SnapshotId) -> bool:
        """Tell whether it went before it was published, so that nobody can miss it in the bucket."""
        return self._state.view(
            lambda transaction: (
                transaction.contents.get(snapshot.manifest_path) is None
                and (known := transaction.snapshots.get(snapshot.path)) is not None
                and known.phase is SnapshotPhase.COMMITTED
            )
        )

    def _is_gone(self, snapshot: SnapshotId) -> bool:
        return not self._tree.exists(snapshot.manifest_path)

    async def _remove(self, snapshot: SnapshotId) -> None:
        await self._refuse_if_protected(snapshot)
        await self._refuse_while_its_move_fails(snapshot)
        try:
            await self._grace.keep(snapshot)
            await self._removal.remove(snapshot)
            self._grace.look_again()
            await self._groups.settle(snapshot.group)
            await self._namespaces.settle_with_parents(snapshot.group.namespace)
        except StoreRejected as error:
            raise await self._refused(snapshot, error) from error
        except ConfirmationFailed as error:
            raise CannotMirror(snapshot.path, str(error)) from error
        await self._forget_what_held_it(snapshot)
        log.info("%s removed from the bucket", snapshot.path, extra=about(EventName.REMOVED, snapshot=snapshot.path))

    async def _refuse_if_protected(self, snapshot: SnapshotId) -> None:
        """PBS never prunes a protected snapshot, so one whose manifest alone is gone was not removed by PBS."""
        marker = f"{snapshot.path}/{PROTECTED_NAME}"
        if self._state.view(lambda transaction: transaction.contents.get(marker)) is None:
            return
        if await trio.to_thread.run_sync(self._tree.exists, snapshot.path):
            raise CannotMirror(
                snapshot.path,
                "it was protected and its manifest is gone, but its directory is there: its copy in the bucket stays "
                "until the directory is gone too (restore the snapshot from the bucket, or remove the directory)",
            )

    async def _refuse_while_its_move_fails(self, snapshot: SnapshotId) -> None:
        """What stands under another name now, and cannot be published there, is restorable under the old one alone."""
        known = self._state.view(lambda transaction: transaction.snapshots.get(snapshot.path))
        moved = None if known is None else await trio.to_thread.run_sync(self._moved_and_unpublished, snapshot, known)
        if moved is not None:
            raise CannotMirror(
                snapshot.path,
                f"it is gone, but {moved.path} has the same files and cannot be published: the copy under the old name "
                "stays in the bucket until the new one is published, or gone too",
            )

    def _moved_and_unpublished(self, snapshot: SnapshotId, known: SnapshotState) -> SnapshotId | None:
        sick = (item_of_problem(name) for name in self._problems.names())
        # No move changes the time of a backup.
        others = (item for item in sick if isinstance(item, SnapshotId) and item.backup_time == snapshot.backup_time)
        unpublished = (other for other in others if other != snapshot and not self._is_in_bucket(other))
        return next((other for other in unpublished if self._publication.listed_files(other) == known.files), None)

    def _is_in_bucket(self, snapshot: SnapshotId) -> bool:
        known = self._state.view(lambda transaction: transaction.snapshots.get(snapshot.path))
        return known is not None and known.phase is SnapshotPhase.PUBLISHED

    def _refuse_before_retry(self, snapshot: SnapshotId) -> None:
        refusal = self._state.view(lambda transaction: transaction.retention.refused(snapshot.path))
        if refusal is not None and self._now() < refusal.retry_at:
            raise CannotMirror(snapshot.path, refusal.reason)

    async def _refused(self, snapshot: SnapshotId, error: StoreRejected) -> CannotMirror:
        until = await self._bucket.store.retained_until(self._bucket.layout.content_key(snapshot.manifest_path))
        retry_at = asked_again_at(self._now(), until or 0.0)
        reason = f"the store refuses to delete it, and is asked again at {utc(retry_at)}: {error}"
        await self._state.apply(lambda transaction: transaction.retention.set_refused(snapshot.path, reason, retry_at))
        reach("retention.refusal-recorded")
        return CannotMirror(snapshot.path, reason)
