"""Which version of an object is the one of a time, whatever order a store lists them in."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mirrorfs.checking.reading import Limit
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.objectstore.answers import CheckBeginning, ListPage, StoredVersion, VersionMarker, VersionPage
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import ObjectMissing
from mirrorfs.objectstore.retry import AT_ONCE
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.recovery.source import PastSource

LAYOUT = BucketLayout("store")
CONTENT = LAYOUT.content_key("vm/100/owner")
CHUNK = LAYOUT.chunk_key(bytes(32))
BESIDE = CHUNK + ".0.bad"


@dataclass(frozen=True, slots=True)
class Change:
    """At a second of Unix time an object was put, or deleted."""

    second: int
    is_deletion: bool


LIMIT = Limit(1000)


class RememberedClient(S3Client):
    """Tells of two keys that have suffered these changes, in their order; each version holds its number."""

    def __init__(self, changes: Sequence[Change], page_size: int) -> None:
        super().__init__("bucket", StoreOptions())
        self.changes = changes
        self._page_size = page_size

    def get_object(self, key: str, maximum: int, check_beginning: CheckBeginning | None = None) -> bytes:
        if not self.changes or self.changes[-1].is_deletion:
            raise ObjectMissing(f"read {key}", "there is no such object")
        return str(len(self.changes) - 1).encode()

    def get_version(
        self, key: str, version_id: str, maximum: int, check_beginning: CheckBeginning | None = None
    ) -> bytes:
        assert not self.changes[int(version_id)].is_deletion
        return version_id.encode()

    def list_page(self, prefix: str, token: str | None) -> ListPage:
        return ListPage((), None)

    def list_versions_page(self, prefix: str, marker: VersionMarker | None) -> VersionPage:
        versions = [
            StoredVersion(
                key,
                str(number),
                0 if change.is_deletion else 1,
                "",
                float(change.second),
                is_latest=change is self.changes[-1],
                is_delete_marker=change.is_deletion,
            )
            for key in (CONTENT, CHUNK, BESIDE)
            if key.startswith(prefix)
            for number, change in reversed(list(enumerate(self.changes)))
        ]
        start = 0 if marker is None else int(marker.version_id or "0")
        page = versions[start : start + self._page_size]
        # As S3 gives them: in each page the contents, then the marks of deletions.
        page.sort(key=lambda version: version.is_delete_marker)
        end = start + self._page_size
        return VersionPage(tuple(page), VersionMarker("key", str(end)) if end < len(versions) else None)


def content_at(changes: Sequence[Change], second: int) -> bytes | None:
    """What stood there at the end of that second."""
    before = [(number, change) for number, change in enumerate(changes) if change.second <= second]
    return None if not before or before[-1][1].is_deletion else str(before[-1][0]).encode()


def look(changes: Sequence[Change], second: int, page_size: int, key: str, *, again: bool = False) -> bytes | None:
    async def get() -> bytes | None:
        store = ObjectStore(RememberedClient(changes, page_size), patience=AT_ONCE)
        source = PastSource(store, LAYOUT, second + 0.5)
        try:
            return bytes(await (source.get_again(key, LIMIT) if again else source.get(key, LIMIT)))
        except ObjectMissing:
            return None

    return trio.run(get)


def look_by_listing(changes: Sequence[Change], second: int, page_size: int) -> bytes | None:
    async def get() -> bytes | None:
        store = ObjectStore(RememberedClient(changes, page_size), patience=AT_ONCE)
        source = PastSource(store, LAYOUT, second + 0.5)
        async with aclosing(source.list(LAYOUT.content_prefix)) as objects:
            keys = [found.key async for found in objects]
        assert keys in ([], [CONTENT])
        return bytes(await source.get(CONTENT, LIMIT)) if keys else None

    return trio.run(get)


def histories(*, apart: bool) -> st.SearchStrategy[list[Change]]:
    """Changes in the order in which they happened, `apart` each in a second of its own."""
    return st.lists(st.integers(0, 8), max_size=8, unique=apart).flatmap(
        lambda seconds: st.lists(st.booleans(), min_size=len(seconds), max_size=len(seconds)).map(
            lambda kinds: [Change(second, kind) for second, kind in zip(sorted(seconds), kinds, strict=True)]
        )
    )


pages = st.integers(1, 4)


@given(histories(apart=True), st.integers(0, 9), pages)
def test_content_is_what_it_was(changes: list[Change], second: int, page_size: int) -> None:
    expected = content_at(changes, second)
    assert look(changes, second, page_size, CONTENT) == expected
    assert look(changes, second, page_size, CONTENT, again=True) == expected
    assert look_by_listing(changes, second, page_size) == expected


@given(histories(apart=False), st.integers(0, 9), pages)
def test_within_a_second_nothing_is_made_up(changes: list[Change], second: int, page_size: int) -> None:
    found = look_by_listing(changes, second, page_size)
    assert found == look(changes, second, page_size, CONTENT)
    last = max((change.second for change in changes if change.second <= second), default=None)
    within = [number for number, change in enumerate(changes) if change.second == last]
    puts = [number for number in within if not changes[number].is_deletion]
    if not within or within[-1] == len(changes) - 1:
        assert found == content_at(changes, second), "the store tells which is the latest of all"
    else:
        assert found == (str(puts[-1]).encode() if puts else None)


@given(histories(apart=True), st.integers(0, 9), pages)
def test_a_chunk_is_found_as_long_as_there_is_a_version(changes: list[Change], second: int, page_size: int) -> None:
    puts = [number for number, change in enumerate(changes) if not change.is_deletion]
    before = [number for number in puts if changes[number].second <= second]
    former = str((before or puts)[-1]).encode() if puts else None
    is_there = bool(changes) and not changes[-1].is_deletion
    assert look(changes, second, page_size, CHUNK) == (str(len(changes) - 1).encode() if is_there else former)
    assert look(changes, second, page_size, CHUNK, again=True) == former


def test_versions_of_an_unversioned_bucket_tell_nothing() -> None:
    client = RememberedClient([Change(1, is_deletion=False)], 1)
    client.list_versions_page = lambda prefix, marker: VersionPage(  # type: ignore[method-assign]
        (StoredVersion(CONTENT, "null", 1, "", 1.0, is_latest=True, is_delete_marker=False),), None
    )

    async def list_all() -> None:
        source = PastSource(ObjectStore(client, patience=AT_ONCE), LAYOUT, 5.0)
        async with aclosing(source.list(LAYOUT.content_prefix)) as objects:
            _ = [found async for found in objects]

    with pytest.raises(Exception, match="keeps no versions"):
        trio.run(list_all)
