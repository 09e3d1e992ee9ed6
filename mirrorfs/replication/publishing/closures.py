"""What a published snapshot needs, and what the datastore still has of it."""

from __future__ import annotations

from collections.abc import Mapping

import trio

from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.index import is_index_name
from mirrorfs.datastore.names import NAMESPACE_MARKER_NAME
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.stored import UNUSABLE, digests_of, read_digests
from mirrorfs.state.contents import ContentState


class Closures:
    """Tells of snapshots in the bucket which chunks they need, from wherever their indexes can be read."""

    def __init__(self, tree: Tree, bucket: Bucket) -> None:
        self._tree = tree
        self._bucket = bucket

    def has_chunk(self, digest: bytes) -> bool:
        """Tell whether the datastore has a file for the chunk. Blocks for the disk."""
        try:
            return self._tree.chunk_size(digest) is not None
        except OSError:
            return False

    def has_content(self, path: str) -> bool:
        """Tell whether the datastore has what the object of a path stands for. Blocks for the disk."""
        try:
            return self._tree.exists(path.removesuffix(f"/{NAMESPACE_MARKER_NAME}"))
        except OSError:
            return False

    def content_fault(self, known: ContentState) -> str | None:
        """Say why the datastore cannot give a content as it was confirmed, None if it can. Blocks for the disk."""
        if known.path.endswith(f"/{NAMESPACE_MARKER_NAME}"):
            return None
        try:
            data = self._tree.read_content(known.path, maximum_size=known.size)
        except OSError as error:
            return f"it cannot be read in the datastore: {error.strerror}"
        except DatastoreError as error:
            return f"it cannot be used as the datastore has it: {error}"
        if (len(data), calculate_crc32c(data)) != (known.size, known.crc32c):
            return "the datastore has another content than was confirmed"
        return None

    async def digests(self, path: str, files: Mapping[str, str]) -> Digests | None:
        """Return the chunks that the indexes among `files` (names with checksums in hex) need, None if one of them can
        be read nowhere. `path` is the snapshot's.

        Raises:
            StoreError: the store refuses to be read.
        """
        digests: list[Digests] = []
        for name, checksum in files.items():
            if not is_index_name(name):
                continue
            found = await trio.to_thread.run_sync(self._local_digests, f"{path}/{name}", name, checksum)
            if found is None:
                found = await self._stored_digests(f"{path}/{name}", name, checksum)
            if found is None:
                return None
            digests.append(found)
        return await trio.to_thread.run_sync(Digests.union, *digests)

    def _local_digests(self, path: str, name: str, checksum: str) -> Digests | None:
        try:
            return digests_of(name, self._tree.read_content(path), checksum)
        except (OSError, DatastoreError):
            return None

    async def _stored_digests(self, path: str, name: str, checksum: str) -> Digests | None:
        try:
            return await read_digests(self._bucket.store, self._bucket.layout.content_key(path), name, checksum)
        except UNUSABLE:
            return None
