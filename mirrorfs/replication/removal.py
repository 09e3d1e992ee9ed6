"""Taking a snapshot out of the bucket: the manifest first, the references next, then the rest."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable

import trio

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.index import parse_index
from mirrorfs.datastore.names import MANIFEST_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.state import SnapshotPhase, SnapshotState, State
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.replication.commits import StateCommits
from mirrorfs.replication.replica import Replica
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_INDEX_SUFFIXES = (".fidx", ".didx")


class SnapshotRemoval:
    """Each step is noted in the state before or with its effect, so that a crash is continued where it happened."""

    def __init__(
        self,
        tree: Tree,
        replica: Replica,
        state: State,
        commits: StateCommits,
        *,
        unreferenced: Callable[[bytes], None],
    ) -> None:
        """`unreferenced` is called with each digest that nobody references and the datastore may not hold any more."""
        self._tree = tree
        self._replica = replica
        self._state = state
        self._commits = commits
        self._unreferenced = unreferenced

    async def remove(self, snapshot: SnapshotId) -> None:
        """Have nothing of the snapshot in the bucket.

        The manifest object goes before anything it lists; the references are given back by the indexes as they were
        published, read from the bucket, since the datastore may hold others or none by now.
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
        digests = await self._published_digests(path, known)
        released = dataclasses.replace(known, phase=SnapshotPhase.RELEASED, since=time.time())
        reach("removal.before-release")
        unreferenced = await self._commits.apply(
            lambda transaction: transaction.release_snapshot(path, released, digests)
        )
        reach("removal.released")
        for digest in await trio.to_thread.run_sync(self._perhaps_gone, unreferenced):
            self._unreferenced(digest)

    async def _published_digests(self, path: str, known: SnapshotState) -> set[bytes]:
        digests: set[bytes] = set()
        for name, checksum in known.files.items():
            if not name.endswith(_INDEX_SUFFIXES):
                continue
            try:
                index = parse_index(name, await self._replica.get(f"{path}/{name}"))
            except (ObjectMissing, DatastoreError) as error:
                _leave_references(path, name, str(error))
                return set()
            if index.checksum.hex() != checksum:
                _leave_references(path, name, "it is not the index that was published")
                return set()
            digests |= index.unique_digests()
        return digests

    def _perhaps_gone(self, digests: list[bytes]) -> list[bytes]:
        """Return the digests whose chunks have to be looked at; those here will be named when they are unlinked."""
        return [digest for digest in digests if not self._is_here(digest)]

    def _is_here(self, digest: bytes) -> bool:
        try:
            return self._tree.chunk_size(digest) is not None
        except OSError:
            # Whoever handles the chunk finds out, and says so.
            return False

    async def _delete_rest(self, path: str) -> None:
        left = self._state.view(lambda transaction: [content.path for content in transaction.contents(path)])
        await self._replica.delete(left)
        reach("removal.files-deleted")
        await self._commits.apply(lambda transaction: transaction.forget_snapshot(path))
        reach("removal.recorded")


def _leave_references(path: str, name: str, why: str) -> None:
    # Too many references keep chunks for too long; too few would delete chunks that are needed (P5).
    log.warning(
        "the chunks of the removed snapshot %s stay in the bucket, because its index %s there cannot be read (%s); "
        "a new state directory counts the references anew",
        path,
        name,
        why,
    )
