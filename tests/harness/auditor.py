"""The independent auditor: reads a bucket and says where the promises P1 (complete) and P2 (converging) are broken.

How it tells a broken promise from a change under way. A bucket cannot be read at one instant, and snapshots come and
go while it is being read. P1 speaks of every instant at which a manifest stands in the bucket. So the auditor looks
for an absence enclosed by two sightings of the same manifest:

1. It lists `.cnt`: these are the first sightings. It reads the manifests, and only then lists the chunks, and `.cnt`
   again. A manifest that is gone from or other in the second listing is left to the next audit.
2. What a manifest needs and the later listing lacks is only suspected. It is looked for directly: HEAD the manifest,
   HEAD the object, HEAD the object again, HEAD the manifest. Only if both sightings of the manifest show the very
   same version (ETag, size and time) is anything concluded: when the snapshot is being unpublished, its manifest
   has gone before the object did, so the last sighting fails and nothing is reported.
3. Object absent between the two sightings: violation. Object there now, though the chunk listing between two `.cnt`
   listings with the same version of the manifest lacked it: it came late, if the store's own clock does not say
   that it was put in a second before its manifest. Where listings are declared to lag (`listings_lag`), and for files
   below `.cnt`, only an object put in a later second than its manifest counts as late.
4. Wrong bytes are read again between two sightings of the same manifest before they are reported.

Bytes are remembered by key and ETag, so that auditing again costs two listings and what is new.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from botocore.exceptions import BotoCoreError, ClientError

from tests.harness import formats
from tests.harness.bucket import Bucket, ObjectVersion
from tests.harness.formats import MANIFEST_NAME, FormatError, ManifestFile
from tests.harness.names import chunk_path, namespace_path, parse_snapshot_path
from tests.harness.scan import ChunkInspector, FoundDatastore, file_sha256, scan_datastore

_CONTENT = ".cnt/"
_CHUNKS = ".chunks/"
_CHUNK_KEY = re.compile(r"\.chunks/([0-9a-f]{4})/(\1[0-9a-f]{60})\Z")
_OUTSIDE_CONTENT = (".chunks/", ".mirrorfs/", ".in-use")
_SMALLEST_CHUNK = formats.PLAIN_HEADER_SIZE


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken promise: P1 or P2, the object's key (relative to the mirror's name), and what is wrong with it."""

    promise: str
    key: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.promise} {self.key}: {self.sentence}"


@dataclass(slots=True)
class AuditCounts:
    """How much was looked at since the auditor was made; left_open: manifests that changed under the audit."""

    audits: int = 0
    manifests: int = 0
    files: int = 0
    chunk_references: int = 0
    chunks_read: int = 0
    bytes_read: int = 0
    left_open: int = 0


@dataclass(frozen=True, slots=True)
class _CheckedFile:
    """What reading an object showed, apart from what any manifest says of it."""

    sha256: str
    digests: tuple[str, ...] = ()
    csum: str = ""
    size: int = 0
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class _CheckedChunk:
    """What reading a chunk object showed: SHA-256 of the object's bytes, and what is wrong with them."""

    sha256: str
    problem: str | None


@dataclass(frozen=True, slots=True)
class _Listings:
    """Listings in the order in which they were taken: .cnt, chunks, .cnt again."""

    content_before: dict[str, ObjectVersion]
    chunks: dict[str, ObjectVersion]
    content: dict[str, ObjectVersion]

    def manifests(self) -> Iterator[str]:
        """Those that stood unchanged from the first to the last listing."""
        for key, version in self.content_before.items():
            if key.endswith(f"/{MANIFEST_NAME}") and self.content.get(key) == version:
                yield key


@dataclass(slots=True)
class _Memory:
    """What is known of objects by key and ETag. Any thread."""

    files: dict[tuple[str, str], _CheckedFile] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[ManifestFile, ...] | str] = field(default_factory=dict)
    chunks: dict[tuple[str, str], _CheckedChunk] = field(default_factory=dict)


class Auditor:
    """Audits one mirror. deep reads every chunk object (once per version) instead of trusting its presence; reads go
    through `threads` threads. listings_lag: the store's listings may be behind its objects."""

    def __init__(self, bucket: Bucket, *, deep: bool = False, listings_lag: bool = False, threads: int = 8) -> None:
        self.bucket = bucket
        self.counts = AuditCounts()
        self._deep, self._listings_lag, self._threads = deep, listings_lag, threads
        self._memory = _Memory()
        self._inspectors: dict[Path, ChunkInspector] = {}
        self._mutex = threading.Lock()

    # -- P1 ------------------------------------------------------------------------------------------------

    def audit_bucket(self) -> list[Violation]:
        """P1, from the bucket alone, at any time. Raises ClientError or BotoCoreError when the store fails."""
        with ThreadPoolExecutor(self._threads) as pool:
            return self._audit_bucket(self._take_listings(pool), pool)

    def _take_listings(self, pool: ThreadPoolExecutor) -> _Listings:
        before = self.bucket.list(_CONTENT)
        manifests = [key for key in before if key.endswith(f"/{MANIFEST_NAME}")]
        list(pool.map(lambda key: self._manifest(key, before[key]), manifests))
        return _Listings(before, self.bucket.list(_CHUNKS), self.bucket.list(_CONTENT))

    def _audit_bucket(self, listings: _Listings, pool: ThreadPoolExecutor) -> list[Violation]:
        self.counts.audits += 1
        judged = list(listings.manifests())
        self.counts.left_open += len(
            [key for key in listings.content_before if key.endswith(f"/{MANIFEST_NAME}") and key not in judged]
        )
        per_manifest = pool.map(lambda key: self._audit_manifest(key, listings), judged)
        violations = [violation for found in per_manifest for violation in found]
        if self._deep:
            violations += self._audit_chunk_bytes(listings, pool)
        return violations

    def _audit_manifest(self, key: str, listings: _Listings) -> list[Violation]:
        listed = self._manifest(key, listings.content[key])
        with self._mutex:
            self.counts.manifests += 1
        if listed is None:
            return []
        if isinstance(listed, str):
            return [Violation("P1", key, listed)] if self._manifest_is_still(key, listings) else []
        violations = []
        directory = key.rpartition("/")[0]
        digests: set[str] = set()
        for file in listed:
            file_key = f"{directory}/{file.name}"
            problem = self._file_problem(file_key, file, listings, digests)
            if problem is not None:
                violations += self._confirm_file(key, file_key, file, listings, problem)
        with self._mutex:
            self.counts.files += len(listed)
            self.counts.chunk_references += len(digests)
        violations += self._audit_references(key, digests, listings)
        return violations

    def _audit_references(self, manifest_key: str, digests: set[str], listings: _Listings) -> Iterator[Violation]:
        for digest in sorted(digests):
            key = chunk_path(digest)
            version = listings.chunks.get(key)
            if version is None:
                yield from self._confirm_absence(manifest_key, key, listings)
            elif version.size < _SMALLEST_CHUNK and self._manifest_is_still(manifest_key, listings):
                yield Violation("P1", key, f"{version.size} bytes are no chunk; {manifest_key} needs it")

    def _file_problem(self, key: str, listed: ManifestFile, listings: _Listings, digests: set[str]) -> str | None:
        version = listings.content.get(key)
        if version is None:
            return "missing"
        checked = self._file(key, version)
        if checked is None:
            return "missing"
        problem = _disagreement(checked, listed)
        if problem is None:
            digests.update(checked.digests)
        return problem

    # -- suspicion to certainty ----------------------------------------------------------------------------

    def _confirm_file(
        self, manifest_key: str, key: str, listed: ManifestFile, listings: _Listings, problem: str
    ) -> list[Violation]:
        if problem == "missing":
            return list(self._confirm_absence(manifest_key, key, listings))
        first = self.bucket.head(manifest_key)
        again = self.bucket.get(key)
        last = self.bucket.head(manifest_key)
        if first is None or first != last or not _is_same_object(first, listings.content[manifest_key]):
            return []
        if again is not None:
            version, raw = again
            checked = _check_file(key, raw)
            with self._mutex:
                self._memory.files[(key, version.etag)] = checked
            fresh = _disagreement(checked, listed)
            if fresh is None:
                return []
            problem = fresh
        return [Violation("P1", key, f"{problem}, though {manifest_key} lists it")]

    def _confirm_absence(self, manifest_key: str, key: str, listings: _Listings) -> Iterator[Violation]:
        first = self.bucket.head(manifest_key)
        looks = (self.bucket.head(key), self.bucket.head(key))
        last = self.bucket.head(manifest_key)
        if first is None or first != last or not _is_same_object(first, listings.content[manifest_key]):
            return
        if looks == (None, None):
            yield Violation("P1", key, f"missing, though {manifest_key} needs it")
            return
        came = next(version for version in looks if version is not None)
        listed_between = key.startswith(_CHUNKS) and not self._listings_lag
        if came.put_at > first.put_at or (listed_between and came.put_at == first.put_at):
            yield Violation("P1", key, f"came only after {manifest_key}, which needs it")

    def _manifest_is_still(self, key: str, listings: _Listings) -> bool:
        now = self.bucket.head(key)
        return now is not None and _is_same_object(now, listings.content[key])

    # -- reading, each version once --------------------------------------------------------------------------

    def _manifest(self, key: str, version: ObjectVersion) -> tuple[ManifestFile, ...] | str | None:
        """The files that a manifest lists, or what is wrong with it, or None when it has gone or changed."""
        known = self._memory.manifests.get((key, version.etag))
        if known is not None:
            return known
        answer = self._get(key)
        if answer is None:
            return None
        found, raw = answer
        parsed: tuple[ManifestFile, ...] | str
        try:
            parsed = formats.manifest_files(raw)
        except FormatError as error:
            parsed = f"the manifest is damaged: {error}"
        with self._mutex:
            self._memory.manifests[(key, found.etag)] = parsed
            self._memory.files[(key, found.etag)] = _CheckedFile(hashlib.sha256(raw).hexdigest())
        return parsed if found.etag == version.etag else None

    def _file(self, key: str, version: ObjectVersion) -> _CheckedFile | None:
        known = self._memory.files.get((key, version.etag))
        if known is not None:
            return known
        answer = self._get(key)
        if answer is None:
            return None
        checked = _check_file(key, answer[1])
        with self._mutex:
            self._memory.files[(key, answer[0].etag)] = checked
        return checked

    def _get(self, key: str) -> tuple[ObjectVersion, bytes] | None:
        answer = self.bucket.get(key)
        if answer is not None:
            with self._mutex:
                self.counts.bytes_read += len(answer[1])
        return answer

    def _audit_chunk_bytes(self, listings: _Listings, pool: ThreadPoolExecutor) -> list[Violation]:
        """Every chunk object is what its name says, whoever references it; an object that goes meanwhile is no
        matter here (whether it may is the reference check's)."""
        checked = pool.map(lambda item: self._chunk(*item), listings.chunks.items())
        return [
            Violation("P1", key, chunk.problem)
            for key, chunk in zip(listings.chunks, checked, strict=True)
            if chunk is not None and chunk.problem is not None
        ]

    def _chunk(self, key: str, version: ObjectVersion) -> _CheckedChunk | None:
        """None when the object has gone or is no chunk by its name (which P2 reports)."""
        match = _CHUNK_KEY.match(key)
        if match is None:
            return None
        if (key, version.etag) in self._memory.chunks:
            return self._memory.chunks[(key, version.etag)]
        answer = self._get(key)
        if answer is None:
            return None
        problem = None
        try:
            formats.check_chunk(answer[1], match.group(2))
        except FormatError as error:
            problem = f"the chunk is damaged: {error}"
        checked = _CheckedChunk(hashlib.sha256(answer[1]).hexdigest(), problem)
        with self._mutex:
            self.counts.chunks_read += 1
            self._memory.chunks[(key, answer[0].etag)] = checked
        return checked

    # -- P2 ------------------------------------------------------------------------------------------------

    def audit_datastore(self, path: str | os.PathLike[str]) -> list[Violation]:
        """P1 and P2 against a datastore's directory (the mount or what is behind it). For quiet times: what has not
        been carried over yet is a violation of P2.

        A snapshot that is damaged in the datastore may be in the bucket (from better days) or not. Raises
        ClientError or BotoCoreError when the store fails.
        """
        root = Path(path)
        inspector = self._inspectors.setdefault(root, ChunkInspector(root))
        datastore = scan_datastore(root, inspector)
        with ThreadPoolExecutor(self._threads) as pool:
            listings = self._take_listings(pool)
            violations = self._audit_bucket(listings, pool)
            violations += self._audit_content(datastore, listings, pool)
            violations += self._audit_chunk_set(datastore, inspector, listings, pool)
        violations += self._audit_foreign_objects()
        return violations

    def _audit_content(
        self, datastore: FoundDatastore, listings: _Listings, pool: ThreadPoolExecutor
    ) -> list[Violation]:
        required = _required_files(datastore)
        markers = {f"{_CONTENT}{namespace_path(namespace)}/.namespace" for namespace in datastore.namespaces}
        allowed = {f"{_CONTENT}{path}" for group in datastore.groups for path in datastore.group_paths(group)}
        violations = list(self._audit_markers(markers, listings))
        for key in sorted(set(listings.content) - set(required) - markers):
            if key not in allowed and not _belongs_to_any(key, datastore.damaged):
                violations.append(Violation("P2", key, f"stands in the bucket, but {_why_not(key, datastore)}"))
        for key in sorted(set(required) - set(listings.content)):
            violations.append(Violation("P2", key, "is in the datastore and not in the bucket"))
        present = sorted((set(required) | allowed) & set(listings.content))
        differences = pool.map(lambda key: self._differs(key, datastore.root / key[len(_CONTENT) :], listings), present)
        violations += [found for found in differences if found is not None]
        return violations

    def _audit_markers(self, markers: set[str], listings: _Listings) -> Iterator[Violation]:
        for key in sorted(markers):
            version = listings.content.get(key)
            if version is None:
                yield Violation("P2", key, "the namespace is in the datastore and its marker is not in the bucket")
            elif version.size != 0:
                yield Violation("P2", key, f"a namespace marker is empty; this one has {version.size} bytes")

    def _differs(self, key: str, path: Path, listings: _Listings) -> Violation | None:
        checked = self._file(key, listings.content[key])
        try:
            if checked is None or checked.sha256 != file_sha256(path):
                return Violation("P2", key, "has other bytes than the datastore's file")
        except FileNotFoundError:
            return Violation("P2", key, "its file went during the audit")
        return None

    def _audit_chunk_set(
        self,
        datastore: FoundDatastore,
        inspector: ChunkInspector,
        listings: _Listings,
        pool: ThreadPoolExecutor,
    ) -> Iterable[Violation]:
        published = self._published_digests(listings)
        local = dict(inspector.sizes())
        violations = []
        for key in sorted(listings.chunks):
            match = _CHUNK_KEY.match(key)
            if match is None:
                violations.append(Violation("P2", key, "no chunk has this name"))
            elif match.group(2) not in published and match.group(2) not in local:
                violations.append(
                    Violation("P2", key, "no published snapshot references it and the datastore does not hold it")
                )
        suspicious = [digest for digest in local if self._chunk_deviates(digest, local[digest], listings)]
        if self._deep:
            suspicious = list(local)
        compared = pool.map(
            lambda digest: self._chunk_difference(digest, datastore.root, inspector, listings), suspicious
        )
        return violations + [found for found in compared if found is not None]

    def _chunk_deviates(self, digest: str, size: int, listings: _Listings) -> bool:
        version = listings.chunks.get(chunk_path(digest))
        return version is None or version.size != size

    def _chunk_difference(
        self, digest: str, root: Path, inspector: ChunkInspector, listings: _Listings
    ) -> Violation | None:
        """A sound chunk of the datastore must be in the bucket with the same bytes; an unsound one says nothing."""
        key = chunk_path(digest)
        if inspector.problem(digest) is not None:
            return None
        version = listings.chunks.get(key)
        if version is None:
            return Violation("P2", key, "the datastore holds this chunk and the bucket does not")
        size = (root / key).stat().st_size
        if version.size != size:
            return Violation("P2", key, f"has {version.size} bytes where the datastore's chunk has {size}")
        if self._deep:
            checked = self._chunk(key, version)
            if checked is None or checked.sha256 != file_sha256(root / key):
                return Violation("P2", key, "has other bytes than the datastore's chunk")
        return None

    def _published_digests(self, listings: _Listings) -> set[str]:
        digests: set[str] = set()
        for key in listings.manifests():
            listed = self._manifest(key, listings.content[key])
            if listed is None or isinstance(listed, str):
                continue
            for file in listed:
                version = listings.content.get(f"{key.rpartition('/')[0]}/{file.name}")
                checked = self._file(f"{key.rpartition('/')[0]}/{file.name}", version) if version else None
                digests.update(checked.digests if checked else ())
        return digests

    def _audit_foreign_objects(self) -> Iterator[Violation]:
        for key in self.bucket.list():
            if not key.startswith((_CONTENT, *_OUTSIDE_CONTENT)):
                yield Violation("P2", key, "nothing has its place here in a mirror")


def _required_files(datastore: FoundDatastore) -> set[str]:
    required: set[str] = set()
    for snapshot in datastore.finished.values():
        paths = (*datastore.content_paths(snapshot), *datastore.group_paths(snapshot.name.group))
        required.update(f"{_CONTENT}{path}" for path in paths)
    return required


def _belongs_to_any(key: str, snapshots: Iterable[str]) -> bool:
    return any(key.startswith(f"{_CONTENT}{path}/") for path in snapshots)


def _why_not(key: str, datastore: FoundDatastore) -> str:
    """Why an object has no place below .cnt."""
    directory = key[len(_CONTENT) :].rpartition("/")[0]
    try:
        parse_snapshot_path(directory)
    except ValueError:
        return "nothing in the datastore corresponds to it"
    if directory in datastore.finished:
        return "it is no part of its snapshot there"
    return "the datastore has no such finished snapshot"


def _is_same_object(one: ObjectVersion, other: ObjectVersion) -> bool:
    """A listing may tell an object's time a second off from HEAD (rounding), so only what holds bytes counts."""
    return one.etag == other.etag and one.size == other.size


def _check_file(key: str, raw: bytes) -> _CheckedFile:
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        if key.endswith((".fidx", ".didx")):
            index = formats.decode_index(key, raw)
            return _CheckedFile(sha256, index.digests, index.csum, index.size)
        if key.endswith(".blob"):
            formats.decode_blob(raw)
    except FormatError as error:
        return _CheckedFile(sha256, problem=str(error), size=len(raw))
    return _CheckedFile(sha256, csum=sha256, size=len(raw))


def _disagreement(checked: _CheckedFile, listed: ManifestFile) -> str | None:
    if checked.problem is not None:
        return checked.problem
    if checked.csum != listed.csum:
        return f"checksum {checked.csum} where the manifest says {listed.csum}"
    if checked.size != listed.size:
        return f"size {checked.size} where the manifest says {listed.size}"
    return None


# -- auditing over time ------------------------------------------------------------------------------------


class ContinuousAudit(threading.Thread):
    """Audits P1 again and again until the event is set. Samples during which the store could not be read are
    counted apart: they say nothing. Read violations, samples and unreadable at any time."""

    def __init__(self, auditor: Auditor, stop: threading.Event, *, pause_seconds: float = 0.1) -> None:
        super().__init__(name="continuous-audit", daemon=True)
        self.violations: list[Violation] = []
        self.samples = 0
        self.unreadable = 0
        self.failure: BaseException | None = None
        self._auditor, self._stop_event, self._pause = auditor, stop, pause_seconds

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

    def _sample(self) -> None:
        try:
            found = self._auditor.audit_bucket()
        except (ClientError, BotoCoreError):
            self.unreadable += 1
            return
        self.samples += 1
        self.violations += [violation for violation in found if violation not in self.violations]

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
    """Start auditing P1 in a thread. End with finish() of what this returns."""
    audit = ContinuousAudit(auditor, stop_event, pause_seconds=pause_seconds)
    audit.start()
    return audit


def audit_until_converged(
    auditor: Auditor,
    path: str | os.PathLike[str],
    *,
    timeout_seconds: float,
    pause_seconds: float = 0.25,
    on_sample: Callable[[list[Violation]], None] | None = None,
) -> list[Violation]:
    """Audit P1 and P2 until there is nothing to report, or a P1 is, or the time is over. Gives the last violations."""
    over = threading.Event()
    timer = threading.Timer(timeout_seconds, over.set)
    timer.daemon = True
    timer.start()
    try:
        while True:
            is_last = over.is_set()
            violations = auditor.audit_datastore(path)
            if on_sample is not None:
                on_sample(violations)
            if is_last or not violations or any(found.promise == "P1" for found in violations):
                return violations
            over.wait(pause_seconds)
    finally:
        timer.cancel()
