"""Reading what stands in the bucket for the mirror's own use: within the bounds of its kind, and parsed in a thread."""

from __future__ import annotations

import trio

from mirrorfs.datastore.content import Content
from mirrorfs.datastore.deletion import Deletion, parse_deletion
from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.errors import DatastoreError, contained
from mirrorfs.datastore.index import check_index_beginning, parse_index
from mirrorfs.datastore.limits import LONGEST_DELETION, LONGEST_INDEX, LONGEST_MANIFEST
from mirrorfs.datastore.manifest import Manifest, parse_manifest
from mirrorfs.objectstore.errors import ObjectMissing, ObjectTooLarge
from mirrorfs.objectstore.store import ObjectStore

UNUSABLE = (ObjectMissing, ObjectTooLarge, DatastoreError)
"""What is raised for an object that is not there, or is not what belongs there: a matter of that object alone."""


async def read_manifest(store: ObjectStore, key: str) -> Manifest:
    """Read a manifest object. Raises UNUSABLE, and StoreError."""
    data = await store.get(key, LONGEST_MANIFEST)
    return await trio.to_thread.run_sync(parse_manifest, data)


async def read_deletion(store: ObjectStore, key: str) -> Deletion:
    """Read the record of a deletion. Raises UNUSABLE, and StoreError."""
    data = await store.get(key, LONGEST_DELETION)
    return await trio.to_thread.run_sync(parse_deletion, data)


async def read_digests(store: ObjectStore, key: str, name: str, checksum: str, longest: int = LONGEST_INDEX) -> Digests:
    """Read the digests that the index `name` names, whose entries are to have this checksum (in hex).

    `longest` is how many bytes it may have. Raises UNUSABLE, and StoreError.
    """

    def check_beginning(beginning: bytes, length: int) -> None:
        found, _ = check_index_beginning(name, beginning, length)
        _compare(found, checksum)

    def parse() -> Digests:
        return digests_of(name, data, checksum)

    data = await store.get_content(key, longest, check_beginning=check_beginning)
    return await trio.to_thread.run_sync(parse)


def digests_of(name: str, data: Content, checksum: str) -> Digests:
    """Return the digests of an index that is to have this checksum. Raises DatastoreError."""
    index = parse_index(name, data)
    _compare(index.checksum, checksum)
    with contained(f"{name} takes more memory than there is"):
        return index.unique_digests()


def _compare(found: bytes, checksum: str) -> None:
    if found.hex() != checksum:
        raise DatastoreError("it is not the index that was published")
