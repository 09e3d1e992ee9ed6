"""What of a bucket to restore: everything, or chosen namespaces, groups, snapshots and times, or the latest of each
group.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.patterns import PathPattern
from mirrorfs.recovery.catalog import BucketContents
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.moment import format_moment
from mirrorfs.recovery.source import View


@dataclass(frozen=True, slots=True)
class Selection:
    """Everything, unless something is chosen: then all that is in one of the namespaces (or in one inside
    it), in one of the groups, or one of the snapshots, by name or by the pattern of a name.

    Of these, `since` and `until` keep the snapshots of this Unix time or later, and of this one or earlier, and then
    `latest` keeps that many of the newest of each group. `renamed` takes also what somebody has renamed: snapshots
    whose manifest has another type, id or time.
    """

    namespaces: tuple[NamespaceId, ...] = ()
    groups: tuple[GroupId, ...] = ()
    snapshots: tuple[SnapshotId, ...] = ()
    latest: int | None = None
    renamed: bool = False
    group_patterns: tuple[PathPattern, ...] = ()
    snapshot_patterns: tuple[PathPattern, ...] = ()
    since: float | None = None
    until: float | None = None

    @property
    def is_everything(self) -> bool:
        """Whether no part was chosen (times and `latest` may thin it out nevertheless)."""
        return not (self.namespaces or self.groups or self.snapshots or self.group_patterns or self.snapshot_patterns)

    @property
    def has_times(self) -> bool:
        """Whether snapshots are chosen by their time."""
        return self.since is not None or self.until is not None

    def described(self) -> dict[str, Any]:
        """What was chosen, as JSON has it: equal for equal selections."""
        return {
            "namespaces": [namespace.path for namespace in self.namespaces],
            "groups": [*(group.path for group in self.groups), *(pattern.text for pattern in self.group_patterns)],
            "snapshots": [
                *(snapshot.path for snapshot in self.snapshots),
                *(pattern.text for pattern in self.snapshot_patterns),
            ],
            "latest": self.latest,
            "since": self.since,
            "until": self.until,
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be restored, each sorted. Groups may be without snapshots, namespaces without
    groups.
    """

    namespaces: tuple[NamespaceId, ...]
    groups: tuple[GroupId, ...]
    snapshots: tuple[SnapshotId, ...]

    def newest_first(self) -> list[SnapshotId]:
        """The snapshots in the order in which somebody needs them: the newest of each group, then the second newest of
        each, and so on.
        """
        ranked = (pair for _, found in _by_group(self.snapshots) for pair in enumerate(reversed(list(found))))
        return [snapshot for _, snapshot in sorted(ranked)]


def plan_restore(
    contents: BucketContents,
    selection: Selection,
    view: View = View(),  # noqa: B008 - immutable
    *,
    holder: str = "bucket",
) -> Plan:
    """Apply a selection to what a bucket holds, as seen in the view. Raises RestoreError when something chosen is not
    there, or nothing is of the chosen times; its text calls what holds them the `holder`.
    """
    advice = "" if holder != "bucket" else f" See what it holds with: mirrorfs snapshots URL{view.options}"
    published = contents.published
    chosen = _Chosen(selection)
    snapshots = [snapshot for snapshot in published if chosen.has_snapshot(snapshot)]
    groups = {group for group in contents.groups if chosen.has_group(group)}
    missing = [
        *(f"namespace {found.display}" for found in selection.namespaces if found not in contents.namespaces),
        *chosen.missing(contents.groups.keys() | {snapshot.group for snapshot in published}, published),
    ]
    if missing:
        kind = "deleted " if view.deleted else ""
        raise RestoreError(f"The {holder} holds no {kind}{f', no {kind}'.join(missing)}{view.suffix}.{advice}")
    if selection.has_times:
        of_times = [snapshot for snapshot in snapshots if _is_of_times(snapshot, selection)]
        if not of_times:
            raise RestoreError(f"{_none_of_times(snapshots, selection, view)}{advice}")
        # A group is asked for by its snapshots then: one that has none of that time is not.
        snapshots, groups = of_times, set()
    if selection.latest is not None:
        snapshots = [found for _, of_group in _by_group(snapshots) for found in list(of_group)[-selection.latest :]]
    groups.update(snapshot.group for snapshot in snapshots)
    namespaces = {group.namespace for group in groups}
    if not selection.has_times:
        namespaces.update(found for found in contents.namespaces if chosen.has_namespace(found))
    return Plan(tuple(sorted(namespaces)), tuple(sorted(groups)), tuple(snapshots))


class _Chosen:
    """Which names a selection chooses, whatever their times."""

    def __init__(self, selection: Selection) -> None:
        self._selection = selection
        self._snapshots = frozenset(selection.snapshots)
        self._groups = frozenset(selection.groups)
        self._group_patterns = [(pattern, pattern.compiled()) for pattern in selection.group_patterns]
        self._snapshot_patterns = [(pattern, pattern.compiled()) for pattern in selection.snapshot_patterns]

    def has_namespace(self, namespace: NamespaceId) -> bool:
        return self._selection.is_everything or any(
            namespace.components[: len(chosen.components)] == chosen.components for chosen in self._selection.namespaces
        )

    def has_group(self, group: GroupId) -> bool:
        return (
            group in self._groups
            or self.has_namespace(group.namespace)
            or any(_matches(compiled, group.path) for _, compiled in self._group_patterns)
        )

    def has_snapshot(self, snapshot: SnapshotId) -> bool:
        return (
            snapshot in self._snapshots
            or self.has_group(snapshot.group)
            or any(_matches(compiled, snapshot.path) for _, compiled in self._snapshot_patterns)
        )

    def missing(self, groups: Iterable[GroupId], snapshots: Sequence[SnapshotId]) -> Iterator[str]:
        """Say what was chosen of these and is not there."""
        groups, published = frozenset(groups), frozenset(snapshots)
        yield from (f"group {group.path}" for group in self._selection.groups if group not in groups)
        for pattern, compiled in self._group_patterns:
            if not any(_matches(compiled, group.path) for group in groups):
                yield f"group like {pattern.text}"
        yield from (f"snapshot {found.path}" for found in self._selection.snapshots if found not in published)
        for pattern, compiled in self._snapshot_patterns:
            if not any(_matches(compiled, snapshot.path) for snapshot in snapshots):
                yield f"snapshot like {pattern.text}"


def _matches(pattern: re.Pattern[bytes], path: str) -> bool:
    return pattern.fullmatch(path.encode()) is not None


def _is_of_times(snapshot: SnapshotId, selection: Selection) -> bool:
    time = datetime.fromisoformat(snapshot.backup_time).timestamp()
    return (selection.since is None or time >= selection.since) and (selection.until is None or time <= selection.until)


def _none_of_times(snapshots: Sequence[SnapshotId], selection: Selection, view: View) -> str:
    limits = [("since", selection.since), ("until", selection.until)]
    times = " and ".join(f"{word} {format_moment(time)}" for word, time in limits if time is not None)
    deleted = "deleted " if view.deleted else ""
    return f"None of the {len(snapshots)} chosen {deleted}snapshots was made {times}."


def _by_group(snapshots: Iterable[SnapshotId]) -> Iterator[tuple[GroupId, Iterator[SnapshotId]]]:
    return groupby(snapshots, key=lambda snapshot: snapshot.group)
