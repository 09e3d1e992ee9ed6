"""The state: what the bucket is known to hold, who references which chunk, and what cannot be published and why.

Written by the uploader alone. Every operation takes a transaction of `State.update` or `State.view`, so that a
caller decides what belongs together in one commit; commits are synced.
"""

from __future__ import annotations

import itertools
import json
import struct
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from hashlib import sha256
from typing import TypeVar

from mirrorfs.database.entries import SHARED_KEY_PREFIX, decoded, path_key
from mirrorfs.database.environment import Cursor, Environment, Transaction
from mirrorfs.database.errors import DatabaseCorrupt, ForeignState
from mirrorfs.journal.journal import Position
from mirrorfs.state import retention
from mirrorfs.state.counting import COUNTING, CountingRecords, PartialCount, ReferenceHolder
from mirrorfs.state.retention import RetentionRecords

FORMAT_VERSION = 1

_META = b"meta"
_CHUNKS = b"chunks"
_CONTENTS = b"contents"
_SNAPSHOTS = b"snapshots"
_PROBLEMS = b"problems"
_FOREIGN = b"foreign"
_QUARANTINED = b"quarantined"
_SAME_FILES = b"same-files"
_CHUNK_VALUE = struct.Struct("<III")
_SINCE = struct.Struct(">d")

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ChunkState:
    """What is known of a chunk object. `size` 0: a PUT was begun or the object was found, nothing is confirmed."""

    size: int
    crc32c: int
    references: int

    @property
    def confirmed(self) -> bool:
        """Whether the store has confirmed size and checksum."""
        return self.size > 0


@dataclass(frozen=True, slots=True)
class ContentState:
    """What is known of an object below `.cnt`: a PUT was begun, or, if `confirmed`, size and checksum are as said."""

    path: str
    size: int
    crc32c: int
    confirmed: bool


class SnapshotPhase(Enum):
    """Where a snapshot stands on its way into the bucket and out of it again."""

    ADOPTED = "adopted"
    """Found in the bucket when this state began: its references are counted, its chunks not yet compared."""
    COMMITTED = "committed"
    """Files and chunks are confirmed and its references are counted; the manifest may or may not be up."""
    PUBLISHED = "published"
    """The manifest is confirmed."""
    REMOVING = "removing"
    """The manifest is about to go or gone; the references are still counted."""
    RELEASED = "released"
    """The references are given back; objects may be left."""

    @property
    def counts_references(self) -> bool:
        """Whether the snapshot stands in the bucket, or may, and its chunks are counted as referenced."""
        return self in (SnapshotPhase.ADOPTED, SnapshotPhase.COMMITTED, SnapshotPhase.PUBLISHED)


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """A snapshot that has, or may have, objects in the bucket.

    `files` maps the listed file names to their manifest checksums in hex: it tells whether a new manifest is about the
    same content, and which indexes carry the counted references.
    """

    phase: SnapshotPhase
    files: dict[str, str]
    since: float


@dataclass(frozen=True, slots=True)
class QuarantinedChunk:
    """A chunk that PBS found corrupt (Unix time `since`), and whether a confirmed copy of it is in the bucket."""

    digest: bytes
    since: float
    has_good_copy: bool


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something cannot be mirrored now: `name` is a path in the datastore, `reason` a sentence."""

    name: str
    reason: str
    since: float


@dataclass(frozen=True, slots=True)
class Identity:
    """What a state directory is about: it must not be used for anything else."""

    datastore: str
    bucket: str
    prefix: str
    mirror_id: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True, slots=True)
class Epochs:
    """The epoch of the claim that this state wrote last, and of the one that it is about to write, if it is."""

    current: str | None = None
    coming: str | None = None


class State:
    """The state environment. Opened by the uploader for writing, by the command line read only."""

    def __init__(self, directory: str, *, read_only: bool = False) -> None:
        """Open the state in `directory`. Raises what Environment raises."""
        self._directory = directory
        self._environment = Environment(
            directory,
            databases=(
                _META,
                _CHUNKS,
                _CONTENTS,
                _SNAPSHOTS,
                _PROBLEMS,
                _FOREIGN,
                _QUARANTINED,
                _SAME_FILES,
                COUNTING,
                *retention.DATABASES,
            ),
            format_version=FORMAT_VERSION,
            read_only=read_only,
        )

    def update(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run `work` in one write transaction; on return it is on stable storage. Blocks for a disk sync."""
        with self._said_to_be_damaged():
            return self._environment.update(lambda transaction: work(StateTransaction(transaction, self._environment)))

    def view(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run `work` in a read transaction."""
        with self._said_to_be_damaged():
            return self._environment.view(lambda transaction: work(StateTransaction(transaction, self._environment)))

    @contextmanager
    def _said_to_be_damaged(self) -> Iterator[None]:
        """Have each DatabaseCorrupt say that it is about this state, whoever found it."""
        try:
            yield
        except DatabaseCorrupt as error:
            error.directory = self._directory
            raise

    def close(self) -> None:
        """Close the state."""
        self._environment.close()


class StateTransaction:
    """The operations on a state, inside one transaction."""

    def __init__(self, transaction: Transaction, environment: Environment) -> None:
        self._transaction = transaction
        self._databases = environment.databases
        self.retention = RetentionRecords(transaction, self._databases, self._databases[_META])
        self.counting = CountingRecords(transaction, self._databases[COUNTING])

    # --- identity and position

    def identity(self) -> Identity | None:
        """Tell what the state is about, None while it is new."""
        stored = self._transaction.get(b"identity", db=self._databases[_META])
        return None if stored is None else decoded(stored, lambda value: Identity(**value))

    def set_identity(self, identity: Identity) -> None:
        """Say what the state is about."""
        value = {
            "datastore": identity.datastore,
            "bucket": identity.bucket,
            "prefix": identity.prefix,
            "mirror_id": identity.mirror_id,
        }
        self._transaction.put(b"identity", json.dumps(value).encode(), db=self._databases[_META])

    def adopted(self) -> bool:
        """Tell whether what stood in the bucket before this state began has been taken into it."""
        return self._transaction.get(b"adopted", db=self._databases[_META]) is not None

    def set_adopted(self) -> None:
        """Note that the bucket's content has been taken in."""
        self._transaction.put(b"adopted", b"1", db=self._databases[_META])

    def epochs(self) -> Epochs:
        """Tell which claims in the bucket this state knows to be its own."""
        stored = self._transaction.get(b"epochs", db=self._databases[_META])
        return Epochs() if stored is None else decoded(stored, lambda value: Epochs(**value))

    def set_epochs(self, epochs: Epochs) -> None:
        """Note which claims in the bucket are this state's own."""
        value = {"current": epochs.current, "coming": epochs.coming}
        self._transaction.put(b"epochs", json.dumps(value).encode(), db=self._databases[_META])

    def set_claimed(self, identity: Identity, epoch: str) -> None:
        """Note what the state is about and that the claim of `epoch` stands in the bucket."""
        self.set_identity(identity)
        self.set_epochs(Epochs(epoch))

    def forget_bucket(self) -> None:
        """Forget everything known of the bucket: it was changed by somebody else, or this state is an old copy."""
        for database in (_CHUNKS, _CONTENTS, _SNAPSHOTS, _SAME_FILES):
            self._transaction.drop(self._databases[database], delete=False)
        self.retention.forget_bucket()
        self.counting.forget_all()
        self._transaction.delete(b"adopted", db=self._databases[_META])
        self._transaction.delete(b"inspecting", db=self._databases[_META])

    def inspecting(self) -> bool:
        """Tell whether a comparison of this state with the bucket was begun and has not ended."""
        return self._transaction.get(b"inspecting", db=self._databases[_META]) is not None

    def set_inspecting(self, inspecting: bool) -> None:
        """Note that a comparison of this state with the bucket begins, or that it has ended."""
        if inspecting:
            self._transaction.put(b"inspecting", b"1", db=self._databases[_META])
        else:
            self._transaction.delete(b"inspecting", db=self._databases[_META])

    def position(self) -> Position | None:
        """Tell how far the journal has been dealt with."""
        stored = self._transaction.get(b"position", db=self._databases[_META])
        return None if stored is None else decoded(stored, lambda value: Position(**value))

    def set_position(self, position: Position) -> None:
        """Note how far the journal has been dealt with."""
        value = {"generation": position.generation, "sequence": position.sequence}
        self._transaction.put(b"position", json.dumps(value).encode(), db=self._databases[_META])

    # --- chunks

    def chunk(self, digest: bytes) -> ChunkState | None:
        """Tell what is known of a chunk object."""
        stored = self._transaction.get(digest, db=self._databases[_CHUNKS])
        return None if stored is None else _chunk(stored)

    def intend_chunks(self, digests: Iterable[bytes]) -> None:
        """Note that chunks are about to be PUT, so that a crash leaves no object that nobody knows."""
        for digest in sorted(digests):
            if self.chunk(digest) is None:
                self._put_chunk(digest, ChunkState(0, 0, 0))

    def confirm_chunk(self, digest: bytes, size: int, crc32c: int) -> None:
        """Note that the store holds the chunk with this size in bytes and this checksum."""
        known = self.chunk(digest)
        self._put_chunk(digest, ChunkState(size, crc32c, known.references if known else 0))

    def doubt_chunk(self, digest: bytes) -> None:
        """Note that the chunk object is there, or may be, but with what content is not known any more."""
        known = self.chunk(digest)
        self._put_chunk(digest, ChunkState(0, 0, known.references if known else 0))
        self.retention.forget_chunk_locks([digest])

    def forget_chunk(self, digest: bytes) -> None:
        """Note that the chunk object is gone."""
        self._transaction.delete(digest, db=self._databases[_CHUNKS])
        self.retention.forget_chunk_locks([digest])

    def unconfirmed(self, digests: Iterable[bytes]) -> list[bytes]:
        """Return those of `digests` whose chunk objects are not confirmed, sorted."""
        missing = []
        for digest in sorted(digests):
            known = self.chunk(digest)
            if known is None or not known.confirmed:
                missing.append(digest)
        return missing

    def chunks_of_directory(self, number: int) -> list[tuple[bytes, ChunkState]]:
        """Return what is known of the chunks of `.chunks/<number as 4 hex digits>`, sorted by digest."""
        prefix = number.to_bytes(2, "big")
        cursor = self._transaction.cursor(db=self._databases[_CHUNKS])
        found = []
        if cursor.set_range(prefix):
            for digest, stored in cursor:
                if not digest.startswith(prefix):
                    break
                found.append((digest, _chunk(stored)))
        return found

    def chunk_directories(self) -> set[int]:
        """Return the numbers of the directories of which any chunk is known, as object or in quarantine."""
        return {
            number
            for database in (_CHUNKS, _QUARANTINED)
            for number in _directories(self._transaction.cursor(db=self._databases[database]))
        }

    def chunks_after(self, digest: bytes, maximum: int) -> list[tuple[bytes, ChunkState]]:
        """Return what is known of up to `maximum` chunks whose digests are greater than `digest`, sorted."""
        cursor = self._transaction.cursor(db=self._databases[_CHUNKS])
        # No digest stands between the two.
        if not cursor.set_range(digest + b"\0"):
            return []
        return [(found, _chunk(stored)) for found, stored in itertools.islice(cursor, maximum)]

    def count_chunks(self) -> int:
        """Count the chunk objects known."""
        return int(self._transaction.stat(self._databases[_CHUNKS])["entries"])

    def commit_snapshot(self, path: str, snapshot: SnapshotState, digests: Iterable[bytes]) -> None:
        """Note where a snapshot stands and count its references; `digests` are those that are not counted yet."""
        self.set_snapshot(path, snapshot)
        # It may have other objects than those that were locked.
        self.retention.forget_snapshot_lock(path)
        self.end_count(ReferenceHolder(path), digests)

    def count(self, holder: ReferenceHolder, count: PartialCount, digests: Iterable[bytes]) -> None:
        """Count a part of a holder's references, after which they are counted as `count` says."""
        self._add_references(digests)
        self.counting.set(holder, count)

    def end_count(self, holder: ReferenceHolder, digests: Iterable[bytes]) -> None:
        """Count the last part of a holder's references."""
        self._add_references(digests)
        self.counting.forget(holder)

    def give_back(self, holder: ReferenceHolder, left: PartialCount | None, digests: Iterable[bytes]) -> list[bytes]:
        """Count one reference less to each of a part of a holder's chunks; then `left` is still counted.

        Returns the digests that nobody references any more.

        Raises:
            DatabaseCorrupt: a count would fall below zero.
        """
        if left is None:
            self.counting.forget(holder)
        else:
            self.counting.set(holder, left)
        unreferenced = []
        for digest in sorted(digests):
            known = self.chunk(digest)
            if known is None or known.references == 0:
                raise DatabaseCorrupt(f"the state counts no reference to chunk {digest.hex()}, yet one is given back")
            self._put_chunk(digest, ChunkState(known.size, known.crc32c, known.references - 1))
            if known.references == 1:
                unreferenced.append(digest)
        return unreferenced

    def _add_references(self, digests: Iterable[bytes]) -> None:
        for digest in sorted(digests):
            known = self.chunk(digest) or ChunkState(0, 0, 0)
            self._put_chunk(digest, ChunkState(known.size, known.crc32c, known.references + 1))

    def _put_chunk(self, digest: bytes, chunk: ChunkState) -> None:
        value = _CHUNK_VALUE.pack(chunk.size, chunk.crc32c, chunk.references)
        self._transaction.put(digest, value, db=self._databases[_CHUNKS])

    # --- quarantined chunks

    def set_quarantined(self, digest: bytes, since: float | None) -> None:
        """Note since when (Unix time) the datastore has a corrupt copy of a chunk in quarantine; None: it has none."""
        if since is None:
            self._transaction.delete(digest, db=self._databases[_QUARANTINED])
        else:
            self._transaction.put(digest, _SINCE.pack(since), db=self._databases[_QUARANTINED])

    def quarantined_since(self, digest: bytes) -> float | None:
        """Tell since when a chunk is known to be in quarantine, None if it is not."""
        stored = self._transaction.get(digest, db=self._databases[_QUARANTINED])
        return None if stored is None else _since(stored)

    def quarantined_in_directory(self, number: int) -> set[bytes]:
        """Return the digests of `.chunks/<number as 4 hex digits>` that are known to be in quarantine."""
        prefix = number.to_bytes(2, "big")
        found = set()
        cursor = self._transaction.cursor(db=self._databases[_QUARANTINED])
        if cursor.set_range(prefix):
            for digest in cursor.iternext(keys=True, values=False):
                if not digest.startswith(prefix):
                    break
                found.add(digest)
        return found

    def quarantined(self, maximum: int) -> tuple[int, list[QuarantinedChunk]]:
        """Count the chunks in quarantine, and return up to `maximum` of them."""
        database = self._databases[_QUARANTINED]
        examples = []
        for digest, stored in itertools.islice(self._transaction.cursor(db=database), maximum):
            known = self.chunk(digest)
            examples.append(QuarantinedChunk(digest, _since(stored), known is not None and known.confirmed))
        return int(self._transaction.stat(database)["entries"]), examples

    # --- objects below .cnt

    def content(self, path: str) -> ContentState | None:
        """Tell what is known of the object of a datastore path."""
        stored = self._transaction.get(path_key(path), db=self._databases[_CONTENTS])
        return None if stored is None else decoded(stored, lambda value: ContentState(**value))

    def intend_contents(self, paths: Iterable[str]) -> None:
        """Note that objects are about to be PUT or deleted; what was confirmed of them before holds no more."""
        for path in paths:
            self._put_content(ContentState(path, 0, 0, False))

    def confirm_content(self, path: str, size: int, crc32c: int) -> None:
        """Note that the store holds the object with this size in bytes and this checksum."""
        self._put_content(ContentState(path, size, crc32c, True))

    def forget_contents(self, paths: Iterable[str]) -> None:
        """Note that the objects are gone."""
        for path in paths:
            self._transaction.delete(path_key(path), db=self._databases[_CONTENTS])

    def contents(self, below: str = "") -> Iterator[ContentState]:
        """Yield what is known of the objects whose path is `below` or lies in it."""
        prefix = path_key(below)[:SHARED_KEY_PREFIX] if below else b""
        cursor = self._transaction.cursor(db=self._databases[_CONTENTS])
        if not cursor.set_range(prefix):
            return
        for key, stored in cursor:
            if not key.startswith(prefix):
                return
            content = decoded(stored, lambda value: ContentState(**value))
            if not below or content.path == below or content.path.startswith(below + "/"):
                yield content

    def contents_after(self, path: str, maximum: int) -> list[ContentState]:
        """Return what is known of up to `maximum` objects that come after `path`, in the order of their keys here."""
        cursor = self._transaction.cursor(db=self._databases[_CONTENTS])
        if not cursor.set_range(path_key(path) + b"\0" if path else b"\0"):
            return []
        return [decoded(stored, lambda value: ContentState(**value)) for _, stored in itertools.islice(cursor, maximum)]

    def _put_content(self, content: ContentState) -> None:
        value = {
            "path": content.path,
            "size": content.size,
            "crc32c": content.crc32c,
            "confirmed": content.confirmed,
        }
        self._transaction.put(path_key(content.path), json.dumps(value).encode(), db=self._databases[_CONTENTS])

    # --- snapshots

    def snapshot(self, path: str) -> SnapshotState | None:
        """Tell where a snapshot stands, None if nothing of it is in the bucket."""
        stored = self._transaction.get(path_key(path), db=self._databases[_SNAPSHOTS])
        return None if stored is None else decoded(stored, _snapshot)

    def set_snapshot(self, path: str, snapshot: SnapshotState) -> None:
        """Note where a snapshot stands."""
        value = {
            "path": path,
            "phase": snapshot.phase.value,
            "files": snapshot.files,
            "since": snapshot.since,
        }
        self._transaction.put(path_key(path), json.dumps(value).encode(), db=self._databases[_SNAPSHOTS])
        if snapshot.phase.counts_references:
            self._transaction.put(_files_key(snapshot.files), path.encode(), db=self._databases[_SAME_FILES])

    def forget_snapshot(self, path: str) -> None:
        """Note that nothing of a snapshot is left in the bucket."""
        known = self.snapshot(path)
        if known is not None and self.snapshot_with(known.files) == path:
            self._transaction.delete(_files_key(known.files), db=self._databases[_SAME_FILES])
        self._transaction.delete(path_key(path), db=self._databases[_SNAPSHOTS])

    def snapshot_with(self, files: dict[str, str]) -> str | None:
        """Return the path of a snapshot that stood in the bucket with the same listed files; it need not any more."""
        stored = self._transaction.get(_files_key(files), db=self._databases[_SAME_FILES])
        return None if stored is None else stored.decode()

    def snapshots(self, below: str = "") -> Iterator[tuple[str, SnapshotState]]:
        """Yield the known snapshots whose path is `below` or lies in it."""
        prefix = path_key(below)[:SHARED_KEY_PREFIX] if below else b""
        cursor = self._transaction.cursor(db=self._databases[_SNAPSHOTS])
        if not cursor.set_range(prefix):
            return
        for key, stored in cursor:
            if not key.startswith(prefix):
                return
            path, snapshot = decoded(stored, lambda value: (str(value["path"]), _snapshot(value)))
            if not below or path == below or path.startswith(below + "/"):
                yield path, snapshot

    # --- problems and foreign names

    def problem(self, name: str) -> Problem | None:
        """Tell why `name` cannot be mirrored, None if nothing is known against it."""
        stored = self._transaction.get(path_key(name), db=self._databases[_PROBLEMS])
        return None if stored is None else decoded(stored, lambda value: Problem(**value))

    def set_problem(self, problem: Problem) -> None:
        """Note why something cannot be mirrored."""
        value = {"name": problem.name, "reason": problem.reason, "since": problem.since}
        self._transaction.put(path_key(problem.name), json.dumps(value).encode(), db=self._databases[_PROBLEMS])

    def clear_problem(self, name: str) -> bool:
        """Note that all is well with `name`; tells whether a problem was known."""
        return bool(self._transaction.delete(path_key(name), db=self._databases[_PROBLEMS]))

    def problems(self) -> Iterator[Problem]:
        """Yield everything that cannot be mirrored now."""
        for _, stored in self._transaction.cursor(db=self._databases[_PROBLEMS]):
            yield decoded(stored, lambda value: Problem(**value))

    def set_foreign(self, path: bytes, present: bool) -> None:
        """Note whether a name that PBS would not make stands in the datastore."""
        key = path_key(path.decode("utf-8", "surrogateescape"))
        if present:
            self._transaction.put(key, path, db=self._databases[_FOREIGN])
        else:
            self._transaction.delete(key, db=self._databases[_FOREIGN])

    def replace_foreign(self, paths: Iterable[bytes]) -> None:
        """Note all the names in the datastore that PBS would not make, and forget the earlier ones."""
        self._transaction.drop(self._databases[_FOREIGN], delete=False)
        for path in paths:
            self.set_foreign(path, True)

    def foreign(self, maximum: int) -> tuple[int, list[bytes]]:
        """Count the names that PBS would not make, and return up to `maximum` of them."""
        database = self._databases[_FOREIGN]
        examples: list[bytes] = []
        for _, path in self._transaction.cursor(db=database):
            if len(examples) == maximum:
                break
            examples.append(path)
        return int(self._transaction.stat(database)["entries"]), examples


def check_identity(stored: Identity | None, expected: Identity, directory: str) -> Identity:
    """Return the identity to use for a state directory.

    Raises:
        ForeignState: the directory belongs to another datastore or another bucket.
    """
    if stored is None:
        return expected
    if stored.datastore != expected.datastore:
        raise ForeignState(
            f"the state directory {directory} belongs to the datastore {stored.datastore}, not to "
            f"{expected.datastore}: give another --state-dir"
        )
    if (stored.bucket, stored.prefix) != (expected.bucket, expected.prefix):
        raise ForeignState(
            f"the state directory {directory} mirrors to s3://{stored.bucket}/{stored.prefix}, not to "
            f"s3://{expected.bucket}/{expected.prefix}: give another --state-dir for another bucket"
        )
    return stored


def _chunk(stored: bytes) -> ChunkState:
    if len(stored) != _CHUNK_VALUE.size:
        raise DatabaseCorrupt(f"the state's entry for a chunk is damaged: it has {len(stored)} bytes")
    return ChunkState(*_CHUNK_VALUE.unpack(stored))


def _snapshot(value: dict[str, object]) -> SnapshotState:
    files, since = value["files"], value["since"]
    if not isinstance(files, dict) or not isinstance(since, (int, float)):
        raise DatabaseCorrupt(f"the state's entry for snapshot {value.get('path')} is damaged")
    return SnapshotState(SnapshotPhase(value["phase"]), files, float(since))


def _since(stored: bytes) -> float:
    if len(stored) != _SINCE.size:
        raise DatabaseCorrupt("the state's entry for a chunk in quarantine is damaged")
    return float(_SINCE.unpack(stored)[0])


def _files_key(files: dict[str, str]) -> bytes:
    return sha256(json.dumps(files, sort_keys=True).encode()).digest()


def _directories(cursor: Cursor) -> Iterator[int]:
    """The first two bytes of the keys, each once, without looking at the keys between."""
    following = 0
    while following <= 0xFFFF and cursor.set_range(following.to_bytes(2, "big")):
        number = int.from_bytes(cursor.key()[:2], "big")
        yield number
        following = number + 1
