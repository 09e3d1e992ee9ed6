"""Taking a snapshot out of the bucket: the manifest first, the references next, then the rest."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import trio

from mirrorfs.datastore.names import MANIFEST_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.state import SnapshotPhase, SnapshotState, State
from mirrorfs.replication.commits import StateCommits
from mirrorfs.replication.references import referenced_digests
from mirrorfs.replication.replica import Replica
from mirrorfs.steps import reach


class Unreferenced:
    """Tells on which chunks nobody references any more, of those that the datastore may not hold."""

    def __init__(self, tree: Tree, look_at: Callable[[bytes], None]) -> None:
        self._tree = tree
        self._look_at = look_at

    async def tell(self, digests: list[bytes]) -> None:
        """Have those looked at whose files are gone; the others will be named when they are unlinked."""
        for digest in await trio.to_thread.run_sync(self._perhaps_gone, digests):
            self._look_at(digest)

    def _perhaps_gone(self, digests: list[bytes]) -> list[bytes]:
        return [digest for digest in digests if not self._is_here(digest)]

    def _is_here(self, digest: bytes) -> bool:
        try:
            return self._tree.chunk_size(digest) is not None
        except OSError:
            # Whoever handles the chunk finds out, and says so.
            return False


class SnapshotRemoval:
    """Each step is noted in the state before or with its effect, so that a crash is continued where it happened."""

    def __init__(self, replica: Replica, state: State, commits: StateCommits, unreferenced: Unreferenced) -> None:
        self._replica = replica
        self._state = state
        self._commits = commits
        self._unreferenced = unreferenced

    async def remove(self, snapshot: SnapshotId) -> None:
        """Have nothing of the snapshot in the bucket.

        The manifest object goes before anything it lists.
        """
        path = snapshot.path
        known = self._state.view(lambda transaction: transaction.snapshot(path))
        if known is not None and known.phase.counts_references:
            known = await self._enter(path, known, SnapshotPhase.REMOVING)
            reach("removal.begun")
        await self._replica.delete([f"{path}/{MANIFEST_NAME}"])
        reach("removal.manifest-deleted")
        if known is not None and known.phase is SnapshotPhase.REMOVING:
            await self._release(path, known)
        await self._delete_rest(path)

    async def _enter(self, path: str, known: SnapshotState, phase: SnapshotPhase) -> SnapshotState:
        entered = dataclasses.replace(known, phase=phase, since=time.time())
        await self._commits.apply(lambda transaction: transaction.set_snapshot(path, entered))
        return entered

    async def _release(self, path: str, known: SnapshotState) -> None:
        digests = await referenced_digests(path, known.files, lambda name: self._replica.get(f"{path}/{name}"))
        released = dataclasses.replace(known, phase=SnapshotPhase.RELEASED, since=time.time())
        reach("removal.before-release")
        unreferenced = await self._commits.apply(
            lambda transaction: transaction.release_snapshot(path, released, digests or ())
        )
        reach("removal.released")
        await self._unreferenced.tell(unreferenced)

    async def _delete_rest(self, path: str) -> None:
        left = self._state.view(lambda transaction: [content.path for content in transaction.contents(path)])
        await self._replica.delete(left)
        reach("removal.files-deleted")
        await self._commits.apply(lambda transaction: transaction.forget_snapshot(path))
        reach("removal.recorded")
