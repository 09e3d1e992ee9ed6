"""The path grammar: identifiers round-trip, and nothing outside the grammar is ever taken for a published
name.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.names import (
    ChunkName,
    ForeignName,
    GroupDirectoryName,
    GroupFileName,
    GroupId,
    InternalName,
    NamespaceDirectoryName,
    NamespaceId,
    QuarantinedChunkName,
    SnapshotDirectoryName,
    SnapshotFileName,
    SnapshotId,
    StructureName,
    TypeDirectoryName,
    chunk_path,
    classify,
    is_final,
    topmost_foreign,
)

DIGEST = bytes(range(32))
HEX = DIGEST.hex()
SNAPSHOT = "vm/100/2026-11-22T10:00:00Z"
# What PBS can write for each part of a path, written down a second time, independent of the package.
SAFE_PATH = re.compile(r"(?:\.?[A-Za-z0-9_][A-Za-z0-9._:-]*/)*\.?[A-Za-z0-9_][A-Za-z0-9._:-]*")

components = st.one_of(
    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,20}", fullmatch=True),
    st.sampled_from(["ns", "vm", "ct", "host", "a.tmp", "x.tmp_abc123", "owner", "_"]),
)
namespaces = st.lists(components, max_size=7).map(lambda parts: NamespaceId(tuple(parts)))
groups = st.builds(GroupId, namespaces, st.sampled_from(["vm", "ct", "host"]), components)
times = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31)).map(
    lambda time: time.strftime("%Y-%m-%dT%H:%M:%SZ").zfill(20)
)
snapshots = st.builds(SnapshotId, groups, times)
extensions = st.sampled_from([".fidx", ".didx", ".blob"])
filenames = st.one_of(st.just(".protected"), st.builds(str.__add__, components, extensions), st.just("client.log.blob"))


@given(namespaces)
def test_namespace_round_trip(namespace: NamespaceId) -> None:
    assert NamespaceId.parse(namespace.path) == namespace
    if namespace.components:
        assert classify(namespace.path.encode()) == NamespaceDirectoryName(namespace)
        assert namespace.parent is not None
        assert namespace.parent.child(namespace.components[-1]) == namespace
    else:
        assert namespace.parent is None


@given(groups)
def test_group_round_trip(group: GroupId) -> None:
    assert GroupId.parse(group.path) == group
    assert classify(group.path.encode()) == GroupDirectoryName(group)
    for filename in ("owner", "notes"):
        name = classify(f"{group.path}/{filename}".encode())
        assert name == GroupFileName(group, filename)
        assert is_final(name)


@given(snapshots, filenames)
def test_snapshot_round_trip(snapshot: SnapshotId, filename: str) -> None:
    assert SnapshotId.parse(snapshot.path) == snapshot
    assert classify(snapshot.path.encode()) == SnapshotDirectoryName(snapshot)
    name = classify(f"{snapshot.path}/{filename}".encode())
    assert name == SnapshotFileName(snapshot, filename)
    assert isinstance(name, SnapshotFileName)
    assert name.path == f"{snapshot.path}/{filename}"
    assert name.is_manifest == (filename == "index.json.blob")


@given(groups, st.integers(0, 253402300799))
def test_timestamp_is_the_directory_name_in_seconds(group: GroupId, timestamp: int) -> None:
    snapshot = SnapshotId.at(group, timestamp)
    assert snapshot.timestamp == timestamp
    expected = datetime.fromtimestamp(timestamp, UTC).isoformat().replace("+00:00", "Z")
    assert snapshot.backup_time == expected


@given(st.binary(min_size=32, max_size=32), st.integers(0, 9))
def test_chunk_round_trip(digest: bytes, number: int) -> None:
    path = chunk_path(digest)
    assert classify(path.encode()) == ChunkName(digest)
    assert ChunkName(digest).path == path
    assert classify(f"{path}.{number}.bad".encode()) == QuarantinedChunkName(digest, number)
    assert classify(f"{path}.tmp_aB3xyz".encode()) == InternalName()


@given(
    st.one_of(
        st.binary(max_size=120),
        st.lists(
            st.sampled_from(
                [
                    *(b"ns", b"vm", b"100", b"..", b".", b"", b"a", b".chunks", b"0001", b"\n", b"\0", b"\xff"),
                    *(SNAPSHOT.encode(), b"2026-11-22T10:00:00Z", b"index.json.blob", b"owner", HEX.encode()),
                ],
            ),
            max_size=9,
        ).map(b"/".join),
    )
)
@example(b"vm/100/owner\n")
@example(f"{SNAPSHOT}/index.json.blob\n".encode())
@example(f"{SNAPSHOT}/../index.json.blob".encode())
@example(b"vm/../owner")
@example(f".chunks/0001/../0001/{HEX}".encode())
def test_hostile_paths_are_never_final(path: bytes) -> None:
    """classify never raises, and what it calls final is a plain path without '..', control or foreign
    bytes.
    """
    name = classify(path)
    if is_final(name):
        text = path.decode("ascii")
        assert SAFE_PATH.fullmatch(text)
        assert ".." not in text.split("/")
    for parse in (NamespaceId.parse, GroupId.parse, SnapshotId.parse):
        try:
            parsed = parse(path.decode("utf-8", "surrogateescape"))
        except DatastoreError:
            continue
        assert parsed.path.encode() == path


@pytest.mark.parametrize(
    "path",
    ["", ".chunks", ".chunks/00ff", "ns", "ns/a/ns", "ns/ns/ns", "/".join(["ns/a"] * 6) + "/ns"],
)
def test_structure(path: str) -> None:
    assert classify(path.encode()) == StructureName()


@pytest.mark.parametrize(
    "path",
    [
        ".lock",
        ".gc-status",
        ".lock.tmp_a1b2c3",
        ".gc-status.tmp_a1b2c3",
        f"{SNAPSHOT}/index.json.tmp_abc123",
        f"{SNAPSHOT}/index.json.tmp",
        f"{SNAPSHOT}/drive-scsi0.img.tmp_fidx",
        f"{SNAPSHOT}/root.mpxar.tmp_didx",
        f"{SNAPSHOT}/client.log.tmp_zzzzzz",
        f"{SNAPSHOT}/.index.json.lck",
        "vm/100/owner.tmp_a1b2c3",
        "vm/100/.2026-11-22T10:00:00Z.lck",
        f".chunks/{HEX[:4]}/{HEX}.tmp_A1b2C3",
    ],
)
def test_internal(path: str) -> None:
    assert classify(path.encode()) == InternalName()


@pytest.mark.parametrize(
    "path",
    [
        "lost+found",
        "vm/100/2026-02-30T10:00:00Z",
        "vm/100/2026-11-22T24:00:00Z",
        "vm/100/2026-11-22T10:00:00",
        "vm/100/2026-11-22 10:00:00Z",
        f"{SNAPSHOT}/index.json",
        f"{SNAPSHOT}/.hidden.blob",
        f"{SNAPSHOT}/.blob",
        f"{SNAPSHOT}/a/b.blob",
        f"{SNAPSHOT}/{'a' * 251}.blob",
        f"{SNAPSHOT}/owner",
        "vm/100/owner/notes",
        "vm/-100",
        "vm/.100",
        "vm/1 0",
        "vm/1/.protected",
        "qemu/100",
        "ns/.a",
        "ns/a/b",
        "/".join(["ns/a"] * 8),
        "/".join(["ns/a"] * 7) + "/ns",
        f".chunks/0000/{HEX}",
        f".chunks/{HEX[:4]}/{HEX.upper()}",
        f".chunks/{HEX[:4]}/{HEX}.10.bad",
        f".chunks/{HEX[:4]}/{HEX[:-1]}",
        f".chunks/{HEX}",
        ".chunks/00FF",
        ".chunksx",
        "vm/100/.lock",
        "x.tmp_abcdefg",
    ],
)
def test_foreign(path: str) -> None:
    assert classify(path.encode()) == ForeignName()


def test_type_directory() -> None:
    assert classify(b"ns/a/host") == TypeDirectoryName(NamespaceId(("a",)), "host")


def test_grammar_of_directories_wins_over_temporaries() -> None:
    assert classify(b"vm/web.tmp") == GroupDirectoryName(GroupId(NamespaceId(), "vm", "web.tmp"))
    assert isinstance(classify(f"{SNAPSHOT}/x.tmp_a.blob".encode()), SnapshotFileName)


@pytest.mark.parametrize(
    ("backup_type", "backup_id"), [("vm", ".."), ("vm", "a/b"), ("vm", ""), ("vm", "a\n"), ("qm", "100")]
)
def test_identifiers_cannot_be_made_of_bad_parts(backup_type: str, backup_id: str) -> None:
    with pytest.raises(DatastoreError):
        GroupId(NamespaceId(), backup_type, backup_id)


def test_namespaces_nest_seven_levels() -> None:
    NamespaceId(("a",) * 7)
    with pytest.raises(DatastoreError, match="7 levels"):
        NamespaceId(("a",) * 8)
    with pytest.raises(DatastoreError):
        NamespaceId(("..",))


def test_order_is_by_namespace_group_and_time() -> None:
    paths = [
        "ct/1/2026-01-01T00:00:00Z",
        "vm/1/2026-01-01T00:00:00Z",
        "vm/1/2026-01-02T00:00:00Z",
        "ns/a/ct/1/2026-01-01T00:00:00Z",
    ]
    assert sorted(map(SnapshotId.parse, reversed(paths))) == [SnapshotId.parse(path) for path in paths]


_SEGMENTS = st.sampled_from(
    [b"vm", b"ct", b"100", b"ns", b"a", b"2026-11-22T10:00:00Z", b"x y", b".chunks", b"a.tmp", b"owner"]
)


@given(st.lists(_SEGMENTS, min_size=1, max_size=8).map(b"/".join))
def test_the_topmost_foreign_name_is_the_one_that_a_listing_would_give(path: bytes) -> None:
    topmost = topmost_foreign(path)
    parts = path.split(b"/")
    outer = [classify(b"/".join(parts[:count])) for count in range(1, len(parts) + 1)]
    if topmost is None:
        stops = next((number for number, name in enumerate(outer) if isinstance(name, ForeignName)), len(outer))
        assert stops == len(outer) or any(isinstance(name, InternalName) for name in outer[:stops])
    else:
        depth = topmost.count(b"/")
        assert path == topmost or path.startswith(topmost + b"/")
        assert isinstance(outer[depth], ForeignName)
        assert not any(isinstance(name, ForeignName | InternalName) for name in outer[:depth])
