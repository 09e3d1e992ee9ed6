"""The bucket layout: keys round-trip, hostile keys lead nowhere."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirrorfs.datastore.layout import DELETED_MARKER_NAME, BucketLayout
from mirrorfs.datastore.names import NamespaceId, SnapshotId, is_listed_file_name
from tests.datastore.test_names import SAFE_PATH, filenames, namespaces, snapshots

LAYOUT = BucketLayout("mirror/store")


def test_layout_is_that_of_pbs() -> None:
    digest = bytes(range(32))
    assert LAYOUT.chunk_key(digest) == f"mirror/store/.chunks/0001/{digest.hex()}"
    assert LAYOUT.content_key("vm/100/owner") == "mirror/store/.cnt/vm/100/owner"
    assert LAYOUT.namespace_key(NamespaceId(("a", "b"))) == "mirror/store/.cnt/ns/a/ns/b/.namespace"
    assert LAYOUT.in_use_key == "mirror/store/.in-use"
    assert LAYOUT.own_key("owner.json") == "mirror/store/.mirrorfs/owner.json"
    deleted = LAYOUT.deleted_key("vm/100/2026-11-22T10:00:00Z", "index.json.blob")
    assert deleted == "mirror/store/.mirrorfs/deleted/vm/100/2026-11-22T10:00:00Z/index.json.blob"
    assert deleted.startswith(LAYOUT.deleted_prefix)
    assert LAYOUT.chunk_key(digest).startswith(LAYOUT.chunks_prefix)
    assert LAYOUT.content_key("x").startswith(LAYOUT.content_prefix)


@given(st.binary(min_size=32, max_size=32))
def test_chunk_keys_round_trip(digest: bytes) -> None:
    assert LAYOUT.chunk_digest(LAYOUT.chunk_key(digest)) == digest
    assert LAYOUT.content_path(LAYOUT.chunk_key(digest)) is None


@given(snapshots, filenames)
def test_content_keys_round_trip(snapshot: SnapshotId, filename: str) -> None:
    path = f"{snapshot.path}/{filename}"
    assert LAYOUT.content_path(LAYOUT.content_key(path)) == path
    assert LAYOUT.chunk_digest(LAYOUT.content_key(path)) is None


@given(namespaces.filter(lambda namespace: namespace.components != ()))
def test_namespace_keys_round_trip(namespace: NamespaceId) -> None:
    assert LAYOUT.content_path(LAYOUT.namespace_key(namespace)) == f"{namespace.path}/.namespace"


@given(snapshots, st.one_of(filenames, st.just(DELETED_MARKER_NAME)))
def test_keys_of_deleted_snapshots_round_trip(snapshot: SnapshotId, filename: str) -> None:
    key = LAYOUT.deleted_key(snapshot.path, filename)
    assert LAYOUT.deleted_path(key) == f"{snapshot.path}/{filename}"
    assert LAYOUT.content_path(key) is None
    assert LAYOUT.chunk_digest(key) is None
    assert LAYOUT.deleted_path(LAYOUT.content_key(f"{snapshot.path}/{filename}")) is None


@given(st.text())
@example("vm/100/2026-11-22T10:00:00Z/../../x.blob")
def test_any_other_key_of_a_deleted_snapshot_leads_nowhere(path: str) -> None:
    found = LAYOUT.deleted_path(f"{LAYOUT.deleted_prefix}{path}")
    assert found is None or (found == path and SAFE_PATH.fullmatch(path) and ".." not in path.split("/"))


def test_the_marker_of_a_deleted_snapshot_is_no_file_of_one() -> None:
    assert not is_listed_file_name(DELETED_MARKER_NAME)
    assert LAYOUT.content_path(LAYOUT.content_key(f"vm/100/2026-11-22T10:00:00Z/{DELETED_MARKER_NAME}")) is None


@pytest.mark.parametrize(
    "path",
    [
        "",
        "../vm/100/owner",
        "vm/../../owner",
        "vm/100/../101/owner",
        "/vm/100/owner",
        "vm/100//owner",
        "vm//100/owner",
        "vm/100/owner/",
        "vm/100",
        "vm/100/owner\n",
        "vm/100/owner\0",
        "vm/1é/owner",
        "vm/1\ud800/owner",
        ".namespace",
        "ns/.namespace",
        "ns/../.namespace",
        "vm/.namespace",
        "vm/100/.namespace",
        f".chunks/0000/{'0' * 64}",
        "vm/100/2026-11-22T10:00:00Z/a.tmp_fidx",
        "vm/100/2026-11-22T10:00:00Z/index.json",
        "vm/100/2026-13-22T10:00:00Z/index.json.blob",
        ".lock",
    ],
)
def test_hostile_content_keys(path: str) -> None:
    assert LAYOUT.content_path(f"mirror/store/.cnt/{path}") is None
    assert LAYOUT.deleted_path(f"mirror/store/.mirrorfs/deleted/{path}") is None


@pytest.mark.parametrize(
    "path",
    [
        "deleted.json",
        "vm/100/deleted.json",
        "vm/100/owner",
        "vm/100/notes",
        "ns/a/.namespace",
        "ns/a/deleted.json",
        "vm/100/2026-11-22T10:00:00Z/../deleted.json",
        "../vm/100/2026-11-22T10:00:00Z/deleted.json",
        "/vm/100/2026-11-22T10:00:00Z/deleted.json",
        "vm/100/2026-11-22T10:00:00Z/x/deleted.json",
        "vm/100/2026-11-22T10:00:00Z/Deleted.json",
        "vm/100/2026-11-22T10:00:00Z/deleted.json\n",
        "vm/100/2026-13-22T10:00:00Z/deleted.json",
        f".chunks/0000/{'0' * 64}",
    ],
)
def test_hostile_keys_of_deleted_snapshots(path: str) -> None:
    assert LAYOUT.deleted_path(f"mirror/store/.mirrorfs/deleted/{path}") is None


@pytest.mark.parametrize(
    "key",
    [
        "other/.cnt/vm/100/owner",
        "mirror/store2/.cnt/vm/100/owner",
        "mirror/store/.cnt",
        "vm/100/owner",
        "x/mirror/store/.cnt/vm/100/owner",
        f"mirror/store/.chunks/0001/{'0' * 64}",
        f"mirror/store/.chunks/0000/{'0' * 63}",
        f"mirror/store/.chunks/0000/{'0' * 64}.0.bad",
        f"mirror/store/.chunks/0000/../0000/{'0' * 64}",
        f"mirror/other/.chunks/0000/{'0' * 64}",
        "mirror/store/.mirrorfs/claim.json",
        "other/.mirrorfs/deleted/vm/100/2026-11-22T10:00:00Z/index.json.blob",
        "mirror/store/deleted/vm/100/2026-11-22T10:00:00Z/index.json.blob",
    ],
)
def test_keys_of_something_else(key: str) -> None:
    assert LAYOUT.content_path(key) is None
    assert LAYOUT.chunk_digest(key) is None
    assert LAYOUT.deleted_path(key) is None
