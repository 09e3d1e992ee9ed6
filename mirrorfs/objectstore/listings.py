"""Listings and the results of deletions, as values; one that contradicts itself is not believed."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_plus

from mirrorfs.objectstore.answers import VersionMarker
from mirrorfs.objectstore.documents import children, etag, exact, moment, number, text, truth
from mirrorfs.objectstore.errors import StoreReason, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.refusals import Asked, Refusal

_MOST_ON_A_PAGE = 1000
"""https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectsV2.html"""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a listing; None for what the store does not say, or not in a way that can be understood."""

    key: str
    size: int | None
    etag: str
    modified_at: float | None


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """An entry of a listing of versions; see `Entry`."""

    key: str
    version_id: str
    size: int | None
    etag: str
    modified_at: float | None
    is_latest: bool
    is_delete_marker: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """What the answer to a DeleteObjects says: keys that are gone, keys with errors, and errors that name no key."""

    gone: frozenset[str]
    refused: Mapping[str, Refusal]
    of_unknown_keys: tuple[Refusal, ...]


def entries(asked: Asked, root: ElementTree.Element, prefix: str) -> tuple[Entry, ...]:
    """The objects on a page of a ListObjectsV2 of this prefix."""
    decode = _decoder(root)
    found = [
        Entry(
            decode(exact(child, "Key")),
            number(text(child, "Size")),
            etag(text(child, "ETag")),
            moment(text(child, "LastModified")),
        )
        for child in children(root, "Contents")
    ]
    _check_keys(asked, prefix, [entry.key for entry in found])
    return tuple(found)


def next_token(asked: Asked, root: ElementTree.Element, token: str | None) -> str | None:
    """Where the listing goes on, None where it ends. `token` is that of this page."""
    following = text(root, "NextContinuationToken")
    goes_on = _goes_on(asked, root, "Contents", is_continued=bool(following))
    if goes_on and following in ("", token):
        raise _broken_off(asked)
    return following if goes_on else None


def version_entries(asked: Asked, root: ElementTree.Element, prefix: str) -> tuple[VersionEntry, ...]:
    """The versions and marks of deletions on a page of a ListObjectVersions of this prefix."""
    decode = _decoder(root)
    found = [
        VersionEntry(
            decode(exact(child, "Key")),
            text(child, "VersionId") or "null",
            number(text(child, "Size")) if child.tag == "Version" else 0,
            etag(text(child, "ETag")),
            moment(text(child, "LastModified")),
            truth(text(child, "IsLatest")) is True,
            child.tag == "DeleteMarker",
        )
        for child in root
        if child.tag in ("Version", "DeleteMarker")
    ]
    _check_keys(asked, prefix, [entry.key for entry in found])
    return tuple(found)


def next_marker(asked: Asked, root: ElementTree.Element, marker: VersionMarker | None) -> VersionMarker | None:
    """Where the listing of versions goes on, None where it ends. `marker` is that of this page."""
    key = _decoder(root)(exact(root, "NextKeyMarker"))
    if not _goes_on(asked, root, "Version", is_continued=bool(key)):
        return None
    following = VersionMarker(key, text(root, "NextVersionIdMarker") or None)
    if following in (VersionMarker("", None), marker):
        raise _broken_off(asked)
    return following


def deletions(root: ElementTree.Element) -> Deleted:
    """What a DeleteObjects has done."""
    gone = frozenset(exact(child, "Key") for child in children(root, "Deleted"))
    refused: dict[str, Refusal] = {}
    of_unknown_keys: list[Refusal] = []
    for child in children(root, "Error"):
        key, refusal = exact(child, "Key"), Refusal(text(child, "Code") or "Unknown", text(child, "Message"))
        if key:
            refused[key] = refusal
        else:
            of_unknown_keys.append(refusal)
    return Deleted(gone, refused, tuple(of_unknown_keys))


def _decoder(root: ElementTree.Element) -> Callable[[str], str]:
    """boto3 asks for keys that are encoded, since XML cannot hold each; a store need not do so."""
    if text(root, "EncodingType").lower() == "url":
        return unquote_plus
    return str


def _check_keys(asked: Asked, prefix: str, keys: Iterable[str]) -> None:
    for key in keys:
        if not key or not key.startswith(prefix):
            found = "an entry without a key" if not key else "keys that were not asked for"
            raise StoreUnavailable(asked.action, f"the listing shows {found}", StoreReason.NOT_S3)


def _goes_on(asked: Asked, root: ElementTree.Element, entry: str, *, is_continued: bool) -> bool:
    said = truth(text(root, "IsTruncated"))
    if said is not None:
        return said
    if is_continued:
        return True
    if sum(1 for _ in children(root, entry)) >= (number(text(root, "MaxKeys")) or _MOST_ON_A_PAGE):
        # It is full, and nothing says that it is the last one.
        raise _broken_off(asked)
    return False


def _broken_off(asked: Asked) -> StoreRejected:
    return StoreRejected(asked.action, "the store breaks the listing off in the middle")
