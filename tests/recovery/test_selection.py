"""Which namespaces, groups and snapshots a selection chooses."""

from __future__ import annotations

import os

import pytest

from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.recovery.catalog import BucketContents
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.ownership import Owner, default_owner, parse_owner
from mirrorfs.recovery.selection import Selection, plan_restore

ROOT, OUTER, INNER, EMPTY = (NamespaceId(parts) for parts in ((), ("a",), ("a", "b"), ("e",)))
SNAPSHOTS = [
    SnapshotId.parse(path)
    for path in (
        "ct/1/2026-01-01T00:00:00Z",
        "vm/1/2026-01-01T00:00:00Z",
        "vm/1/2026-01-02T00:00:00Z",
        "vm/1/2026-01-03T00:00:00Z",
        "ns/a/vm/1/2026-01-01T00:00:00Z",
        "ns/a/ns/b/vm/1/2026-01-01T00:00:00Z",
        "ns/a/ns/b/vm/1/2026-01-02T00:00:00Z",
    )
]
UNPUBLISHED = SnapshotId.parse("vm/1/2026-01-04T00:00:00Z")
LONELY = GroupId(ROOT, "vm", "lonely")
CONTENTS = BucketContents(
    namespaces=frozenset({ROOT, OUTER, INNER, EMPTY}),
    groups={group: {"owner": 9} for group in {snapshot.group for snapshot in SNAPSHOTS} | {LONELY}},
    snapshots={snapshot: {"index.json.blob": 100} for snapshot in SNAPSHOTS} | {UNPUBLISHED: {"a.fidx": 4096}},
    foreign=(),
)


def chosen(selection: Selection) -> list[int]:
    return [SNAPSHOTS.index(snapshot) for snapshot in plan_restore(CONTENTS, selection).snapshots]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), [0, 1, 2, 3, 4, 5, 6]),
        (Selection(latest=1), [0, 3, 4, 6]),
        (Selection(latest=2), [0, 2, 3, 4, 5, 6]),
        (Selection(namespaces=(OUTER,)), [4, 5, 6]),
        (Selection(namespaces=(INNER,)), [5, 6]),
        (Selection(namespaces=(INNER,), latest=1), [6]),
        (Selection(groups=(GroupId(ROOT, "vm", "1"),)), [1, 2, 3]),
        (Selection(groups=(GroupId(ROOT, "vm", "1"),), snapshots=(SNAPSHOTS[0], SNAPSHOTS[1])), [0, 1, 2, 3]),
        (Selection(snapshots=(SNAPSHOTS[5], SNAPSHOTS[1])), [1, 5]),
        (Selection(snapshots=(SNAPSHOTS[1], SNAPSHOTS[2]), latest=1), [2]),
        (Selection(namespaces=(EMPTY,)), []),
    ],
)
def test_snapshots(selection: Selection, expected: list[int]) -> None:
    assert chosen(selection) == expected


def test_everything_includes_empty_groups_and_namespaces() -> None:
    plan = plan_restore(CONTENTS, Selection(latest=1))
    assert LONELY in plan.groups
    assert plan.namespaces == (ROOT, OUTER, INNER, EMPTY)


def test_a_part_brings_only_its_own_groups_and_namespaces() -> None:
    plan = plan_restore(CONTENTS, Selection(snapshots=(SNAPSHOTS[5],)))
    assert plan.groups == (SNAPSHOTS[5].group,)
    assert plan.namespaces == (INNER,)


@pytest.mark.parametrize(
    ("selection", "named"),
    [
        (Selection(namespaces=(NamespaceId(("a", "c")),)), "namespace a/c"),
        (Selection(groups=(GroupId(ROOT, "vm", "2"),)), "group vm/2"),
        (Selection(snapshots=(UNPUBLISHED,)), UNPUBLISHED.path),
    ],
)
def test_what_is_not_there_is_named(selection: Selection, named: str) -> None:
    with pytest.raises(RestoreError, match=named):
        plan_restore(CONTENTS, selection)


def test_owners() -> None:
    assert parse_owner("0:34") == Owner(0, 34)
    assert parse_owner("root:root") == Owner(0, 0)
    assert parse_owner("root") == Owner(0, 0)
    assert parse_owner("12345:54321") == Owner(12345, 54321)
    if os.geteuid() == 0:
        assert default_owner() == parse_owner("backup:backup")


@pytest.mark.parametrize(
    "text", ["nobody-knows:root", "root:nobody-knows", "", ":", "987654321", f"{2**32 - 1}:0", "-1:0"]
)
def test_unknown_owners_are_refused(text: str) -> None:
    with pytest.raises(RestoreError):
        parse_owner(text)
