"""The bucket layout: keys round-trip, hostile keys lead nowhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import NamespaceId, SnapshotId
from tests.datastore.test_names import filenames, namespaces, snapshots

LAYOUT = BucketLayout("mirror/store")


def test_layout_is_that_of_pbs() -> None:
    digest = bytes(range(32))
    assert LAYOUT.chunk_key(digest) == f"mirror/store/.chunks/0001/{digest.hex()}"
    assert LAYOUT.content_key("vm/100/owner") == "mirror/store/.cnt/vm/100/owner"
    assert LAYOUT.namespace_key(NamespaceId(("a", "b"))) == "mirror/store/.cnt/ns/a/ns/b/.namespace"
    assert LAYOUT.in_use_key == "mirror/store/.in-use"
    assert LAYOUT.own_key("owner.json") == "mirror/store/.mirrorfs/owner.json"
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
    ],
)
def test_keys_of_something_else(key: str) -> None:
    assert LAYOUT.content_path(key) is None
    assert LAYOUT.chunk_digest(key) is None
