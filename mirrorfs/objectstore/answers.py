"""What a store tells of its objects, as values: examined, so that each field is what it says or None."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from mirrorfs.objectstore.capabilities import LockMode

MD5_ETAG = re.compile("[0-9a-f]{32}")
"""What an ETag looks like that may be an MD5; that of an object which was put in parts does not."""

CheckBeginning = Callable[[bytes, int], None]
"""Given the first bytes of an object (4,096 where there are so many) and its length, before the rest is read; raises
what tells that the rest is not worth reading.
"""


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object in the bucket: size in bytes, ETag without quotes, CRC32C of all bytes where the store tells.

    `modified_at` is when the store says that it was put, and `seen_at` when it said so, both in Unix time by its own
    clock; only a HEAD asks for that. The ETag is empty where the store gives none, or where it says that it is none of
    the content (SSE-KMS).
    """

    key: str
    size: int
    etag: str
    crc32c: int | None
    modified_at: float | None = field(default=None, compare=False)
    seen_at: float | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One of the versions of an object, or the mark that its deletion has left (size 0 and no ETag).

    `modified_at` is in Unix time, with many stores in whole seconds: versions of one key may share it, and then only
    `is_latest` tells which came last. A Ceph moves it when it changes the retention of a version (seen with 16.2).
    `version_id` is "null" for what was put while the bucket was not versioned.
    """

    key: str
    version_id: str
    size: int
    etag: str
    modified_at: float
    is_latest: bool
    is_delete_marker: bool


@dataclass(frozen=True, slots=True)
class VersionMarker:
    """Where a listing of versions goes on; without a version, behind all those of the key."""

    key: str
    version_id: str | None


@dataclass(frozen=True, slots=True)
class VersionPage:
    """A part of a listing of versions, in no order that could be relied upon, and where it goes on (None: it ends)."""

    versions: tuple[StoredVersion, ...]
    next_marker: VersionMarker | None


@dataclass(frozen=True, slots=True)
class Retention:
    """Until when, in Unix time, and how strictly a store keeps a version of an object."""

    mode: LockMode
    until: float


@dataclass(frozen=True, slots=True)
class PutReceipt:
    """What the store answered to a PUT, or to a copy.

    `began_at` is when the PUT began by the store's own clock, in Unix time and up to 1 s early; None where the answer
    has no date.
    """

    etag: str
    crc32c: int | None
    began_at: float | None = None


@dataclass(frozen=True, slots=True)
class Precondition:
    """What has to stand below a key for a PUT to be done: an object of this ETag, or none at all.

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
    """

    etag: str | None

    @property
    def parameters(self) -> dict[str, str]:
        """As boto3 names it."""
        return {"IfNoneMatch": "*"} if self.etag is None else {"IfMatch": f'"{self.etag}"'}


@dataclass(frozen=True, slots=True)
class ListPage:
    """A part of a listing, in no order that could be relied upon, and the token of the next part (None at the end)."""

    objects: tuple[StoredObject, ...]
    next_token: str | None
