"""Up to when everything is in the bucket: the oldest finished backup of the datastore that is not."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.datastore.tree import Tree

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MissingBackups:
    """Finished backups that the bucket has not: how many, and the oldest, with the time (Unix) its manifest has."""

    count: int = 0
    oldest: str | None = None
    finished: float | None = None


def missing_backups(tree: Tree, published: Collection[str]) -> MissingBackups:
    """Look for backups that are not among the `published` ones, by their paths. Lists the datastore; blocks.

    A backup is finished when its manifest stands there. What cannot be read is left out: that is a problem by name.
    """
    found = [
        (finished, snapshot.path)
        for namespace in tree.namespaces(_leave_out)
        for group in tree.groups(namespace, _leave_out)
        for snapshot in tree.snapshots(group, _leave_out)
        if snapshot.path not in published and (finished := _finished(tree, snapshot)) is not None
    ]
    if not found:
        return MissingBackups()
    finished, oldest = min(found)
    return MissingBackups(len(found), oldest, finished)


def _finished(tree: Tree, snapshot: SnapshotId) -> float | None:
    try:
        return tree.modified(snapshot.manifest_path)
    except OSError as error:
        _leave_out(snapshot.manifest_path, error)
        return None


def _leave_out(path: str, error: OSError) -> None:
    log.debug("%s cannot be looked at, and is left out of the recovery point: %s", path, error)
