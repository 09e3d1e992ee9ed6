"""P2: does the bucket hold just what the datastore does? With it what of P5 and P6 shows only beside the datastore:
quarantined chunks whose good objects must stay, and damaged files that must not have been uploaded."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Container, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness.bucket import ObjectVersion
from tests.harness.deleted import without_deleted
from tests.harness.findings import Violation
from tests.harness.formats import MANIFEST_NAME
from tests.harness.names import chunk_path, namespace_path, parse_snapshot_path
from tests.harness.reader import CHUNK_KEY, CheckedChunk, CheckedFile, ObjectReader
from tests.harness.scan import ChunkInspector, FoundDatastore, damaged_files, file_sha256

CONTENT = ".cnt/"
_OUTSIDE_CONTENT = (".chunks/", ".mirrorfs/", ".in-use")


@dataclass(frozen=True, slots=True)
class Listings:
    """Listings in the order in which they were taken: content, chunks, content again. Content is what stands below .cnt
    and the deleted snapshots that are kept. `taken_at` is before the first (Unix time)."""

    content_before: dict[str, ObjectVersion] = field(default_factory=dict)
    chunks: dict[str, ObjectVersion] = field(default_factory=dict)
    content: dict[str, ObjectVersion] = field(default_factory=dict)
    taken_at: float = 0.0

    def manifests(self) -> Iterator[str]:
        """Those that stood unchanged from the first to the last listing."""
        for key, version in self.content_before.items():
            if key.endswith(f"/{MANIFEST_NAME}") and self.content.get(key) == version:
                yield key


class DatastoreComparison:
    """One comparison of a quiet datastore with listings taken after it was scanned.

    What the listings seem to lack or to have too much is looked for directly before it is reported; with listings_lag
    so is what they show.
    """

    def __init__(
        self,
        reader: ObjectReader,
        listings: Listings,
        datastore: FoundDatastore,
        inspector: ChunkInspector,
        *,
        deep: bool,
        listings_lag: bool,
        strangers: Collection[str] = (),
    ) -> None:
        self._reader, self._bucket, self._listings = reader, reader.bucket, listings
        self._content = without_deleted(listings.content)
        self._datastore, self._inspector = datastore, inspector
        self._deep, self._listings_lag = deep, listings_lag
        self._strangers = strangers

    def run(self, pool: ThreadPoolExecutor) -> list[Violation]:
        """All violations of P2, and damaged files that were uploaded (P6)."""
        return [
            *self._audit_content(pool),
            *self._audit_chunk_set(pool),
            *self._audit_foreign_objects(),
            *self._audit_damaged_files(),
        ]

    # -- below .cnt ----------------------------------------------------------------------------------------

    def _audit_content(self, pool: ThreadPoolExecutor) -> list[Violation]:
        datastore, listed = self._datastore, self._content
        required = _required_files(datastore)
        markers = {f"{CONTENT}{namespace_path(namespace)}/.namespace" for namespace in datastore.namespaces}
        allowed = {f"{CONTENT}{path}" for group in datastore.groups for path in datastore.group_paths(group)}
        violations = [*self._audit_markers(markers)]
        for key in sorted(set(listed) - required - markers - allowed):
            if not _belongs_to_any(key, (*datastore.damaged, *self._strangers)) and self._bucket.head(key) is not None:
                violations.append(Violation("P2", key, f"stands in the bucket, but {_why_not(key, datastore)}"))
        compared = sorted(required | (allowed & set(listed)))
        differences = pool.map(lambda key: self._differs(key, required), compared)
        return violations + [found for found in differences if found is not None]

    def _audit_markers(self, markers: set[str]) -> Iterator[Violation]:
        for key in sorted(markers):
            version = self._version(key, self._content.get(key))
            if version is None:
                yield Violation("P2", key, "the namespace is in the datastore and its marker is not in the bucket")
            elif version.size != 0:
                yield Violation("P2", key, f"a namespace marker is empty; this one has {version.size} bytes")

    def _differs(self, key: str, required: Container[str]) -> Violation | None:
        version = self._version(key, self._content.get(key))
        if version is None:
            return Violation("P2", key, "is in the datastore and not in the bucket") if key in required else None
        try:
            expected = file_sha256(self._datastore.root / key[len(CONTENT) :])
        except FileNotFoundError:
            return Violation("P2", key, "its file went during the audit")
        except OSError:
            return None  # what cannot be read cannot have been mirrored: nothing to compare with
        if _has_sha256(expected, self._reader.file(key, version), lambda: self._reader.fresh_file(key)):
            return None
        return Violation("P2", key, "has other bytes than the datastore's file")

    def _version(self, key: str, listed: ObjectVersion | None) -> ObjectVersion | None:
        """What stands there now, as far as the listing can be trusted without asking again."""
        if listed is not None and not self._listings_lag:
            return listed
        return self._bucket.head(key)

    # -- chunks --------------------------------------------------------------------------------------------

    def _audit_chunk_set(self, pool: ThreadPoolExecutor) -> Iterable[Violation]:
        published = self._needed_digests()
        local = dict(self._inspector.sizes())
        self._inspector.forget_all_but(local)
        held = published | local.keys() | self._datastore.quarantined
        violations = []
        for key in sorted(self._listings.chunks):
            match = CHUNK_KEY.match(key)
            if match is None:
                violations.append(Violation("P2", key, "no chunk has this name"))
            elif match.group(2) not in held and self._bucket.head(key) is not None:
                sentence = "no published or kept snapshot references it and the datastore does not hold it"
                violations.append(Violation("P2", key, sentence))
        suspicious = [digest for digest in local if self._deep or self._chunk_deviates(digest, local[digest])]
        compared = pool.map(self._chunk_difference, suspicious)
        return violations + [found for found in compared if found is not None]

    def _chunk_deviates(self, digest: str, size: int) -> bool:
        version = self._listings.chunks.get(chunk_path(digest))
        return self._listings_lag or version is None or version.size != size

    def _chunk_difference(self, digest: str) -> Violation | None:
        """A sound chunk of the datastore must be in the bucket with the same bytes; an unsound one says nothing."""
        key = chunk_path(digest)
        path = self._datastore.root / key
        if self._inspector.problem(digest) is not None:
            return None
        version = self._version(key, self._listings.chunks.get(key))
        if version is None:
            return Violation("P2", key, "the datastore holds this chunk and the bucket does not")
        try:
            size = path.stat().st_size
            expected = file_sha256(path) if self._deep else ""
        except FileNotFoundError:
            return Violation("P2", key, "its file went during the audit")
        if version.size != size:
            return Violation("P2", key, f"has {version.size} bytes where the datastore's chunk has {size}")
        read_again = functools.partial(self._reader.fresh_chunk, key)
        if self._deep and not _has_sha256(expected, self._reader.chunk(key, version), read_again):
            return Violation("P2", key, "has other bytes than the datastore's chunk")
        return None

    def _needed_digests(self) -> set[str]:
        """Those of published snapshots and of deleted ones that are kept."""
        digests: set[str] = set()
        for key in self._listings.manifests():
            listed = self._reader.manifest(key, self._listings.content[key])
            if listed is None or isinstance(listed, str):
                continue
            for file in listed:
                file_key = f"{key.rpartition('/')[0]}/{file.name}"
                version = self._listings.content.get(file_key)
                checked = self._reader.file(file_key, version) if version else None
                digests.update(checked.digests if checked else ())
        return digests

    def _audit_foreign_objects(self) -> Iterator[Violation]:
        for key in self._bucket.list():
            if not key.startswith((CONTENT, *_OUTSIDE_CONTENT)):
                yield Violation("P2", key, "nothing has its place here in a mirror")

    # -- P6 ------------------------------------------------------------------------------------------------

    def _audit_damaged_files(self) -> Iterator[Violation]:
        """An object that equals a file which does not pass its checks was made of that file."""
        for snapshot in sorted(self._snapshots_with_damaged_files()):
            for name in damaged_files(self._datastore.root, snapshot):
                key = f"{CONTENT}{snapshot}/{name}"
                checked = self._reader.fresh_file(key)
                if checked is not None and checked.sha256 == _sha256_or_none(self._datastore.root / snapshot / name):
                    yield Violation("P6", key, "the datastore's file does not pass its checks, and was uploaded")

    def published_in_spite_of_damage(self, unpublished: dict[str, object]) -> Iterator[Violation]:
        """P6: snapshots that were damaged and not published at the last comparison, are as damaged now, and have been
        published since. unpublished holds what earlier comparisons left, and is brought up to date."""
        damage = {snapshot: self._damage_of(snapshot) for snapshot in self._snapshots_with_damaged_files()}
        known, still = dict(unpublished), {}
        for snapshot, identity in sorted(damage.items()):
            key = f"{CONTENT}{snapshot}/{MANIFEST_NAME}"
            if self._bucket.head(key) is None:
                still[snapshot] = identity
            elif known.get(snapshot) == identity:
                yield Violation("P6", key, "published, although a file of the snapshot does not pass its checks")
        unpublished.clear()
        unpublished.update(still)

    def _snapshots_with_damaged_files(self) -> set[str]:
        return set(self._datastore.damaged) - set(self._datastore.lacking_chunks)

    def _damage_of(self, snapshot: str) -> object:
        """Which bytes are damaged: the same answer means that nobody has repaired them meanwhile."""
        directory = self._datastore.root / snapshot
        names = sorted({MANIFEST_NAME, *damaged_files(self._datastore.root, snapshot)})
        return tuple((name, _sha256_or_none(directory / name)) for name in names)


def quarantine_violations(
    reader: ObjectReader, datastore: FoundDatastore, seen_good: Container[bytes]
) -> list[Violation]:
    """P5: the good object of a chunk that is quarantined locally and needed by a snapshot there must stay."""
    violations = []
    for digest in sorted(datastore.quarantined & datastore.references()):
        key = chunk_path(digest)
        if (datastore.root / key).exists() or bytes.fromhex(digest) not in seen_good:
            continue
        checked = reader.fresh_chunk(key)
        if checked is None:
            violations.append(
                Violation("P5", key, "the datastore has quarantined this chunk, and its good object is gone")
            )
        elif checked.problem is not None:
            sentence = (
                f"the datastore has quarantined this chunk, and its object is not good any more: {checked.problem}"
            )
            violations.append(Violation("P5", key, sentence))
    return violations


def _has_sha256(
    expected: str,
    checked: CheckedFile | CheckedChunk | None,
    read_again: Callable[[], CheckedFile | CheckedChunk | None],
) -> bool:
    if checked is not None and checked.sha256 == expected:
        return True
    again = read_again()
    return again is not None and again.sha256 == expected


def _sha256_or_none(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None


def _required_files(datastore: FoundDatastore) -> set[str]:
    required: set[str] = set()
    for snapshot in datastore.finished.values():
        paths = (*datastore.content_paths(snapshot), *datastore.group_paths(snapshot.name.group))
        required.update(f"{CONTENT}{path}" for path in paths)
    return required


def _belongs_to_any(key: str, snapshots: Iterable[str]) -> bool:
    return any(key.startswith(f"{CONTENT}{path}/") for path in snapshots)


def _why_not(key: str, datastore: FoundDatastore) -> str:
    """Why an object has no place below .cnt."""
    directory = key[len(CONTENT) :].rpartition("/")[0]
    try:
        parse_snapshot_path(directory)
    except ValueError:
        return "nothing in the datastore corresponds to it"
    if directory in datastore.finished:
        return "it is no part of its snapshot there"
    return "the datastore has no such finished snapshot"
