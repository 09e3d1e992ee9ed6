"""What reconciling would find: the datastore against the state, told and not touched."""

from __future__ import annotations

import crc32c
import trio

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import GROUP_FILE_NAMES, GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.replication.comparing.differences import Difference, Remedy, Report
from mirrorfs.replication.comparing.reconcile import Found, Reconciler
from mirrorfs.replication.publishing.groups import has_snapshots
from mirrorfs.replication.publishing.publication import Outlook, SnapshotPublication
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import ChunkItem, Item

_NOT_MIRRORED = "the datastore has it, and the bucket is not known to have the same"
_LEFT = "the datastore has it no more"
_OUTLOOKS = {
    Outlook.PUBLISH: Remedy.SEND,
    Outlook.COMPARE: Remedy.COMPARE,
    Outlook.REMOVE: Remedy.DELETE,
    Outlook.FAIL: Remedy.NONE,
}


class Survey:
    """Tells what is to be done, item by item, as of the moment when each is looked at."""

    def __init__(
        self,
        tree: Tree,
        layout: BucketLayout,
        state: CommittedState,
        reconciler: Reconciler,
        publication: SnapshotPublication,
    ) -> None:
        self._tree = tree
        self._layout = layout
        self._state = state
        self._reconciler = reconciler
        self._publication = publication

    async def survey(self, report: Report) -> None:
        """Report each difference between the datastore and what the state says of the bucket."""
        await self._tell(report, await trio.to_thread.run_sync(self._reconciler.look_below, ""))
        for numbers in await trio.to_thread.run_sync(self._reconciler.chunk_directories):
            await self._tell(report, await trio.to_thread.run_sync(self._reconciler.differing_chunks, numbers))

    async def _tell(self, report: Report, found: Found) -> None:
        for directory, reason in found.unreadable.items():
            await report(Difference(self._layout.content_key(f"{directory}/"), reason, Remedy.NONE))
        for item in found.items:
            for difference in await trio.to_thread.run_sync(self._differences, item):
                await report(difference)

    def _differences(self, item: Item) -> list[Difference]:
        match item:
            case ChunkItem(digest=digest):
                difference = self._of_chunk(digest)
                return [] if difference is None else [difference]
            case SnapshotId():
                return self._of_snapshot(item)
            case GroupId():
                return [
                    difference
                    for name in GROUP_FILE_NAMES
                    if (difference := self._of_group_file(item, f"{item.path}/{name}")) is not None
                ]
            case NamespaceId():
                return self._of_namespace(item)
        return []

    def _of_chunk(self, digest: bytes) -> Difference | None:
        key = self._layout.chunk_key(digest)
        try:
            file = self._tree.chunk(digest)
        except OSError as error:
            return Difference(key, f"it cannot be read: {error.strerror}", Remedy.NONE)
        known = self._state.view(lambda transaction: transaction.chunks.get(digest))
        if file.size is None:
            may_go = known is not None and not known.references and not file.is_quarantined
            return Difference(key, f"{_LEFT}, and no snapshot needs it", Remedy.DELETE) if may_go else None
        if known is None:
            return Difference(key, _NOT_MIRRORED, Remedy.SEND)
        if not known.confirmed:
            return Difference(key, _NOT_MIRRORED, Remedy.COMPARE)
        if known.size != file.size:
            return Difference(
                key, f"the datastore has {file.size} bytes of it, the bucket has {known.size}", Remedy.SEND
            )
        return None

    def _of_snapshot(self, snapshot: SnapshotId) -> list[Difference]:
        outlook = self._publication.outlook(snapshot)
        if outlook is None:
            return []
        key = f"{self._layout.content_key(snapshot.path)}/"
        kind, why = outlook
        return [Difference(key, why, _OUTLOOKS[kind])]

    def _of_group_file(self, group: GroupId, path: str) -> Difference | None:
        key = self._layout.content_key(path)
        stored, is_wanted = self._state.view(
            lambda transaction: (transaction.contents.get(path), has_snapshots(transaction, group))
        )
        try:
            data = self._tree.read(path) if is_wanted else None
        except FileNotFoundError:
            data = None
        except (DatastoreError, OSError) as error:
            return Difference(key, f"it cannot be read: {error}", Remedy.NONE)
        if data is None:
            return None if stored is None else Difference(key, _LEFT, Remedy.DELETE)
        if stored is None:
            return Difference(key, _NOT_MIRRORED, Remedy.SEND)
        if stored.confirmed and (stored.size, stored.crc32c) == (len(data), crc32c.crc32c(data)):
            return None
        return Difference(key, _NOT_MIRRORED, Remedy.SEND if stored.confirmed else Remedy.COMPARE)

    def _of_namespace(self, namespace: NamespaceId) -> list[Difference]:
        if namespace.parent is None:
            return []
        key = self._layout.namespace_key(namespace)
        path = key.removeprefix(self._layout.content_prefix)
        stored = self._state.view(lambda transaction: transaction.contents.get(path))
        try:
            is_here = self._tree.exists(namespace.path)
        except OSError as error:
            return [Difference(key, f"it cannot be read: {error.strerror}", Remedy.NONE)]
        if not is_here:
            return [] if stored is None else [Difference(key, _LEFT, Remedy.DELETE)]
        if stored is not None and stored.confirmed:
            return []
        return [Difference(key, _NOT_MIRRORED, Remedy.SEND if stored is None else Remedy.COMPARE)]
