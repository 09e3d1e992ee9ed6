"""The catalog of a bucket: complete, and standing damage."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable

import pytest
import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.manifest import parse_manifest
from mirrorfs.datastore.names import NamespaceId
from mirrorfs.objectstore.answers import StoredObject
from mirrorfs.recovery import catalog as catalog_module
from mirrorfs.recovery.catalog import BucketContents, PublishedSnapshot, list_contents, read_catalog
from mirrorfs.recovery.source import PresentSource
from tests.recovery.mirror import Mirror, Tampering, upload

SECOND = "vm/100/2026-01-01T01:00:00Z"
THIRD = "vm/100/2026-01-01T02:00:00Z"
PATHS = [
    "host/web/2026-01-01T02:00:00Z",
    "vm/100/2026-01-01T00:00:00Z",
    SECOND,
    THIRD,
    "ns/a/ns/b/ct/200/2026-01-01T00:00:00Z",
    "ns/a/ns/b/ct/200/2026-01-01T01:00:00Z",
]


def catalog_of(mirror: Mirror, tampering: Tampering | None = None) -> dict[str, PublishedSnapshot]:
    async def read() -> list[PublishedSnapshot]:
        return await read_catalog(PresentSource(mirror.store(tampering)), BucketLayout(mirror.prefix))

    return {published.snapshot.path: published for published in trio.run(read)}


def contents_of(mirror: Mirror, tampering: Tampering | None = None) -> BucketContents:
    async def list_all() -> BucketContents:
        return await list_contents(PresentSource(mirror.store(tampering)), BucketLayout(mirror.prefix))

    return trio.run(list_all)


def own_object(mirror: Mirror, name: str) -> bytes:
    key = f"{mirror.prefix}/{name}"
    data: bytes = mirror.access.client().get_object(Bucket=mirror.bucket, Key=key)["Body"].read()
    return data


def test_catalog_tells_what_the_manifests_say(shared_mirror: Mirror) -> None:
    catalog = catalog_of(shared_mirror)
    assert list(catalog) == PATHS
    assert [path for path in PATHS if catalog[path].protected] == ["vm/100/2026-01-01T00:00:00Z"]
    assert [path for path in PATHS if catalog[path].encrypted] == PATHS[4:]
    assert (catalog[THIRD].notes, catalog[THIRD].verify_state) == ("last one", "ok")
    assert (catalog[SECOND].notes, catalog[SECOND].verify_state) == (None, None)
    for path, published in catalog.items():
        manifest = own_object(shared_mirror, f".cnt/{path}/index.json.blob")
        # As PBS does it: what is listed, and the manifest itself.
        assert published.size == parse_manifest(manifest).size + len(manifest)
        assert published.problem is None
        assert published.size is not None
        assert published.size > 1_000_000


def test_a_damaged_manifest_is_reported_and_the_rest_is_read(own_mirror: Mirror) -> None:
    good = (
        own_mirror.access.client()
        .get_object(Bucket=own_mirror.bucket, Key=f"{own_mirror.prefix}/.cnt/{SECOND}/index.json.blob")["Body"]
        .read()
    )
    changed = {
        f".cnt/{SECOND}/index.json.blob": good[:-1],
        ".cnt/vm/100/2026-01-09T00:00:00Z/drive.img.fidx": b"of a snapshot that is not published",
    }
    upload(own_mirror.access, own_mirror.bucket, own_mirror.prefix, changed)
    catalog = catalog_of(own_mirror)
    assert list(catalog) == PATHS
    assert {path for path, published in catalog.items() if published.problem} == {SECOND}
    assert "CRC-32" in (catalog[SECOND].problem or "")
    assert (catalog[SECOND].size, catalog[SECOND].encrypted) == (None, None)


def test_a_snapshot_that_goes_meanwhile_is_left_out(shared_mirror: Mirror) -> None:
    gone = f"{shared_mirror.prefix}/.cnt/vm/100/2026-01-08T00:00:00Z/index.json.blob"
    assert list(catalog_of(shared_mirror, Tampering(extra_keys=(gone,)))) == PATHS


def test_contents_keep_hostile_keys_apart(shared_mirror: Mirror) -> None:
    hostile = (
        f"{shared_mirror.prefix}/.cnt/../../etc/passwd",
        f"{shared_mirror.prefix}/.cnt/vm/../../owner",
        f"{shared_mirror.prefix}/.cnt//etc/cron.d/owner",
        f"{shared_mirror.prefix}/.cnt/ns/../.namespace",
        f"{shared_mirror.prefix}/.cnt/vm/100/owner\n",
    )
    contents = contents_of(shared_mirror, Tampering(extra_keys=hostile))
    assert set(contents.foreign) == set(hostile)
    assert [snapshot.path for snapshot in contents.published] == PATHS
    assert {namespace.display for namespace in contents.namespaces} == {"", "a", "a/b", "empty"}
    assert not contents.is_empty


def test_an_empty_prefix_is_empty(shared_mirror: Mirror) -> None:
    assert contents_of(Mirror(shared_mirror.access, shared_mirror.bucket, "nothing")).is_empty


class _ManyKeys(PresentSource):
    """Lists these keys; there is nothing behind them."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys = keys

    async def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        await trio.lowlevel.checkpoint()
        for key in self._keys:
            yield StoredObject(key, 1, "", None)


def test_namespaces_and_foreign_keys_without_end_are_counted_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog_module, "MOST_EMPTY_NAMESPACES", 1000)
    keys = [f"m/.cnt/ns/n{number}/.namespace" for number in range(5000)]
    keys += [f"m/.cnt/vm/\x1b{number}" for number in range(5000)]
    keys += [f"m/.cnt/ns/used/{SECOND}/file-{number}.blob" for number in range(5000)]

    async def read() -> BucketContents:
        return await list_contents(_ManyKeys(keys), BucketLayout("m"))

    contents = trio.run(read)
    assert (len(contents.namespaces), contents.namespaces_left_out) == (1002, 4000)
    assert NamespaceId(("used",)) in contents.namespaces
    assert len(contents.foreign) == 100
    # What a manifest does not list is all that is remembered of files.
    assert [dict(files) for files in contents.snapshots.values()] == [{}]
