"""Which checksums a store honours, and the way of confirming an upload that follows from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

LockMode = Literal["GOVERNANCE", "COMPLIANCE"]
"""Whether somebody with a special permission may end a retention early, or nobody (S3 Object Lock)."""


class Confirmation(Enum):
    """How it is made sure that the store holds what was sent, in the order of preference.

    The answer to a PUT alone proves nothing: it tells what has arrived, not what is kept. So all but the last look at
    the object by a HEAD; where that does not show what was sent, the object is read and compared.
    """

    HEAD_CHECKSUM = "head-checksum"
    """The store refuses a body that does not fit its CRC32C, and a HEAD tells size and CRC32C."""
    ETAG_MD5 = "etag-md5"
    """A HEAD tells size and ETag, and the ETag is the MD5 that the store calculated."""
    PUT_CHECKSUM = "put-checksum"
    """Like HEAD_CHECKSUM, but the CRC32C is only told by the PUT; a HEAD tells the size and the ETag of that PUT."""
    READ_BACK = "read-back"
    """The object is read and compared."""


@dataclass(frozen=True, slots=True)
class ObjectLockRule:
    """What a bucket with Object Lock does to each new object; both None where it leaves that to whoever puts it.

    `period` is in seconds. https://docs.aws.amazon.com/AmazonS3/latest/API/API_DefaultRetention.html
    """

    mode: LockMode | None
    period: float | None


@dataclass(frozen=True, slots=True)
class StoreCapabilities:
    """What `ObjectStore.probe` has seen; nothing is taken on trust.

    `copies`: the store copies an object by itself. `conditional_puts`: it puts no object where another stands, if it is
    told to. `versioned`: a DELETE or PUT leaves the earlier version of an object
    behind. `object_lock`: None where the bucket has no Object Lock, or where it may not be asked for.
    """

    rejects_wrong_crc32c: bool
    rejects_wrong_md5: bool
    put_returns_crc32c: bool
    head_returns_crc32c: bool
    etag_is_md5: bool
    copies: bool = False
    conditional_puts: bool = False
    versioned: bool = False
    object_lock: ObjectLockRule | None = None

    @property
    def confirmation(self) -> Confirmation:
        """The first way that proves something.

        A checksum that the store returns without ever having compared it is an echo, and proves nothing.
        """
        if self.rejects_wrong_crc32c and self.head_returns_crc32c:
            return Confirmation.HEAD_CHECKSUM
        if self.etag_is_md5:
            return Confirmation.ETAG_MD5
        if self.rejects_wrong_crc32c and self.put_returns_crc32c:
            return Confirmation.PUT_CHECKSUM
        return Confirmation.READ_BACK

    @property
    def needs_md5(self) -> bool:
        """Whether the MD5 of what is put proves or protects anything that its CRC32C does not; it costs far more."""
        return not self.rejects_wrong_crc32c or self.confirmation is Confirmation.ETAG_MD5


UNPROVEN = StoreCapabilities(
    rejects_wrong_crc32c=False,
    rejects_wrong_md5=False,
    put_returns_crc32c=False,
    head_returns_crc32c=False,
    etag_is_md5=False,
)
"""Of a store that was not probed yet."""
