"""The independent auditor: reads a bucket and says where the promises P1 (complete), P2 (converging), P5 (careful with
deletes) and P6 (verified) are broken.

How it tells a broken promise from a change under way. A bucket cannot be read at one instant, and snapshots come and
go while it is being read. P1 speaks of every instant at which a manifest stands in the bucket. So the auditor looks
for an absence enclosed by two sightings of the same manifest:

1. It lists `.cnt` (and the deleted snapshots): these are the first sightings. It reads the manifests, and only then
   lists the chunks, and `.cnt` again. A manifest that is gone from or other in the second listing is left to the next
   audit.
2. What a manifest needs and the later listing lacks is only suspected. It is looked for directly: HEAD the manifest,
   HEAD the object, HEAD the object again, HEAD the manifest. Only if both sightings of the manifest show the very
   same version (ETag, size and time) is anything concluded: when the snapshot is being unpublished, its manifest
   has gone before the object did, so the last sighting fails and nothing is reported.
3. Object absent between the two sightings: violation. Object there now, though a listing between two `.cnt`
   listings with the same version of the manifest lacked it: it came late, if the store's own clock does not say
   that it was put in a second before its manifest (for files below `.cnt`: if it was put in a later second).
4. Wrong bytes are read again between two sightings of the same manifest before they are reported.

Where listings are declared to lag (`listings_lag`), they prove neither presence nor absence: the chunks of each version
of a manifest are looked for directly once, and only what is seen to be absent is reported.

All this holds for deleted snapshots that are kept (`.mirrorfs/deleted/`) as for published ones: they have
manifests too.

What the harness itself has taken away, as somebody else who uses the bucket, is no violation as long as the manifest
that lacks it is the one that stood there then; a manifest that was put since is judged as any other.

P5: the auditor remembers the last audit. A chunk that stood there then, is gone now (also when it is back by the time
it is looked for), and was referenced all the time by a manifest of one version, was deleted against the promise. That
a chunk was put again is no such proof: another compression of it replaces the object.

Bytes are remembered by key and ETag, so that auditing again costs two listings and what is new.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from tests.harness import formats
from tests.harness.bucket import Bucket, ObjectVersion
from tests.harness.convergence import CONTENT, DatastoreComparison, Listings, quarantine_violations
from tests.harness.deleted import (
    DELETED,
    RECORD_NAME,
    DeletedComparison,
    DeletedCopy,
    Grace,
    is_deleted_key,
    names_by_snapshot,
)
from tests.harness.findings import AuditCounts, Violation
from tests.harness.formats import MANIFEST_NAME, ManifestFile
from tests.harness.names import chunk_path
from tests.harness.reader import CHECKED_SUFFIXES, CHUNK_KEY, CheckedChunk, CheckedFile, ObjectReader
from tests.harness.scan import ChunkInspector, FoundDatastore, scan_datastore

__all__ = [
    "AuditCounts",
    "Auditor",
    "ContinuousAudit",
    "Violation",
    "audit_continuously",
    "audit_until_converged",
]

_CHUNKS = ".chunks/"
_SMALLEST_CHUNK = formats.PLAIN_HEADER_SIZE
# More than anybody reads; an audit of an empty bucket must not fill the memory sample after sample.
_MOST_VIOLATIONS = 10_000


@dataclass(slots=True)
class _Past:
    """What earlier audits leave to this one: the last complete listings, and, in all audits, which manifests' chunks
    were looked for directly, which chunks were seen good (as bytes), which damaged snapshots were unpublished, and when
    which snapshot was last seen published (Unix time)."""

    listings: Listings = field(default_factory=Listings)
    looked_for: set[tuple[str, str]] = field(default_factory=set)
    seen_good: set[bytes] = field(default_factory=set)
    unpublished: dict[str, object] = field(default_factory=dict)
    seen_published: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Chunks:
    """Digests by what the listing of one audit tells of their objects; put_again: newer than at the last audit."""

    present: frozenset[str]
    too_small: frozenset[str]
    put_again: frozenset[str]

    @classmethod
    def of(cls, now: dict[str, ObjectVersion], before: dict[str, ObjectVersion]) -> _Chunks:
        listed = {key.rpartition("/")[2]: (key, version) for key, version in now.items() if CHUNK_KEY.match(key)}
        return cls(
            frozenset(listed),
            frozenset(digest for digest, (_, version) in listed.items() if version.size < _SMALLEST_CHUNK),
            frozenset(
                digest
                for digest, (key, version) in listed.items()
                if key in before and before[key].put_at < version.put_at
            ),
        )


class Auditor:
    """Audits one mirror. deep reads every object (once per version) instead of trusting its presence; reads go through
    `threads` threads. listings_lag: the store's listings may be behind its objects. Any thread; audits follow one
    another, and each knows the ones before: use one auditor throughout, or P5 is not seen.

    Every audit raises ClientError or BotoCoreError when the store fails; the next one then compares with the last that
    did not.
    """

    def __init__(self, bucket: Bucket, *, deep: bool = False, listings_lag: bool = False, threads: int = 8) -> None:
        self.bucket = bucket
        self.counts = AuditCounts()
        self._deep, self._listings_lag, self._threads = deep, listings_lag, threads
        self._reader = ObjectReader(bucket, self.counts)
        self._past = _Past()
        self._inspectors: dict[Path, ChunkInspector] = {}
        self._mutex = threading.Lock()
        self._one_at_a_time = threading.RLock()

    @property
    def remembered(self) -> int:
        """How many versions of objects are known; this follows what stands in the bucket, however long the run."""
        return self._reader.remembered

    def seen_published(self, path: str) -> float | None:
        """When the manifest of a snapshot was last seen to stand (Unix time)."""
        return self._past.seen_published.get(path)

    def audit_bucket(self) -> list[Violation]:
        """P1, and what is seen of P5 and (if deep) P6, from the bucket alone, at any time."""
        with self._one_at_a_time, ThreadPoolExecutor(self._threads) as pool:
            return self._audit_bucket(self._take_listings(pool), pool)

    def audit_datastore(
        self, path: str | os.PathLike[str], grace: Grace | None = None, strangers: Collection[str] = ()
    ) -> list[Violation]:
        """Everything, against a datastore's directory (the mount or what is behind it). For quiet times: what has not
        been carried over yet is a violation of P2. `grace` says which deleted snapshots are to be kept. Below the paths
        of `strangers` somebody else has put what the datastore has not, and it is no matter here.

        A snapshot that is damaged in the datastore may be in the bucket (from better days) or not.
        """
        with self._one_at_a_time:
            datastore, inspector = self._scan(path)
            with ThreadPoolExecutor(self._threads) as pool:
                listings = self._take_listings(pool)
                violations = self._audit_bucket(listings, pool)
                comparison = DatastoreComparison(
                    self._reader,
                    listings,
                    datastore,
                    inspector,
                    deep=self._deep,
                    listings_lag=self._listings_lag,
                    strangers=strangers,
                )
                violations += comparison.run(pool)
                violations += comparison.published_in_spite_of_damage(self._past.unpublished)
            copies = tuple(self._deleted_copies(listings))
            violations += DeletedComparison(self.bucket, copies, datastore, self._past.seen_published, grace).run()
            return violations + self._audit_quarantine(datastore)

    def _deleted_copies(self, listings: Listings) -> Iterator[DeletedCopy]:
        for path, names in names_by_snapshot(filter(is_deleted_key, listings.content)).items():
            manifest, record = f"{DELETED}{path}/{MANIFEST_NAME}", f"{DELETED}{path}/{RECORD_NAME}"
            listed = self._reader.manifest(manifest, listings.content[manifest]) if MANIFEST_NAME in names else None
            checked = self._reader.file(record, listings.content[record]) if RECORD_NAME in names else None
            files = None if listed is None or isinstance(listed, str) else tuple(file.name for file in listed)
            yield DeletedCopy(path, names, files, None if checked is None else checked.deletion)

    def deleted_snapshots(self) -> set[str]:
        """The paths of the deleted snapshots that are kept in the bucket now."""
        manifest = f"/{MANIFEST_NAME}"
        return {key[len(DELETED) : -len(manifest)] for key in self.bucket.list(DELETED) if key.endswith(manifest)}

    def audit_quarantine(self, path: str | os.PathLike[str]) -> list[Violation]:
        """P5 alone: what a datastore's snapshots need, has quarantined (.bad) and was seen good in the bucket, must
        still stand there with good bytes. At any time at which nothing is forgotten or collected."""
        with self._one_at_a_time:
            return self._audit_quarantine(self._scan(path)[0])

    def _scan(self, path: str | os.PathLike[str]) -> tuple[FoundDatastore, ChunkInspector]:
        root = Path(path)
        inspector = self._inspectors.setdefault(root, ChunkInspector(root))
        return scan_datastore(root, inspector), inspector

    def _audit_quarantine(self, datastore: FoundDatastore) -> list[Violation]:
        return quarantine_violations(self._reader, datastore, self._past.seen_good)

    # -- one audit -----------------------------------------------------------------------------------------

    def _take_listings(self, pool: ThreadPoolExecutor) -> Listings:
        taken_at = time.time()
        before = self._list_content()
        manifests = [key for key in before if key.endswith(f"/{MANIFEST_NAME}")]
        list(pool.map(lambda key: self._reader.manifest(key, before[key]), manifests))
        return Listings(before, self.bucket.list(_CHUNKS), self._list_content(), taken_at)

    def _list_content(self) -> dict[str, ObjectVersion]:
        return self.bucket.list(CONTENT) | self.bucket.list(DELETED)

    def _audit_bucket(self, listings: Listings, pool: ThreadPoolExecutor) -> list[Violation]:
        self.counts.audits += 1
        judged = list(listings.manifests())
        manifests = sum(key.endswith(f"/{MANIFEST_NAME}") for key in listings.content_before)
        self.counts.left_open += manifests - len(judged)
        chunks = _Chunks.of(listings.chunks, self._past.listings.chunks)
        per_manifest = pool.map(lambda key: self._audit_manifest(key, listings, chunks), judged)
        violations = [violation for found in per_manifest for violation in found]
        if self._deep:
            violations += self._audit_bytes(listings, pool)
        self._remember(listings, violations)
        return violations

    def _remember(self, listings: Listings, violations: list[Violation]) -> None:
        past = self._past
        self._reader.forget_all_but(
            past.listings.content, past.listings.chunks, listings.content_before, listings.content, listings.chunks
        )
        versions = listings.content_before | listings.content
        past.looked_for = {
            (key, etag) for key, etag in past.looked_for if key in versions and versions[key].etag == etag
        }
        damaged = {violation.key for violation in violations}
        past.seen_good.update(
            bytes.fromhex(key.rpartition("/")[2])
            for key, version in listings.chunks.items()
            if version.size >= _SMALLEST_CHUNK and key not in damaged and CHUNK_KEY.match(key)
        )
        past.seen_published.update(
            (key[len(CONTENT) :].rpartition("/")[0], listings.taken_at)
            for key in versions
            if key.startswith(CONTENT) and key.endswith(f"/{MANIFEST_NAME}")
        )
        past.listings = listings

    def _audit_manifest(self, key: str, listings: Listings, chunks: _Chunks) -> list[Violation]:
        listed = self._reader.manifest(key, listings.content[key])
        with self._mutex:
            self.counts.manifests += 1
        if listed is None:
            return []
        if isinstance(listed, str):
            return [Violation("P1", key, listed)] if self._manifest_is_still(key, listings) else []
        violations = [*self._audit_record(key, listings)] if is_deleted_key(key) else []
        digests: frozenset[str] = frozenset()
        for file in listed:
            found, named = self._audit_file(key, file, listings)
            violations += found
            digests |= named
        with self._mutex:
            self.counts.files += len(listed)
            self.counts.chunk_references += len(digests)
        return [*violations, *self._audit_references(key, digests, chunks, listings)]

    def _audit_record(self, manifest_key: str, listings: Listings) -> Iterator[Violation]:
        """What says since when and until when a deleted snapshot is kept is as needed as the snapshot's own files."""
        key = f"{manifest_key.rpartition('/')[0]}/{RECORD_NAME}"
        version = listings.content.get(key)
        checked = self._reader.file(key, version) if version is not None else None
        if checked is None:
            yield from self._confirm_absence(manifest_key, key, listings)
        elif checked.problem is not None:
            again = self._reader.fresh_file(key)
            if again is not None and again.problem is not None and self._manifest_is_still(manifest_key, listings):
                yield Violation("P1", key, again.problem)

    def _audit_file(
        self, manifest_key: str, listed: ManifestFile, listings: Listings
    ) -> tuple[list[Violation], frozenset[str]]:
        """What is wrong with a listed file, and the digests that it names."""
        key = f"{manifest_key.rpartition('/')[0]}/{listed.name}"
        version = listings.content.get(key)
        checked = self._reader.file(key, version) if version is not None else None
        if checked is None:
            return list(self._confirm_absence(manifest_key, key, listings)), frozenset()
        if checked.disagreement(listed) is None:
            return [], checked.digests
        first = self.bucket.head(manifest_key)
        again = self._reader.fresh_file(key)
        last = self.bucket.head(manifest_key)
        problem = "missing" if again is None else again.disagreement(listed)
        if problem is None and again is not None:
            return [], again.digests
        if first is None or first != last or not _is_same_object(first, listings.content[manifest_key]):
            return [], frozenset()
        return [Violation("P1", key, f"{problem}, though {manifest_key} lists it")], frozenset()

    def _audit_references(
        self, manifest_key: str, digests: frozenset[str], chunks: _Chunks, listings: Listings
    ) -> Iterator[Violation]:
        if self._stood_all_the_time(manifest_key, listings):
            with self._mutex:
                self.counts.rewritten += len(digests & chunks.put_again)
        for digest in sorted(digests - chunks.present):
            yield from self._confirm_absence(manifest_key, chunk_path(digest), listings)
        for digest in sorted(digests & chunks.too_small):
            if self._manifest_is_still(manifest_key, listings):
                key = chunk_path(digest)
                yield Violation("P1", key, f"{listings.chunks[key].size} bytes are no chunk; {manifest_key} needs it")
        if self._listings_lag:
            yield from self._look_for_once(manifest_key, digests & chunks.present, listings)

    def _look_for_once(self, manifest_key: str, digests: frozenset[str], listings: Listings) -> Iterator[Violation]:
        """A listing that lags may show what is long gone."""
        version = (manifest_key, listings.content[manifest_key].etag)
        if version in self._past.looked_for:
            return
        for digest in sorted(digests):
            if self.bucket.head(chunk_path(digest)) is None:
                yield from self._confirm_absence(manifest_key, chunk_path(digest), listings)
        with self._mutex:
            self._past.looked_for.add(version)

    def _stood_all_the_time(self, manifest_key: str, listings: Listings) -> bool:
        """Whether the last audit has seen the manifest in the same version."""
        return self._past.listings.content.get(manifest_key) == listings.content[manifest_key]

    # -- suspicion to certainty ----------------------------------------------------------------------------

    def _confirm_absence(self, manifest_key: str, key: str, listings: Listings) -> Iterator[Violation]:
        first = self.bucket.head(manifest_key)
        came, again = self.bucket.head(key), self.bucket.head(key)
        last = self.bucket.head(manifest_key)
        if first is None or first != last or not _is_same_object(first, listings.content[manifest_key]):
            return
        if self.bucket.was_taken(key, manifest_key, first):
            return
        stood = key in self._past.listings.chunks and self._stood_all_the_time(manifest_key, listings)
        if came is None or again is None:
            yield Violation("P1", key, f"missing, though {manifest_key} needs it")
            if stood:
                yield Violation("P5", key, f"it stood there and was deleted, though {manifest_key} needs it")
        elif self._listings_lag:
            with self._mutex:
                self.counts.undecided += came.put_at > first.put_at
        elif came.put_at > first.put_at or (key.startswith(_CHUNKS) and came.put_at == first.put_at):
            yield Violation("P1", key, f"came only after {manifest_key}, which needs it")
            if stood:
                yield Violation("P5", key, f"it was deleted and put again, while {manifest_key} needed it")

    def _manifest_is_still(self, key: str, listings: Listings) -> bool:
        now = self.bucket.head(key)
        return now is not None and _is_same_object(now, listings.content[key])

    # -- P6 ------------------------------------------------------------------------------------------------

    def _audit_bytes(self, listings: Listings, pool: ThreadPoolExecutor) -> list[Violation]:
        """Every object is what its name says, whoever references it; one that goes or changes meanwhile is no matter
        here (whether it may is the reference check's)."""
        chunks = [key for key in listings.chunks if CHUNK_KEY.match(key)]
        files = [key for key in listings.content if key.endswith(CHECKED_SUFFIXES)]
        found = [
            *pool.map(lambda key: self._damage_of_chunk(key, listings.chunks[key]), chunks),
            *pool.map(lambda key: self._damage_of_file(key, listings.content[key]), files),
        ]
        return [violation for violation in found if violation is not None]

    def _damage_of_chunk(self, key: str, version: ObjectVersion) -> Violation | None:
        checked = self._reader.chunk(key, version)
        if checked is None or checked.problem is None:
            return None
        return self._confirm_damage(key, lambda: self._reader.fresh_chunk(key))

    def _damage_of_file(self, key: str, version: ObjectVersion) -> Violation | None:
        checked = self._reader.file(key, version)
        if checked is None or checked.problem is None:
            return None
        return self._confirm_damage(key, lambda: self._reader.fresh_file(key))

    def _confirm_damage(
        self, key: str, read_again: Callable[[], CheckedFile | CheckedChunk | None]
    ) -> Violation | None:
        first = self.bucket.head(key)
        again = read_again()
        if again is None or again.problem is None or first is None or self.bucket.head(key) != first:
            return None
        return Violation("P6", key, again.problem)


def _is_same_object(one: ObjectVersion, other: ObjectVersion) -> bool:
    """A listing may tell an object's time a second off from HEAD (rounding), so only what holds bytes counts."""
    return one.etag == other.etag and one.size == other.size


# -- auditing over time ------------------------------------------------------------------------------------


class ContinuousAudit(threading.Thread):
    """Audits the bucket again and again until the event is set. Samples during which the store could not be read are
    counted apart: they say nothing. Read violations, samples and unreadable at any time."""

    def __init__(self, auditor: Auditor, stop: threading.Event, *, pause_seconds: float = 0.1) -> None:
        super().__init__(name="continuous-audit", daemon=True)
        self.violations: list[Violation] = []
        self.samples = 0
        self.unreadable = 0
        self.failure: BaseException | None = None
        self._seen: set[Violation] = set()
        self._auditor, self._stop_event, self._pause = auditor, stop, pause_seconds
        self._looks = threading.Lock()

    def run(self) -> None:
        try:
            while True:
                self._sample()
                if self._stop_event.wait(self._pause):
                    self._sample()
                    return
        except BaseException as error:
            self.failure = error
            raise

    def let_look_end(self) -> None:
        """Wait until nothing is left of a look at the bucket that has begun before."""
        with self._looks:
            pass

    def _sample(self) -> None:
        try:
            with self._looks:
                found = self._auditor.audit_bucket()
        except (ClientError, BotoCoreError):
            self.unreadable += 1
            return
        self.samples += 1
        for violation in found:
            if violation not in self._seen and len(self._seen) < _MOST_VIOLATIONS:
                self._seen.add(violation)
                self.violations.append(violation)

    def finish(self, timeout_seconds: float = 60.0) -> list[Violation]:
        """Stop, take a last sample, and give all violations seen. Raises what made the audit itself fail."""
        self._stop_event.set()
        self.join(timeout_seconds)
        if self.is_alive():
            raise TimeoutError("the continuous audit does not end")
        if self.failure is not None:
            raise self.failure
        return list(self.violations)


def audit_continuously(auditor: Auditor, stop_event: threading.Event, *, pause_seconds: float = 0.1) -> ContinuousAudit:
    """Start auditing P1, P5 and P6 in a thread. End with finish() of what this returns."""
    audit = ContinuousAudit(auditor, stop_event, pause_seconds=pause_seconds)
    audit.start()
    return audit


def audit_until_converged(
    auditor: Auditor,
    path: str | os.PathLike[str],
    *,
    timeout_seconds: float,
    grace: Grace | None = None,
    strangers: Collection[str] = (),
    pause_seconds: float = 0.25,
    on_sample: Callable[[list[Violation]], None] | None = None,
) -> list[Violation]:
    """Audit everything until there is nothing to report, or something that waiting does not mend (not P2) is, or the
    time is over. Gives the last violations. Raises ClientError or BotoCoreError when the store fails at the end too."""
    over = threading.Event()
    timer = threading.Timer(timeout_seconds, over.set)
    timer.daemon = True
    timer.start()
    try:
        while True:
            is_last = over.is_set()
            try:
                violations = auditor.audit_datastore(path, grace, strangers)
            except (ClientError, BotoCoreError):
                if is_last:
                    raise
                over.wait(pause_seconds)
                continue
            if on_sample is not None:
                on_sample(violations)
            if is_last or not violations or any(found.promise != "P2" for found in violations):
                return violations
            over.wait(pause_seconds)
    finally:
        timer.cancel()
