"""What the uploader process is told by the process that starts it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import Any

from mirrorfs.objectstore.rate_schedule import RateLimits
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.output import LogFormat
from mirrorfs.replication.priority import DEFAULT_NICE, DiskPriority

DEFAULT_PARALLEL = 8
MOST_WORKERS = 16
# Each has its memory, and few lines carry what four processors send.
_MOST_DEFAULT_WORKERS = 4
DEFAULT_RETRY_CEILING = 60.0
DEFAULT_VERIFY_PERCENT = 1.0
DEFAULT_UNSEEN_AFTER = 7 * 86400.0
BEGIN_AGAIN = 75
"""The exit code of an uploader that asks to be started again, as it has found its state to be older than the bucket."""


@dataclass(frozen=True, slots=True)
class RetentionSettings:
    """How what leaves the datastore leaves the bucket.

    `delete_after`: seconds for which a removed snapshot stays restorable. `max_delete_fraction`: the share of the
    snapshots that may go in a day without an administrator's approval, None for all. `lock_for`: seconds for which
    objects are locked where the bucket has Object Lock, None for the bucket's own default. `unseen_after`: seconds
    after which what was not seen to go, and is held therefore, goes by itself; 0 holds nothing for that.
    """

    delete_after: float = 0.0
    max_delete_fraction: float | None = None
    lock_for: float | None = None
    unseen_after: float = DEFAULT_UNSEEN_AFTER


@dataclass(frozen=True, slots=True)
class UploaderSettings:
    """One line of JSON on the uploader's standard input. Holds no secret: credentials come from boto3's usual chain.

    `root_descriptor` is the backing directory, opened before the mount covered it and inherited; `retry_ceiling` is the
    longest wait between two tries, in seconds; `journal_sequence` is the newest that the journal had given when the
    mount opened it; `workers` is how many processes send chunks, 1: the uploader itself; `nice` and `disk_priority` (a
    value of DiskPriority) say how far all of them go after other processes; `verify_percent_per_day` of what the bucket
    holds is read again and checked each day; `log_format` is a value of LogFormat.
    """

    datastore: str
    state_directory: str
    root_descriptor: int
    bucket: str
    prefix: str
    store: StoreOptions = field(default_factory=StoreOptions)
    parallel: int = DEFAULT_PARALLEL
    workers: int = 1
    retry_ceiling: float = DEFAULT_RETRY_CEILING
    take_over: bool = False
    allow_removals: bool = False
    journal_sequence: int = 0
    nice: int = DEFAULT_NICE
    disk_priority: str = DiskPriority.LOW.value
    verbose: bool = False
    verify_percent_per_day: float = DEFAULT_VERIFY_PERCENT
    log_format: str = LogFormat.TEXT.value
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    limits: RateLimits = field(default_factory=RateLimits)

    def encode(self) -> bytes:
        """Write as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> UploaderSettings:
        """Read what `encode` wrote."""
        return cls.from_json(json.loads(line))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> UploaderSettings:
        """Make settings of what `dataclasses.asdict` gave."""
        parts = {
            "store": StoreOptions(**value["store"]),
            "retention": RetentionSettings(**value["retention"]),
            "limits": RateLimits.from_json(value["limits"]),
        }
        return cls(**{**value, **parts})


def default_workers() -> int:
    """How many workers this machine has processors for, besides those that PBS and the mount use."""
    return min(max(1, len(os.sched_getaffinity(0)) // 2), _MOST_DEFAULT_WORKERS)
