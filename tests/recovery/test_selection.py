"""Which namespaces, groups and snapshots a selection chooses."""

from __future__ import annotations

import os

import pytest

from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.datastore.patterns import MalformedPattern, PathPattern
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
SECOND_DAY = 1767312000.0  # 2026-01-02T00:00:00Z
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
        (Selection(group_patterns=(PathPattern("vm/*"),)), [1, 2, 3]),
        (Selection(group_patterns=(PathPattern("*vm/?"),)), [1, 2, 3, 4, 5, 6]),
        (Selection(group_patterns=(PathPattern("ns/a/*"),), latest=1), [4, 6]),
        (Selection(group_patterns=(PathPattern("[cx]t/[!2]"),), snapshots=(SNAPSHOTS[5],)), [0, 5]),
        (Selection(snapshot_patterns=(PathPattern("*-01-02T*"),)), [2, 6]),
        (Selection(snapshot_patterns=(PathPattern("vm/1/*"),), latest=1), [3]),
        (Selection(since=SECOND_DAY), [2, 3, 6]),
        (Selection(since=SECOND_DAY + 0.5), [3]),
        (Selection(until=SECOND_DAY), [0, 1, 2, 4, 5, 6]),
        (Selection(until=SECOND_DAY - 0.5), [0, 1, 4, 5]),
        (Selection(since=SECOND_DAY, until=SECOND_DAY), [2, 6]),
        (Selection(until=SECOND_DAY, latest=1), [0, 2, 4, 6]),
        (Selection(namespaces=(INNER,), since=SECOND_DAY), [6]),
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
        (Selection(group_patterns=(PathPattern("vm/2*"), PathPattern("vm/*"))), r"no group like vm/2\*\."),
        (Selection(snapshot_patterns=(PathPattern("vm/1/2027*"),)), r"no snapshot like vm/1/2027\*"),
        (
            Selection(namespaces=(OUTER,), since=SECOND_DAY + 1),
            "None of the 3 chosen snapshots was made since 2026-01-02T00:00:01Z",
        ),
    ],
)
def test_what_is_not_there_is_named(selection: Selection, named: str) -> None:
    with pytest.raises(RestoreError, match=named):
        plan_restore(CONTENTS, selection)


def test_a_time_brings_no_group_without_a_snapshot_of_it() -> None:
    plan = plan_restore(CONTENTS, Selection(since=SECOND_DAY))
    assert plan.groups == tuple(sorted({SNAPSHOTS[2].group, SNAPSHOTS[6].group}))
    assert plan.namespaces == (ROOT, INNER)
    assert LONELY in plan_restore(CONTENTS, Selection(group_patterns=(PathPattern("*lonely"),))).groups


def test_the_newest_of_each_group_comes_first() -> None:
    order = [SNAPSHOTS.index(snapshot) for snapshot in plan_restore(CONTENTS, Selection()).newest_first()]
    assert {order.index(number) for number in (0, 3, 4, 6)} == {0, 1, 2, 3}
    assert {order.index(number) for number in (2, 5)} == {4, 5}
    assert order[6:] == [1]


@pytest.mark.parametrize("text", ["/vm/*", "vm/[1", "[!", "[]"])
def test_malformed_patterns(text: str) -> None:
    with pytest.raises(MalformedPattern):
        PathPattern(text)


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
