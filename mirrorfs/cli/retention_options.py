"""The options that say how what leaves the datastore leaves the bucket."""

from __future__ import annotations

import functools
from collections.abc import Callable

from mirrorfs.cli.durations import Duration
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.setting import setting
from mirrorfs.replication.settings import RetentionSettings


def retention_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of retention, as one parameter `retention`."""

    @setting(
        "--retention-delete-after",
        type=Duration(),
        default="0",
        metavar="DURATION",
        help="Keep removed snapshots restorable for so long (30d, 12h), with their chunks. 0: they go at once.",
    )
    @setting(
        "--retention-max-delete-fraction",
        type=FiniteRange(0.0, 1.0, min_open=True),
        values="a share, more than 0, at most 1",
        metavar="SHARE",
        help="Hold removals when more than this share of the snapshots goes in a day, until 'mirrorfs retention "
        "approve'.",
    )
    @setting(
        "--retention-unseen-after",
        type=Duration(),
        default="7d",
        metavar="DURATION",
        help="Hold the removal of what was not seen to go, unless it looks like a prune, for so long, or until "
        "'mirrorfs retention approve'. 0: it goes at once.",
    )
    @setting(
        "--retention-lock-for",
        type=Duration(),
        metavar="DURATION",
        help="In a bucket with Object Lock: lock what live snapshots need for so long, again and again. "
        "Default: the bucket's own default retention.",
    )
    @functools.wraps(command)
    def with_retention(
        retention_delete_after: float,
        retention_max_delete_fraction: float | None,
        retention_unseen_after: float,
        retention_lock_for: float | None,
        **others: object,
    ) -> None:
        retention = RetentionSettings(
            retention_delete_after, retention_max_delete_fraction, retention_lock_for, retention_unseen_after
        )
        command(retention=retention, **others)

    return with_retention
