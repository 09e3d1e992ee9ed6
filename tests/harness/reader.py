"""Reading a mirror's objects for an audit: each version once, remembered by key and ETag, checked on its own."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from sys import intern

from tests.harness import formats
from tests.harness.bucket import Bucket, ObjectVersion
from tests.harness.deleted import RECORD_NAME, Deletion, decode_deletion
from tests.harness.findings import AuditCounts
from tests.harness.formats import FormatError, ManifestFile

CHUNK_KEY = re.compile(r"\.chunks/([0-9a-f]{4})/(\1[0-9a-f]{60})\Z")
CHECKED_SUFFIXES = (".fidx", ".didx", ".blob", f"/{RECORD_NAME}")


@dataclass(frozen=True, slots=True)
class CheckedFile:
    """What reading an object showed, apart from what any manifest says of it."""

    sha256: str
    digests: frozenset[str] = frozenset()
    csum: str = ""
    size: int = 0
    problem: str | None = None
    deletion: Deletion | None = None

    def disagreement(self, listed: ManifestFile) -> str | None:
        """What is wrong with the file if a manifest lists it so, or None."""
        if self.problem is not None:
            return self.problem
        if self.csum != listed.csum:
            return f"checksum {self.csum} where the manifest says {listed.csum}"
        if self.size != listed.size:
            return f"size {self.size} where the manifest says {listed.size}"
        return None


@dataclass(frozen=True, slots=True)
class CheckedChunk:
    """What reading a chunk object showed: SHA-256 of the object's bytes, and what is wrong with them."""

    sha256: str
    problem: str | None


@dataclass(slots=True)
class _Memory:
    files: dict[tuple[str, str], CheckedFile] = field(default_factory=dict)
    manifests: dict[tuple[str, str], tuple[ManifestFile, ...] | str] = field(default_factory=dict)
    chunks: dict[tuple[str, str], CheckedChunk] = field(default_factory=dict)


class ObjectReader:
    """Reads objects of one bucket; any thread. Raises ClientError or BotoCoreError when the store fails."""

    def __init__(self, bucket: Bucket, counts: AuditCounts) -> None:
        self.bucket = bucket
        self._counts = counts
        self._memory = _Memory()
        self._mutex = threading.Lock()

    def manifest(self, key: str, version: ObjectVersion) -> tuple[ManifestFile, ...] | str | None:
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
            self._memory.files[(key, found.etag)] = _check_file(key, raw)
        return parsed if found.etag == version.etag else None

    def file(self, key: str, version: ObjectVersion) -> CheckedFile | None:
        """A file below .cnt in the version listed if that was read before, else as it is now; None: it has gone."""
        return self._memory.files.get((key, version.etag)) or self.fresh_file(key)

    def fresh_file(self, key: str) -> CheckedFile | None:
        """A file below .cnt as it is now; None when it is not there."""
        answer = self._get(key)
        if answer is None:
            return None
        checked = _check_file(key, answer[1])
        with self._mutex:
            self._memory.files[(key, answer[0].etag)] = checked
        return checked

    def chunk(self, key: str, version: ObjectVersion) -> CheckedChunk | None:
        """Like file, for a chunk; the key must be a chunk's."""
        return self._memory.chunks.get((key, version.etag)) or self.fresh_chunk(key)

    def fresh_chunk(self, key: str) -> CheckedChunk | None:
        """A chunk as it is now; None when it is not there."""
        answer = self._get(key)
        if answer is None:
            return None
        problem = None
        try:
            formats.check_chunk(answer[1], key.rpartition("/")[2])
        except FormatError as error:
            problem = f"the chunk is damaged: {error}"
        checked = CheckedChunk(hashlib.sha256(answer[1]).hexdigest(), problem)
        with self._mutex:
            self._counts.chunks_read += 1
            self._memory.chunks[(key, answer[0].etag)] = checked
        return checked

    def forget_all_but(self, *listings: Mapping[str, ObjectVersion]) -> None:
        """Keep only what is known of the versions in these listings: memory follows the bucket's size, not time."""
        kept = {(key, version.etag) for listing in listings for key, version in listing.items()}
        memory = self._memory
        with self._mutex:
            memory.files = {name: known for name, known in memory.files.items() if name in kept}
            memory.manifests = {name: known for name, known in memory.manifests.items() if name in kept}
            memory.chunks = {name: known for name, known in memory.chunks.items() if name in kept}

    @property
    def remembered(self) -> int:
        """How many versions of objects are known."""
        return len(self._memory.files) + len(self._memory.chunks)

    def _get(self, key: str) -> tuple[ObjectVersion, bytes] | None:
        answer = self.bucket.get(key)
        if answer is not None:
            with self._mutex:
                self._counts.bytes_read += len(answer[1])
        return answer


def _check_file(key: str, raw: bytes) -> CheckedFile:
    sha256 = hashlib.sha256(raw).hexdigest()
    try:
        if key.endswith((".fidx", ".didx")):
            index = formats.decode_index(key, raw)
            # Interned: hundreds of snapshots name the same chunks.
            return CheckedFile(sha256, frozenset(map(intern, index.digests)), index.csum, index.size)
        if key.endswith(".blob"):
            formats.decode_blob(raw)
        if key.endswith(f"/{RECORD_NAME}"):
            return CheckedFile(sha256, size=len(raw), deletion=decode_deletion(raw))
    except FormatError as error:
        return CheckedFile(sha256, problem=str(error), size=len(raw))
    return CheckedFile(sha256, csum=sha256, size=len(raw))
