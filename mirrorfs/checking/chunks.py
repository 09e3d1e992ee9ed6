"""What the object of a chunk has to pass before anybody relies on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from mirrorfs.checking.reading import Limit, ObjectReader, read_checked
from mirrorfs.datastore.blob import check_chunk, check_encryption
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.limits import LONGEST_CHUNK

CHUNK_LIMIT = Limit(LONGEST_CHUNK, is_checked=True)


def check_chunk_for(data: Content, digest: bytes, *, uses: Iterable[bool]) -> Content:
    """Return a chunk's stored bytes if they are sound: its CRC, and the SHA-256 of what is not encrypted.

    `uses` tells for each kind of backup that needs it whether its chunks are encrypted. Raises BlobError.
    """
    check_chunk(data, digest, content=True)
    for is_encrypted in uses:
        check_encryption(data, digest, is_encrypted=is_encrypted)
    return data


async def read_chunk(
    reader: ObjectReader,
    key: str,
    digest: bytes,
    *,
    uses: Iterable[bool] = (),
    taken: Callable[[int], None] = lambda _: None,
) -> Content:
    """Read the object of a chunk and check it, see `check_chunk_for`; `taken` hears of each object that has come.

    Raises DatastoreError, ObjectTooLarge, ObjectMissing and other StoreErrors.
    """
    kinds = tuple(uses)
    return await read_checked(reader, key, CHUNK_LIMIT, lambda data: check_chunk_for(data, digest, uses=kinds), taken)
