"""S3-compatible object stores: put, confirm, get, list, delete; checksums, store quirks, and waiting out failures.

The only place that imports boto3.
"""

from __future__ import annotations

from mirrorfs.objectstore.capabilities import UNPROVEN, Confirmation, StoreCapabilities
from mirrorfs.objectstore.client import S3Client, StoredObject
from mirrorfs.objectstore.errors import (
    ChecksumRefused,
    ConfirmationFailed,
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
    "MalformedURL",
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
    "open_store",
    "parse_url",
]
