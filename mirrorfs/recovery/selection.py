"""What of a bucket to restore: everything, or chosen namespaces, groups and snapshots, or the latest of each
group.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.recovery.catalog import BucketContents
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.source import View


@dataclass(frozen=True, slots=True)
class Selection:
    """Everything, unless something is chosen: then all that is in one of the namespaces (or in one inside
    it), in one of the groups, or one of the snapshots. `latest` keeps that many of the newest of each group
    of these. `renamed` takes also what somebody has renamed: snapshots whose manifest has another type, id or time.
    """

    namespaces: tuple[NamespaceId, ...] = ()
    groups: tuple[GroupId, ...] = ()
    snapshots: tuple[SnapshotId, ...] = ()
    latest: int | None = None
    renamed: bool = False

    @property
    def is_everything(self) -> bool:
        """Whether no part was chosen (`latest` may thin it out nevertheless)."""
        return not (self.namespaces or self.groups or self.snapshots)


@dataclass(frozen=True, slots=True)
class Plan:
    """What is going to be restored, each sorted. Groups may be without snapshots, namespaces without
    groups.
    """

    namespaces: tuple[NamespaceId, ...]
    groups: tuple[GroupId, ...]
    snapshots: tuple[SnapshotId, ...]


def plan_restore(contents: BucketContents, selection: Selection, view: View = View()) -> Plan:  # noqa: B008 - immutable
    """Apply a selection to what a bucket holds, as seen in the view. Raises RestoreError when something chosen is not
    there.
    """
    published = contents.published
    _check_existence(contents, published, selection, view)
    snapshots = [snapshot for snapshot in published if _is_chosen(snapshot, selection)]
    if selection.latest is not None:
        snapshots = _latest_of_each_group(snapshots, selection.latest)
    groups = {snapshot.group for snapshot in snapshots}
    groups.update(group for group in contents.groups if _is_group_chosen(group, selection))
    namespaces = {namespace for namespace in contents.namespaces if _is_namespace_chosen(namespace, selection)}
    namespaces.update(group.namespace for group in groups)
    return Plan(tuple(sorted(namespaces)), tuple(sorted(groups)), tuple(snapshots))


def _check_existence(
    contents: BucketContents, published: Sequence[SnapshotId], selection: Selection, view: View
) -> None:
    known_groups = contents.groups.keys() | {snapshot.group for snapshot in published}
    missing = [
        *(f"namespace {found.display}" for found in selection.namespaces if found not in contents.namespaces),
        *(f"group {found.path}" for found in selection.groups if found not in known_groups),
        *(f"snapshot {found.path}" for found in selection.snapshots if found not in published),
    ]
    if missing:
        kind = "deleted " if view.deleted else ""
        raise RestoreError(
            f"The bucket holds no {kind}{f', no {kind}'.join(missing)}{view.suffix}. "
            f"See what it holds with: mirrorfs snapshots URL{view.options}"
        )


def _is_chosen(snapshot: SnapshotId, selection: Selection) -> bool:
    return snapshot in selection.snapshots or _is_group_chosen(snapshot.group, selection)


def _is_group_chosen(group: GroupId, selection: Selection) -> bool:
    return group in selection.groups or _is_namespace_chosen(group.namespace, selection)


def _is_namespace_chosen(namespace: NamespaceId, selection: Selection) -> bool:
    return selection.is_everything or any(
        namespace.components[: len(chosen.components)] == chosen.components for chosen in selection.namespaces
    )


def _latest_of_each_group(snapshots: Iterable[SnapshotId], count: int) -> list[SnapshotId]:
    latest: list[SnapshotId] = []
    for _, of_group in groupby(snapshots, key=lambda snapshot: snapshot.group):
        latest.extend(list(of_group)[-count:])
    return latest
