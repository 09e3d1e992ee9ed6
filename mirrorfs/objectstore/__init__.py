"""S3-compatible object stores: put, copy, confirm, get, list, delete, retain; checksums, quirks, waiting out failures.

The only place that imports boto3.
"""

from __future__ import annotations

from mirrorfs.objectstore.capabilities import UNPROVEN, Confirmation, LockMode, ObjectLockRule, StoreCapabilities
from mirrorfs.objectstore.client import S3Client, StoredObject, StoredVersion
from mirrorfs.objectstore.errors import (
    ChecksumRefused,
    ConfirmationFailed,
    CopyUnsupported,
    ObjectLocked,
    ObjectMissing,
    StoreError,
    StoreReason,
    StoreRejected,
    StoreUnavailable,
)
from mirrorfs.objectstore.retry import AT_ONCE, FOR_EVER, Condition, Patience
from mirrorfs.objectstore.store import ObjectStore, Observer, open_store
from mirrorfs.objectstore.url import MalformedURL, StoreAddress, StoreOptions, parse_url

__all__ = [
    "AT_ONCE",
    "FOR_EVER",
    "UNPROVEN",
    "ChecksumRefused",
    "Condition",
    "Confirmation",
    "ConfirmationFailed",
    "CopyUnsupported",
    "LockMode",
    "MalformedURL",
    "ObjectLockRule",
    "ObjectLocked",
    "ObjectMissing",
    "ObjectStore",
    "Observer",
    "Patience",
    "S3Client",
    "StoreAddress",
    "StoreCapabilities",
    "StoreError",
    "StoreOptions",
    "StoreReason",
    "StoreRejected",
    "StoreUnavailable",
    "StoredObject",
    "StoredVersion",
    "open_store",
    "parse_url",
]
