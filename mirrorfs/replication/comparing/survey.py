"""What reconciling would find: the datastore against the state, told and not touched."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.replication.comparing.differences import Difference, Remedy, Report
from mirrorfs.replication.comparing.reconcile import Found, Reconciler
from mirrorfs.replication.publishing.chunks import ChunkMirror
from mirrorfs.replication.publishing.groups import GroupMirror, NamespaceMirror
from mirrorfs.replication.publishing.outlook import Forecast, Outlook
from mirrorfs.replication.publishing.publication import SnapshotPublication
from mirrorfs.replication.work.items import ChunkItem, Item, SubtreeItem

# So many are looked at in one visit to a thread.
_ITEMS_AT_ONCE = 100
_REMEDIES = {
    Outlook.SEND: Remedy.SEND,
    Outlook.COMPARE: Remedy.COMPARE,
    Outlook.REMOVE: Remedy.DELETE,
    Outlook.FAIL: Remedy.NONE,
}


class Survey:
    """Tells what is to be done, item by item, as of the moment when each is looked at.

    What would be done about an item is told by the part that would do it.
    """

    def __init__(
        self,
        layout: BucketLayout,
        reconciler: Reconciler,
        publication: SnapshotPublication,
        chunks: ChunkMirror,
        groups: GroupMirror,
        namespaces: NamespaceMirror,
    ) -> None:
        self._layout = layout
        self._reconciler = reconciler
        self._publication = publication
        self._chunks = chunks
        self._groups = groups
        self._namespaces = namespaces

    async def survey(self, report: Report) -> None:
        """Report each difference between the datastore and what the state says of the bucket."""
        await self._tell(report, await trio.to_thread.run_sync(self._reconciler.look_below, ""))
        for numbers in await trio.to_thread.run_sync(self._reconciler.chunk_directories):
            await self._tell(report, await trio.to_thread.run_sync(self._reconciler.differing_chunks, numbers))

    async def _tell(self, report: Report, found: Found) -> None:
        for difference in self._unreadable(found):
            await report(difference)
        items = iter(found.items)
        while batch := list(islice(items, _ITEMS_AT_ONCE)):
            for difference in await trio.to_thread.run_sync(self._all_differences, batch):
                await report(difference)

    def _unreadable(self, found: Found) -> Iterator[Difference]:
        for directory, reason in found.unreadable.items():
            yield Difference(self._layout.content_key(f"{directory}/"), reason, Remedy.NONE)

    def _all_differences(self, items: Iterable[Item]) -> list[Difference]:
        return [difference for item in items for difference in self.differences(item)]

    def differences(self, item: Item) -> Iterator[Difference]:
        """Yield what is to be done about an item; of a directory, about each item in it. Blocks for the disk."""
        match item:
            case ChunkItem(digest=digest):
                yield from self._difference(self._layout.chunk_key(digest), self._chunks.outlook(digest))
            case SnapshotId():
                key = f"{self._layout.content_key(item.path)}/"
                yield from self._difference(key, self._publication.outlook(item))
            case GroupId():
                for path, forecast in self._groups.outlook(item).items():
                    yield from self._difference(self._layout.content_key(path), forecast)
            case NamespaceId():
                if item.parent is not None:
                    yield from self._difference(self._layout.namespace_key(item), self._namespaces.outlook(item))
            case SubtreeItem(path=path):
                found = self._reconciler.look_at_subtree(path)
                yield from self._unreadable(found)
                for inner in found.items:
                    yield from self.differences(inner)

    def _difference(self, key: str, forecast: Forecast | None) -> Iterator[Difference]:
        if forecast is not None:
            yield Difference(key, forecast.why, _REMEDIES[forecast.outlook])
