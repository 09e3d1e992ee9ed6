"""Which chunks a snapshot in the bucket references, by the indexes as they stand there."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.index import parse_index
from mirrorfs.objectstore.errors import ObjectMissing

log = logging.getLogger(__name__)

_INDEX_SUFFIXES = (".fidx", ".didx")


async def referenced_digests(
    path: str, files: Mapping[str, str], read: Callable[[str], Awaitable[bytes]]
) -> set[bytes] | None:
    """Return the digests that the indexes among `files` (names with checksums in hex) name.

    `read` gives the content of a file of the snapshot `path` as it stands in the bucket, since the datastore may hold
    others or none by now. None, with a line in the log, where one of them is missing there or is not the one that was
    published: too many references keep chunks for too long; too few would delete chunks that are needed (P5).
    """
    digests: set[bytes] = set()
    for name, checksum in files.items():
        if not name.endswith(_INDEX_SUFFIXES):
            continue
        try:
            index = parse_index(name, await read(name))
        except (ObjectMissing, DatastoreError) as error:
            _say_unknown(path, name, str(error))
            return None
        if index.checksum.hex() != checksum:
            _say_unknown(path, name, "it is not the index that was published")
            return None
        digests |= index.unique_digests()
    return digests


def _say_unknown(path: str, name: str, why: str) -> None:
    log.warning(
        "the chunks of %s cannot be told, because its index %s in the bucket cannot be read (%s); those of a removed "
        "snapshot stay there until a new state directory counts the references anew",
        path,
        name,
        why,
    )
