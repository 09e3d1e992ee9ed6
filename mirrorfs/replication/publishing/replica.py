"""The objects below `.cnt`: put and deleted so that the state always knows of every one that may be there."""

from __future__ import annotations

import logging

import trio

from mirrorfs.datastore.content import Content, are_equal
from mirrorfs.datastore.manifest import Manifest
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.objectstore.checksums import calculate_crc32c, calculate_md5
from mirrorfs.objectstore.errors import CopyUnsupported, ObjectMissing, ObjectTooLarge
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.publishing.outlook import GONE, NOT_MIRRORED, Forecast, Outlook
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.stored import read_manifest
from mirrorfs.state.contents import ContentState
from mirrorfs.steps import reach

log = logging.getLogger(__name__)


class Replica:
    """The part of the bucket that equals the datastore's tree without its chunks."""

    def __init__(self, bucket: Bucket, state: CommittedState, ownership: Ownership) -> None:
        self._bucket = bucket
        self._state = state
        self._ownership = ownership
        self._distrusted: set[str] = set()

    async def put(self, path: str, data: Content, *, same_as: str | None = None) -> None:
        """Have the object of datastore path `path` equal `data`, confirmed; does nothing where it does.

        `same_as` is a path whose object may have the same content: then the store copies it by itself, if it can.

        Raises:
            StoreError: the store refuses it for good.
        """
        if self.is_confirmed(path, data):
            return
        known = self._state.view(lambda transaction: transaction.contents.get(path))
        key = self._bucket.layout.content_key(path)
        is_doubted = known is not None and not known.confirmed and path not in self._distrusted
        there = is_doubted and await holds(self._bucket.store, key, data)
        if not there:
            await self._state.apply(lambda transaction: transaction.contents.intend([path]))
            reach("content.before-put")
            if not await self._copy(same_as, key, data):
                await self._bucket.store.put(key, data)
            reach("content.after-put")
        await self._state.apply(
            lambda transaction: transaction.contents.confirm(path, len(data), calculate_crc32c(data))
        )
        self._distrusted.discard(path)
        reach("content.recorded")

    async def distrust(self, known: ContentState) -> bool:
        """Say that an object was read and is damaged or gone, if it is still as `known`; tells whether it is.

        From then on it counts as not confirmed, and `put` puts it whatever the store tells of it.
        """
        if not await self._state.apply(lambda transaction: transaction.contents.doubt_if_still(known)):
            return False
        self._distrusted.add(known.path)
        return True

    async def _copy(self, source: str | None, key: str, data: Content) -> bool:
        if source is None or not self._bucket.store.capabilities.copies or not self.is_confirmed(source, data):
            return False
        try:
            await self._bucket.store.copy(
                self._bucket.layout.content_key(source), key, size=len(data), crc32c=calculate_crc32c(data)
            )
        except CopyUnsupported as error:
            log.debug("%s", error)
            return False
        except ObjectMissing as error:
            log.debug("%s", error)
            # Whoever deletes it notes that before.
            if self.is_confirmed(source, data):
                await self._ownership.doubt(f"the object of {source} is not in the bucket, though it was confirmed")
            return False
        return True

    def is_confirmed(self, path: str, data: Content | None = None) -> bool:
        """Tell whether the object of a datastore path is confirmed, and, with `data`, that it equals that."""
        known = self._state.view(lambda transaction: transaction.contents.get(path))
        if known is None or not known.confirmed:
            return False
        return data is None or (known.size, known.crc32c) == (len(data), calculate_crc32c(data))

    async def published_manifest(self, snapshot: SnapshotId) -> Manifest:
        """Read the manifest object of a snapshot. Raises UNUSABLE."""
        return await read_manifest(self._bucket.store, self._bucket.layout.content_key(snapshot.manifest_path))

    def outlook(self, path: str, data: bytes | None) -> Forecast | None:
        """Tell what `put` would do, or, without `data`, what `delete` would do; None if nothing."""
        known = self._state.view(lambda transaction: transaction.contents.get(path))
        if data is None:
            return None if known is None else Forecast(Outlook.REMOVE, GONE)
        if self.is_confirmed(path, data):
            return None
        is_doubted = known is not None and not known.confirmed
        return Forecast(Outlook.COMPARE if is_doubted else Outlook.SEND, NOT_MIRRORED)

    async def delete(self, paths: list[str]) -> None:
        """Delete the objects of datastore paths; does nothing for those that are not known to be there."""
        known = self._state.view(lambda transaction: [path for path in paths if transaction.contents.get(path)])
        if not known:
            return
        await self._state.apply(lambda transaction: transaction.contents.intend(known))
        reach("content.before-delete")
        await self._bucket.store.delete([self._bucket.layout.content_key(path) for path in known])
        reach("content.after-delete")
        await self._state.apply(lambda transaction: transaction.contents.forget(known))
        reach("content.forgotten")


async def holds(store: ObjectStore, key: str, data: Content) -> bool:
    """Tell whether the object `key` is there with exactly this content.

    The store is believed only what it was seen to calculate itself; else the object is read and compared.
    """
    held = await store.head(key)
    if held is None or held.size != len(data):
        return False
    if store.capabilities.rejects_wrong_crc32c and held.crc32c is not None:
        return held.crc32c == calculate_crc32c(data)
    if store.capabilities.etag_is_md5:
        digest = await trio.to_thread.run_sync(calculate_md5, data)
        return held.etag.strip('"') == digest.hex()
    try:
        return are_equal(await store.get_content(key, len(data)), data)
    except (ObjectMissing, ObjectTooLarge):
        return False
