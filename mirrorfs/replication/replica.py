"""The objects below `.cnt`: put and deleted so that the state always knows of every one that may be there."""

from __future__ import annotations

import hashlib

import crc32c
import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.journal.state import State
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.commits import StateCommits


class Replica:
    """The part of the bucket that equals the datastore's tree without its chunks."""

    def __init__(self, layout: BucketLayout, store: ObjectStore, state: State, commits: StateCommits) -> None:
        self.layout = layout
        self.store = store
        self._state = state
        self._commits = commits

    async def put(self, path: str, data: bytes) -> None:
        """Have the object of datastore path `path` equal `data`, confirmed; does nothing where it does.

        Raises:
            StoreError: the store refuses it for good.
        """
        checksum = crc32c.crc32c(data)
        known = self._state.view(lambda transaction: transaction.content(path))
        if known is not None and known.confirmed and (known.size, known.crc32c) == (len(data), checksum):
            return
        key = self.layout.content_key(path)
        there = known is not None and not known.confirmed and await holds(self.store, key, data)
        if not there:
            await self._commits.apply(lambda transaction: transaction.intend_contents([path]))
            await self.store.put(key, data)
        await self._commits.apply(lambda transaction: transaction.confirm_content(path, len(data), checksum))

    async def get(self, path: str) -> bytes:
        """Read the object of a datastore path. Raises ObjectMissing."""
        return await self.store.get(self.layout.content_key(path))

    async def delete(self, paths: list[str]) -> None:
        """Delete the objects of datastore paths; does nothing for those that are not known to be there."""
        known = self._state.view(lambda transaction: [path for path in paths if transaction.content(path)])
        if not known:
            return
        await self._commits.apply(lambda transaction: transaction.intend_contents(known))
        await self.store.delete([self.layout.content_key(path) for path in known])
        await self._commits.apply(lambda transaction: transaction.forget_contents(known))


async def holds(store: ObjectStore, key: str, data: bytes) -> bool:
    """Tell whether the object `key` is there with exactly this content, as far as the store's own checksums tell."""
    held = await store.head(key)
    if held is None or held.size != len(data):
        return False
    if held.crc32c is not None:
        return held.crc32c == crc32c.crc32c(data)
    digest = await trio.to_thread.run_sync(lambda: hashlib.md5(data, usedforsecurity=False).hexdigest())
    return held.etag.strip('"') == digest
