"""The bucket as it is: one thing to hand to whoever reads, writes or deletes in it."""

from __future__ import annotations

from dataclasses import dataclass

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.objectstore.store import ObjectStore


@dataclass(frozen=True, slots=True)
class Bucket:
    """The mirror's part of a bucket: the keys of what it holds, and the store that holds it."""

    layout: BucketLayout
    store: ObjectStore
