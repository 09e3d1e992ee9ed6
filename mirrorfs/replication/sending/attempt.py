"""One chunk in one go, in the thread that asks for it; nothing is repeated, and what went wrong is not told."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mirrorfs.datastore.blob import check_chunk
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.at_once import store_at_once
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

# After that no further chunk of a batch is begun: others may have a hand free, and an end is not to wait.
_BATCH_SECONDS = 0.1
_ASKS_FOR_TOO_MUCH = (MemoryError, RecursionError, OverflowError)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of a chunk. `size` in bytes and `crc32c` are of what the store was seen to hold, `size` 0 if it was
    not. `began` tells whether a PUT was begun, of which then nothing else is known.
    """

    began: bool
    size: int = 0
    crc32c: int = 0

    @property
    def is_stored(self) -> bool:
        """Whether the store holds the chunk."""
        return self.size > 0


NOT_BEGUN = Attempt(began=False)
LOST = Attempt(began=True)


@dataclass(frozen=True, slots=True)
class Way:
    """From a datastore to its mirror in a bucket. For several threads at once."""

    tree: Tree
    layout: BucketLayout
    client: S3Client

    def send_some(self, digests: Sequence[bytes], capabilities: StoreCapabilities) -> list[Attempt]:
        """Send chunks one after the other, at least one, as many as there is time for."""
        attempts: list[Attempt] = []
        until = time.monotonic() + _BATCH_SECONDS
        for digest in digests:
            attempts.append(self._send(digest, capabilities))
            if time.monotonic() >= until:
                break
        return attempts

    def _send(self, digest: bytes, capabilities: StoreCapabilities) -> Attempt:
        try:
            data = self.tree.read_chunk_unless_quarantined(digest)
            if data is None:
                return NOT_BEGUN
            # Also the content: a store would confirm wrong content under a good name.
            check_chunk(data, digest, content=True)
        except (DatastoreError, OSError, *_ASKS_FOR_TOO_MUCH) as error:
            log.debug("%s: %s", digest.hex(), error)
            return NOT_BEGUN
        return self._put(digest, data, capabilities)

    def _put(self, digest: bytes, data: bytes, capabilities: StoreCapabilities) -> Attempt:
        key, checksum = self.layout.chunk_key(digest), calculate_crc32c(data)
        reach("chunk.before-put")
        try:
            if not store_at_once(self.client, capabilities, key, data, checksum, reach_step_of_object):
                return LOST
        except (StoreError, *_ASKS_FOR_TOO_MUCH) as error:
            log.debug("%s", error)
            return LOST
        reach("chunk.after-put")
        return Attempt(began=True, size=len(data), crc32c=checksum)


def reach_step_of_object(step: str, key: str) -> None:
    """Observe an ObjectStore: its steps are named ones (`mirrorfs.steps`)."""
    del key
    match step:
        case "before-put":
            reach("object.before-put")
        case "after-put":
            reach("object.after-put")
        case "before-delete":
            reach("object.before-delete")
        case "after-delete":
            reach("object.after-delete")
