"""Deleted snapshots that the bucket keeps for a while: which must stand below `.mirrorfs/deleted/`, and which not."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from tests.harness.bucket import Bucket, ObjectVersion
from tests.harness.departures import Departures
from tests.harness.findings import Violation
from tests.harness.formats import LOG_NAME, MANIFEST_NAME, FormatError
from tests.harness.names import parse_snapshot_path
from tests.harness.scan import FoundDatastore

DELETED = ".mirrorfs/deleted/"
STAGING = ".mirrorfs/staging/"
RECORD_NAME = "deleted.json"
_EXTRAS = (LOG_NAME, ".protected")
# By how much the mirror may be late with what it does at a certain time, and its stamps differ from our knowledge.
_MARGIN = 5.0


@dataclass(frozen=True, slots=True)
class Deletion:
    """What stands beside a deleted snapshot: since when and until when it is kept (Unix time), its group's files."""

    deleted: float
    until: float
    owner: str | None
    notes: str | None


def decode_deletion(raw: bytes) -> Deletion:
    """Read a deleted.json. Raises FormatError."""
    try:
        value = json.loads(raw)
    except ValueError as error:
        raise FormatError(f"{RECORD_NAME} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{RECORD_NAME} is no object")
    times = [value.get(name) for name in ("deleted", "until")]
    texts = [value.get(name) for name in ("owner", "notes")]
    if not all(isinstance(at, int | float) and not isinstance(at, bool) for at in times):
        raise FormatError(f"{RECORD_NAME} lacks a time: {value}")
    if not all(text is None or isinstance(text, str) for text in texts) or not {"owner", "notes"} <= value.keys():
        raise FormatError(f"{RECORD_NAME} lacks owner or notes: {value}")
    return Deletion(float(times[0] or 0), float(times[1] or 0), *texts)


@dataclass(frozen=True, slots=True)
class Grace:
    """For how many seconds removed snapshots are to be kept (0: not at all), and which were removed when.

    `is_over` says that nothing that was removed until now is to be kept any longer. `clock_was_wrong`: the mirror's
    clock has been set wrong meanwhile, so its stamps may be anything.
    """

    delete_after: float
    departures: Departures
    is_over: bool = False
    clock_was_wrong: bool = False


@dataclass(frozen=True, slots=True)
class DeletedCopy:
    """What the listing shows of one deleted snapshot: names of its objects; what its manifest lists (None: no manifest,
    or an unreadable one) and what stands in its record (None: none that can be read)."""

    path: str
    names: frozenset[str]
    listed: tuple[str, ...] | None
    deletion: Deletion | None

    @property
    def has_manifest(self) -> bool:
        return MANIFEST_NAME in self.names

    def key(self, name: str) -> str:
        """The key of one of its objects."""
        return f"{DELETED}{self.path}/{name}" if self.path else f"{DELETED}{name}"


@dataclass(frozen=True, slots=True)
class DeletedComparison:
    """Compares the deleted snapshots in a bucket with what a quiet datastore, and its history, ask for.

    `seen_published` is when which snapshot's manifest was last seen to stand below `.cnt`. Without `grace` only that is
    looked at which holds for every mirror.
    """

    bucket: Bucket
    copies: tuple[DeletedCopy, ...]
    datastore: FoundDatastore
    seen_published: Mapping[str, float]
    grace: Grace | None
    now: float = field(default_factory=time.time)

    def run(self) -> list[Violation]:
        """All violations of P2 that concern deleted snapshots."""
        found = [violation for copy in self.copies for violation in self._judge(copy)]
        return [*found, *self._missing(), *self._staged()]

    def _judge(self, copy: DeletedCopy) -> Iterator[Violation]:
        key = copy.key(MANIFEST_NAME if copy.has_manifest else min(copy.names))
        if not copy.has_manifest:
            if self._stands(key):
                yield Violation("P2", key, "it is part of no deleted snapshot, or of one without its manifest")
            return
        sentences = [*self._sentences(copy)]
        if sentences and self._stands(key):
            yield from (Violation("P2", key, sentence) for sentence in sentences)
        for name in sorted(self._surplus(copy)):
            if self._stands(copy.key(name)):
                yield Violation("P2", copy.key(name), "it is no part of that deleted snapshot")

    def _surplus(self, copy: DeletedCopy) -> frozenset[str]:
        if copy.listed is None:
            return frozenset()
        return copy.names - {*copy.listed, *_EXTRAS, MANIFEST_NAME, RECORD_NAME}

    def _sentences(self, copy: DeletedCopy) -> Iterator[str]:
        try:
            parse_snapshot_path(copy.path)
        except ValueError:
            yield "it is no snapshot's name"
        if copy.path in self.datastore.finished:
            yield "it stands among the deleted snapshots and in the datastore"
        if self.grace is not None:
            yield from self._sentences_of_grace(copy, self.grace)

    def _sentences_of_grace(self, copy: DeletedCopy, grace: Grace) -> Iterator[str]:
        if grace.delete_after <= 0:
            yield "deleted snapshots are not to be kept"
            return
        if not grace.departures.is_known(copy.path):
            yield "there has never been such a snapshot"
        deletion = copy.deletion
        if deletion is None:
            return  # what is wrong with it is P1
        if deletion.until + _MARGIN < self.now or (grace.is_over and not self._is_stamped_ahead(deletion, grace)):
            yield f"it was to be kept until {deletion.until:.1f}, and now it is {self.now:.1f}"
        if abs(deletion.until - deletion.deleted - grace.delete_after) > 1:
            yield f"it is kept for {deletion.until - deletion.deleted:.1f} s, not {grace.delete_after:.1f}"
        if not grace.departures.began - 1 <= deletion.deleted <= self.now + 1 and not grace.clock_was_wrong:
            yield f"it says that it was deleted at {deletion.deleted:.1f}, and now it is {self.now:.1f}"

    def _is_stamped_ahead(self, deletion: Deletion, grace: Grace) -> bool:
        """Removed while the mirror's clock was ahead: kept for longer, which harms nobody."""
        return deletion.deleted > self.now and grace.clock_was_wrong

    # -- what must stand ---------------------------------------------------------------------------------

    def _missing(self) -> Iterator[Violation]:
        grace = self.grace
        if grace is None or grace.delete_after <= 0:
            return
        there = {copy.path for copy in self.copies if copy.has_manifest}
        for path in grace.departures.paths:
            if path in there or not self._must_be_kept(path, grace):
                continue
            key = f"{DELETED}{path}/{MANIFEST_NAME}"
            if not self._stands(key):
                yield Violation(
                    "P2", key, f"the deleted snapshot is to be kept for {grace.delete_after:.0f} s, and is not"
                )

    def _must_be_kept(self, path: str, grace: Grace) -> bool:
        """Only what was published is kept. One that has come again since ends what was kept of its name, also when it
        leaves before it is published; and it may have replaced the published one before that was removed."""
        seen = self.seen_published.get(path)
        if seen is None or path in self.datastore.finished or path in self.datastore.damaged:
            return False
        if grace.departures.came_after(path, seen):
            return False
        return self.now < grace.departures.earliest_removal(path, seen) + grace.delete_after - _MARGIN

    # -- what must never stay -------------------------------------------------------------------------------

    def _staged(self) -> Iterator[Violation]:
        for key in sorted(self.bucket.list(STAGING)):
            if self._stands(key):
                yield Violation("P2", key, "nothing is being replaced, and this was left")

    def _stands(self, key: str) -> bool:
        """Asked for directly: a listing may be behind, and what it showed may be gone by now."""
        return self.bucket.head(key) is not None


def names_by_snapshot(keys: Iterable[str]) -> dict[str, frozenset[str]]:
    """The names of the objects of each deleted snapshot, by its path, of keys below `DELETED`."""
    names: defaultdict[str, set[str]] = defaultdict(set)
    for key in keys:
        path, _, name = key.removeprefix(DELETED).rpartition("/")
        names[path].add(name)
    return {path: frozenset(found) for path, found in names.items()}


def is_deleted_key(key: str) -> bool:
    """Whether a key belongs to a deleted snapshot."""
    return key.startswith(DELETED)


def without_deleted(content: Mapping[str, ObjectVersion]) -> dict[str, ObjectVersion]:
    """What does not belong to deleted snapshots."""
    return {key: version for key, version in content.items() if not is_deleted_key(key)}
