"""Taking into a new state what an earlier one, lost or deleted, had put into the bucket."""

from __future__ import annotations

import logging
import time
from contextlib import aclosing

from mirrorfs.datastore.names import SnapshotFileName, SnapshotId, classify
from mirrorfs.replication.publishing.references import References
from mirrorfs.replication.retention.grace import Grace
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.stored import UNUSABLE, read_manifest
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_CHUNKS_AT_ONCE = 10_000
_CONTENTS_AT_ONCE = 10_000


class Adoption:
    """Reads the bucket once, when a state begins.

    Objects are noted as there but unconfirmed: whoever handles them compares checksums before sending anything again.
    Published snapshots, and deleted ones that are kept, get their references counted, so that no chunk that they need
    is deleted (P5).
    """

    def __init__(self, bucket: Bucket, state: CommittedState, references: References) -> None:
        self._bucket = bucket
        self._state = state
        self._references = references

    async def adopt(self, grace: Grace) -> None:
        """Take the bucket's content in, unless that has been done; can be repeated after a crash in the middle."""
        if self._state.view(lambda transaction: transaction.progress.adopted()):
            return
        reach("adoption.begun")
        await self._adopt_chunks()
        for snapshot in await self._adopt_contents():
            await self.adopt_snapshot(snapshot)
        await grace.adopt()
        reach("adoption.before-end")
        await self._state.apply(lambda transaction: transaction.progress.set_adopted())
        reach("adoption.ended")

    async def _adopt_chunks(self) -> None:
        digests: list[bytes] = []
        async with aclosing(self._bucket.store.list(self._bucket.layout.chunks_prefix)) as objects:
            async for stored in objects:
                digest = self._bucket.layout.chunk_digest(stored.key)
                if digest is not None:
                    digests.append(digest)
                if len(digests) == _CHUNKS_AT_ONCE:
                    await self._note_chunks(digests)
                    digests = []
        await self._note_chunks(digests)

    async def _note_chunks(self, digests: list[bytes]) -> None:
        await self._state.apply(lambda transaction: transaction.chunks.intend(digests))
        reach("adoption.chunks-recorded")

    async def _adopt_contents(self) -> list[SnapshotId]:
        snapshots: list[SnapshotId] = []
        paths: list[str] = []
        count = 0
        async with aclosing(self._bucket.store.list(self._bucket.layout.content_prefix)) as objects:
            async for stored in objects:
                path = self._bucket.layout.content_path(stored.key)
                if path is None:
                    continue
                count += 1
                paths.append(path)
                name = classify(path.encode())
                if isinstance(name, SnapshotFileName) and name.is_manifest:
                    snapshots.append(name.snapshot)
                if len(paths) == _CONTENTS_AT_ONCE:
                    await self._note_contents(paths)
                    paths = []
        await self._note_contents(paths)
        if count:
            log.info("found %d objects of an earlier state of this mirror below .cnt", count)
        return snapshots

    async def _note_contents(self, paths: list[str]) -> None:
        await self._state.apply(
            lambda transaction: transaction.contents.intend(
                path for path in paths if transaction.contents.get(path) is None
            )
        )
        reach("adoption.contents-recorded")

    async def adopt_snapshot(self, snapshot: SnapshotId) -> None:
        """Count the references of a published snapshot that the state does not know."""
        path = snapshot.path
        if self._state.view(lambda transaction: transaction.snapshots.get(path)) is not None:
            return
        try:
            manifest = await read_manifest(self._bucket.store, self._bucket.layout.content_key(snapshot.manifest_path))
        except UNUSABLE as error:
            log.warning("the manifest of %s in the bucket cannot be used: %s", path, error)
            return
        files = manifest.checksums
        holder = ReferenceHolder(path)
        longest = {file.filename: file.longest for file in manifest.files}
        digests = await self._references.digests(holder, files, longest)
        if digests is None:
            # Without a record it is removed and, if the datastore has it, published anew.
            log.warning("the published snapshot %s is incomplete in the bucket", path)
            return
        left = await self._references.count_all_but_last(holder, files, digests)
        adopted = SnapshotState(SnapshotPhase.ADOPTED, files, time.time())
        await self._state.apply(lambda transaction: transaction.commit_snapshot(path, adopted, left))
        reach("adoption.snapshot-recorded")
