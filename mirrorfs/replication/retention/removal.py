"""Taking a snapshot out of the bucket: the manifest first, the references next, then the rest."""

from __future__ import annotations

import dataclasses
import time

from mirrorfs.datastore.names import MANIFEST_NAME, SnapshotId
from mirrorfs.replication.publishing.references import References
from mirrorfs.replication.publishing.replica import Replica
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach


class SnapshotRemoval:
    """Each step is noted in the state before or with its effect, so that a crash is continued where it happened."""

    def __init__(self, replica: Replica, state: CommittedState, references: References) -> None:
        self._replica = replica
        self._state = state
        self._references = references

    async def remove(self, snapshot: SnapshotId) -> None:
        """Have nothing of the snapshot in the bucket.

        The manifest object goes before anything it lists.
        """
        path = snapshot.path
        known = self._state.view(lambda transaction: transaction.snapshots.get(path))
        if known is not None and known.phase.counts_references:
            known = await self._enter(path, known, SnapshotPhase.REMOVING)
            reach("removal.begun")
        await self._replica.delete([f"{path}/{MANIFEST_NAME}"])
        reach("removal.manifest-deleted")
        if known is not None and known.phase is SnapshotPhase.REMOVING:
            await self._release(path, known)
        else:
            await self._references.give_back_interrupted(ReferenceHolder(path))
        await self._delete_rest(path)

    async def _enter(self, path: str, known: SnapshotState, phase: SnapshotPhase) -> SnapshotState:
        entered = dataclasses.replace(known, phase=phase, since=time.time())
        await self._state.apply(lambda transaction: transaction.snapshots.set(path, entered))
        return entered

    async def _release(self, path: str, known: SnapshotState) -> None:
        released = dataclasses.replace(known, phase=SnapshotPhase.RELEASED, since=time.time())

        def note(transaction: StateTransaction) -> None:
            transaction.snapshots.set(path, released)
            transaction.locks.forget_snapshot(path)

        reach("removal.before-release")
        await self._references.give_back(ReferenceHolder(path), known.files, note)
        reach("removal.released")

    async def _delete_rest(self, path: str) -> None:
        left = self._state.view(lambda transaction: [content.path for content in transaction.contents.below(path)])
        await self._replica.delete(left)
        reach("removal.files-deleted")
        await self._state.apply(lambda transaction: transaction.snapshots.forget(path))
        reach("removal.recorded")
