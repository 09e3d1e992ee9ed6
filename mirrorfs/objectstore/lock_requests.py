"""The requests about versions, Object Lock and retention."""

from __future__ import annotations

import math
import xml.etree.ElementTree as ElementTree
from datetime import UTC, datetime
from typing import cast

from mirrorfs.objectstore.answers import Retention
from mirrorfs.objectstore.capabilities import LockMode, ObjectLockRule
from mirrorfs.objectstore.documents import moment, number, text
from mirrorfs.objectstore.errors import StoreRejected
from mirrorfs.objectstore.listing_requests import ListingRequests

# AWS says the first of an object that has no retention, Ceph and SeaweedFS the second; all three say the third in a
# bucket without Object Lock.
_UNRETAINED_CODES = frozenset(
    {"NoSuchObjectLockConfiguration", "ObjectLockConfigurationNotFoundError", "InvalidRequest"}
)
_MODES = ("GOVERNANCE", "COMPLIANCE")


class LockRequests(ListingRequests):
    """See `S3Client`."""

    def is_versioned(self) -> bool:
        """Whether the bucket keeps the earlier versions of its objects."""
        with self._connection.requesting("ask for the versioning of") as request:
            request.boto.get_bucket_versioning(Bucket=self.bucket)
            root, _ = request.document()
        return text(root, "Status") == "Enabled"

    def object_lock_rule(self) -> ObjectLockRule | None:
        """What Object Lock does in the bucket, None where it is not enabled; a refusal mostly means that, too."""
        with self._connection.requesting("ask for the Object Lock of") as request:
            request.boto.get_object_lock_configuration(Bucket=self.bucket)
            root, _ = request.document()
        if text(root, "ObjectLockEnabled") != "Enabled":
            return None
        default = root.find("Rule/DefaultRetention")
        if default is None:
            return ObjectLockRule(None, None)
        days = (number(text(default, "Days")) or 0) + 365 * (number(text(default, "Years")) or 0)
        return ObjectLockRule(_mode(default), days * 86400.0 if days else None)

    def get_retention(self, key: str) -> Retention | None:
        """That of the latest version of an object, which may be over; None where it has none.

        Raises ObjectMissing.
        """
        try:
            with self._connection.requesting(f"ask for the retention of {key} in", key) as request:
                request.boto.get_object_retention(Bucket=self.bucket, Key=key)
                root, _ = request.document()
        except StoreRejected as error:
            if error.code in _UNRETAINED_CODES:
                return None
            raise
        mode, until = _mode(root), moment(text(root, "RetainUntilDate"))
        return None if mode is None or until is None else Retention(mode, until)

    def put_retention(self, key: str, retention: Retention) -> None:
        """Has the store keep the latest version of an object until then, or up to a second longer.

        A store refuses what would end an earlier retention sooner, mostly as AccessDenied. Raises ObjectMissing,
        ObjectLocked, and StoreRejected where the bucket has no Object Lock.
        """
        until = datetime.fromtimestamp(math.ceil(retention.until), UTC)
        with self._connection.requesting(f"retain {key} in", key) as request:
            request.boto.put_object_retention(
                Bucket=self.bucket, Key=key, Retention={"Mode": retention.mode, "RetainUntilDate": until}
            )
            request.answer()


def _mode(element: ElementTree.Element) -> LockMode | None:
    mode = text(element, "Mode").upper()
    return cast(LockMode, mode) if mode in _MODES else None
