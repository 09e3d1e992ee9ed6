"""What changed lately in a bucket, as the proxy saw it pass, and from that the store's answers of some seconds ago."""

from __future__ import annotations

import email.utils
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import parse_qs, quote, unquote_plus

NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"

HORIZON = 120.0
"""How many seconds of changes are remembered."""

_KEYS_REMEMBERED = 50_000
_LISTINGS_REMEMBERED = 1000


@dataclass(frozen=True, slots=True)
class Version:
    """An object as a HEAD tells of it: size in bytes, ETag in quotes, the header's CRC32C, when it was put."""

    size: int
    etag: str
    crc32c: str | None
    put_at: float

    def headers(self) -> list[tuple[str, str]]:
        """Those of the answer to a HEAD."""
        headers = [
            ("ETag", self.etag),
            ("Content-Length", str(self.size)),
            ("Content-Type", "binary/octet-stream"),
            ("Last-Modified", email.utils.formatdate(self.put_at, usegmt=True)),
        ]
        return headers if self.crc32c is None else [*headers, ("x-amz-checksum-crc32c", self.crc32c)]


@dataclass(frozen=True, slots=True)
class _Change:
    at: float
    key: str
    before: Version | None


@dataclass(frozen=True, slots=True)
class _Instant:
    """The time that a listing shows, and when its latest page was made; of the monotonic clock."""

    shown: float
    latest_page: float


class ChangeMemory:
    """The changes of the last `HORIZON` seconds and the latest version of the last keys; bounded, for any thread.

    A key that never passed is taken for one that was not there before it was put; so one that was put past the proxy
    must not be overwritten through it, if its staleness matters.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._changes: dict[str, deque[_Change]] = {}
        self._latest: OrderedDict[tuple[str, str], Version] = OrderedDict()
        self._listings: OrderedDict[tuple[str, str, str], _Instant] = OrderedDict()

    def note_put(self, bucket: str, key: str, version: Version) -> None:
        """To be called when the store has answered a PUT with success."""
        with self._lock:
            self._note(bucket, key, self._latest.pop((bucket, key), None))
            self._latest[bucket, key] = version
            if len(self._latest) > _KEYS_REMEMBERED:
                self._latest.popitem(last=False)

    def note_copy(self, bucket: str, source_key: str, key: str, put_at: float) -> None:
        """To be called when the store has answered a copy within the bucket with success."""
        with self._lock:
            source = self._latest.get((bucket, source_key))
            self._note(bucket, key, self._latest.pop((bucket, key), None))
            if source is not None:
                self._latest[bucket, key] = replace(source, put_at=put_at)

    def latest(self, bucket: str, key: str) -> Version | None:
        """What is known of an object."""
        with self._lock:
            return self._latest.get((bucket, key))

    def note_delete(self, bucket: str, keys: Iterable[str]) -> None:
        """To be called when the store has answered a deletion with success."""
        with self._lock:
            for key in keys:
                before = self._latest.pop((bucket, key), None)
                if before is not None:
                    self._note(bucket, key, before)

    def changed_within(self, bucket: str, key: str, seconds: float) -> tuple[Version | None] | None:
        """What the key was so long ago, in a tuple; None when it has not changed since, as far as is known."""
        instant = self._clock() - seconds
        with self._lock:
            for change in self._changes.get(bucket, ()):
                if change.key == key and change.at > instant:
                    return (change.before,)
        return None

    def age_listing(self, bucket: str, query: str, answer: bytes, seconds: float | None) -> bytes | None:
        """The answer to a ListObjectsV2 as it would have been `seconds` ago, or None when it would be the same.

        All pages of a listing show the same instant: that of its first page. `seconds` only counts for that one;
        None is for one that shall be current.
        """
        parameters = {name: values[0] for name, values in parse_qs(query, keep_blank_values=True).items()}
        prefix, now = parameters.get("prefix", ""), self._clock()
        root = ElementTree.fromstring(answer)
        with self._lock:
            instant = self._instant(bucket, prefix, parameters.get("continuation-token"), seconds)
            self._remember_listing(bucket, prefix, root.findtext(f"{{{NAMESPACE}}}NextContinuationToken"), instant, now)
            if instant is None or "delimiter" in parameters:
                return None
            page = _Page(root, encodes_keys=parameters.get("encoding-type") == "url")
            for key, before, at in self._differences(bucket, prefix, instant.shown):
                is_gone = (bucket, key) not in self._latest
                page.show(key, before, adds=is_gone and at > instant.latest_page)
        return page.serialized() if page.has_changed else None

    def _instant(self, bucket: str, prefix: str, token: str | None, seconds: float | None) -> _Instant | None:
        if token is not None:
            return self._listings.get((bucket, prefix, token))
        if seconds is None:
            return None
        shown = self._clock() - seconds
        return _Instant(shown, shown)

    def _remember_listing(
        self, bucket: str, prefix: str, next_token: str | None, instant: _Instant | None, now: float
    ) -> None:
        if next_token is None:
            return
        # A store may give the same token to the next listing, which may show another time.
        self._listings.pop((bucket, prefix, next_token), None)
        if instant is not None:
            self._listings[bucket, prefix, next_token] = _Instant(instant.shown, now)
        if len(self._listings) > _LISTINGS_REMEMBERED:
            self._listings.popitem(last=False)

    def _differences(self, bucket: str, prefix: str, instant: float) -> Iterator[tuple[str, Version | None, float]]:
        """The keys that changed since, what each was then, and when it changed last."""
        differences: dict[str, tuple[Version | None, float]] = {}
        for change in self._changes.get(bucket, ()):
            if change.at > instant and change.key.startswith(prefix):
                before, _ = differences.get(change.key, (change.before, 0.0))
                differences[change.key] = (before, change.at)
        for key, (before, at) in differences.items():
            yield key, before, at

    def _note(self, bucket: str, key: str, before: Version | None) -> None:
        changes = self._changes.setdefault(bucket, deque())
        now = self._clock()
        changes.append(_Change(now, key, before))
        while changes[0].at < now - HORIZON:
            changes.popleft()


class _Page:
    """One page of a listing that is being made older."""

    def __init__(self, root: ElementTree.Element, *, encodes_keys: bool) -> None:
        self.has_changed = False
        self._root = root
        self._encodes_keys = encodes_keys
        self._entries = {
            self._decoded(entry.findtext(f"{{{NAMESPACE}}}Key", "")): entry
            for entry in root.findall(f"{{{NAMESPACE}}}Contents")
        }

    def show(self, key: str, version: Version | None, *, adds: bool) -> None:
        """Have the key stand there as it was, or not at all; one that is not on this page comes only with `adds`."""
        entry = self._entries.get(key)
        if entry is None and (version is None or not adds):
            return
        self.has_changed = True
        if entry is None:
            entry = ElementTree.SubElement(self._root, f"{{{NAMESPACE}}}Contents")
        if version is None:
            self._root.remove(entry)
            return
        for child in list(entry):
            entry.remove(child)
        for name, text in (
            ("Key", quote(key) if self._encodes_keys else key),
            ("LastModified", time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(version.put_at))),
            ("ETag", version.etag),
            ("Size", str(version.size)),
            ("StorageClass", "STANDARD"),
        ):
            ElementTree.SubElement(entry, f"{{{NAMESPACE}}}{name}").text = text

    def serialized(self) -> bytes:
        """The page, with its number of keys put right."""
        count = self._root.find(f"{{{NAMESPACE}}}KeyCount")
        if count is not None:
            count.text = str(len(self._root.findall(f"{{{NAMESPACE}}}Contents")))
        serialized = ElementTree.tostring(self._root, "utf-8", xml_declaration=True, default_namespace=NAMESPACE)
        assert isinstance(serialized, bytes)
        return serialized

    def _decoded(self, key: str) -> str:
        return unquote_plus(key) if self._encodes_keys else key


def deleted_keys(request: bytes, answer: bytes) -> list[str]:
    """The keys that a DeleteObjects has deleted: those that were asked for and are not among the answer's errors."""
    failed = {error.findtext("{*}Key", "") for error in ElementTree.fromstring(answer).iterfind("{*}Error")}
    asked = (found.findtext("{*}Key", "") for found in ElementTree.fromstring(request).iterfind("{*}Object"))
    return [key for key in asked if key not in failed]
