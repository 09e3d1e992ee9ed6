"""Is the bucket good? Promise P1 from the bucket alone: every published snapshot has all of its files and chunks.

Quick: everything but the chunks is read and checked, and of the chunks it is looked whether they are listed. Deep: the
chunks that are referenced are read and checked too, all of them or a sample. Nothing in the bucket is changed.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from mirrorfs.checking.chunks import read_chunk
from mirrorfs.checking.reading import Limit, read_checked
from mirrorfs.concurrency import for_each
from mirrorfs.datastore.blob import check_blob
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.errors import DatastoreError, ManifestError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.limits import LONGEST_CLIENT_LOG
from mirrorfs.datastore.manifest import Manifest, ManifestFile, check_listed_file
from mirrorfs.datastore.names import CLIENT_LOG_NAME, GroupId, SnapshotId, chunk_path
from mirrorfs.objectstore.errors import ObjectMissing, ObjectTooLarge, StoreRejected
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.catalog import (
    BucketContents,
    list_contents,
    problem_with_name,
    read_manifest_object,
    try_reading,
)
from mirrorfs.recovery.checkpoint import Checkpoint, CheckpointFile
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.inventory import BadChunks, ChunkInventory
from mirrorfs.recovery.selection import Plan, Selection, plan_restore
from mirrorfs.recovery.source import PresentSource, Source, View, open_source

_SNAPSHOTS_AT_ONCE = 4
# What is listed of the damage: a bucket that has lost everything must not fill memory, nor the screen.
MOST_DAMAGES = 10_000
_MOST_SNAPSHOTS_OF_A_CHUNK = 100
_SAVE_SECONDS = 30.0
_OWNER_NAME = "owner"
_DAMAGED = (DatastoreError, ObjectMissing, ObjectTooLarge, StoreRejected)
_SAMPLE = slice(8, 16)


@dataclass(frozen=True, slots=True)
class Depth:
    """How much of the chunks is read: `percent` of those that are referenced, 0 for none."""

    percent: float = 0.0

    def includes(self, digest: bytes, salt: int) -> bool:
        """Tell whether a chunk belongs to the sample that `salt` chooses."""
        drawn = int.from_bytes(digest[_SAMPLE], "big") ^ salt
        return drawn < self.percent / 100 * 2**64


@dataclass(frozen=True, slots=True)
class Damage:
    """Something that is missing or not sound: its path in the datastore, why, and the snapshots that it costs.

    Of a chunk that very many need, not all are named. Damage that costs no snapshot has none: a client's log, or the
    owner of a group, which can be written anew.
    """

    path: str
    reason: str
    snapshots: tuple[SnapshotId, ...] = ()


@dataclass(frozen=True, slots=True)
class GroupResult:
    """What was found of a group: how many snapshots, how many of them damaged, and their size before compression."""

    group: GroupId
    snapshots: int
    damaged: int
    size: int


@dataclass(frozen=True, slots=True)
class VerificationReport:
    """What a verification found.

    `damages` are at most MOST_DAMAGES, `damages_left_out` counts the others. `chunks` and `chunk_bytes` are listed in
    the bucket, `chunks_needed` of them referenced by what was verified, `chunks_read` and `bytes_read` were read whole,
    in this run and those that it went on from.
    """

    groups: tuple[GroupResult, ...]
    damages: tuple[Damage, ...]
    damages_left_out: int
    damaged_snapshots: frozenset[SnapshotId]
    chunks: int
    chunk_bytes: int
    chunks_needed: int
    chunks_read: int
    bytes_read: int

    @property
    def is_good(self) -> bool:
        """Whether nothing was found to be damaged."""
        return not self.damages


class VerificationObserver:
    """Told of the progress, in the trio thread; each method does nothing unless overridden."""

    def listed(self, chunks: int) -> None:
        """So many chunk objects have been listed until now."""

    def planned(self, snapshots: int) -> None:
        """So many snapshots are going to be looked at."""

    def snapshot_finished(self, snapshot: SnapshotId, *, is_damaged: bool) -> None:
        """The files of a snapshot have been read."""

    def chunks_begin(self, done: int, total: int, total_bytes: float) -> None:
        """Of `total` chunks with about so many bytes, `done` have been read before."""

    def chunk_finished(self, size: int) -> None:
        """One more chunk has been read; all together had so many bytes."""

    def found(self, damage: Damage) -> None:
        """Something is damaged; of a chunk it may not be said yet which snapshots it costs."""


@dataclass(slots=True)
class _Findings:
    """What was found until now."""

    damages: list[Damage] = field(default_factory=list)
    left_out: int = 0
    damaged_snapshots: set[SnapshotId] = field(default_factory=set)
    sizes: dict[SnapshotId, int] = field(default_factory=dict)
    bad_chunks: dict[bytes, str] = field(default_factory=dict)
    needed_by: defaultdict[bytes, list[SnapshotId]] = field(default_factory=lambda: defaultdict(list))

    def note(self, damage: Damage) -> None:
        self.damaged_snapshots.update(damage.snapshots)
        if len(self.damages) < MOST_DAMAGES:
            self.damages.append(damage)
        else:
            self.left_out += 1

    def note_chunk(self, digest: bytes, reason: str, snapshot: SnapshotId) -> bool:
        """Note a chunk that a snapshot needs and cannot have; tells whether it is a new one."""
        self.damaged_snapshots.add(snapshot)
        if digest not in self.bad_chunks and len(self.bad_chunks) >= MOST_DAMAGES:
            self.left_out += 1
            return False
        is_new = digest not in self.bad_chunks
        self.bad_chunks[digest] = reason
        snapshots = self.needed_by[digest]
        if snapshot not in snapshots and len(snapshots) < _MOST_SNAPSHOTS_OF_A_CHUNK:
            snapshots.append(snapshot)
        return is_new


async def verify_bucket(
    store: ObjectStore,
    address: StoreAddress,
    *,
    selection: Selection = Selection(),  # noqa: B008 - immutable
    view: View = View(),  # noqa: B008 - immutable
    depth: Depth = Depth(),
    resume: Path | None = None,
    parallelism: int = 8,
    observer: VerificationObserver | None = None,
    listing_store: ObjectStore | None = None,
) -> VerificationReport:
    """Verify what the bucket holds at `address`, as the `view` shows it, or the selected parts of it.

    With `resume`, the reading of chunks goes on where that file says, and says there how far it has come; the rest is
    done anew. At most `parallelism` objects are under way, and held in memory, at a time, besides 13 bytes for each
    chunk that the bucket has and the indexes that are being read.

    Raises RestoreError (nothing there, something chosen is not there, the file of `resume` is not usable), StoreError.
    """
    layout = BucketLayout(address.prefix)
    source = open_source(view, store, layout, listing_store)
    contents = await list_contents(source, layout)
    if contents.is_empty or (view.deleted and not contents.published):
        kind = "deleted snapshots" if view.deleted else "datastore"
        raise RestoreError(f"There is no {kind} at {address}. Check the name with: mirrorfs snapshots {address}")
    plan = plan_restore(contents, selection, view)
    if listing_store is not None:
        await try_reading(open_source(view, listing_store, layout), layout, plan.snapshots)
    verification = _Verification(source, store, layout, contents, observer or VerificationObserver(), parallelism)
    # What is saved is only good for the same question.
    what = {
        "url": str(address),
        "percent": depth.percent,
        "deleted": view.deleted,
        **selection.described(),
    }
    return await verification.run(plan, depth, CheckpointFile(resume if depth.percent else None, what), selection)


class _Verification:
    """One run."""

    def __init__(
        self,
        source: Source,
        store: ObjectStore,
        layout: BucketLayout,
        contents: BucketContents,
        observer: VerificationObserver,
        parallelism: int,
    ) -> None:
        self._source = source
        # Chunks stand under the same keys for published and deleted snapshots.
        self._chunks = PresentSource(store)
        self._layout = layout
        self._contents = contents
        self._observer = observer
        self._parallelism = parallelism
        self._inventory = ChunkInventory()
        self._findings = _Findings()
        self._takes_renamed = False

    async def run(self, plan: Plan, depth: Depth, file: CheckpointFile, selection: Selection) -> VerificationReport:
        self._takes_renamed = selection.renamed
        checkpoint = file.load()
        # Whether that can be written is better known now than after hours.
        file.save(checkpoint)
        await self._take_inventory()
        self._observer.planned(len(plan.snapshots))
        self._look_at_owners(plan)
        await for_each(plan.snapshots, self._look_at_snapshot, _SNAPSHOTS_AT_ONCE)
        needed, needed_bytes = await trio.to_thread.run_sync(self._inventory.count_used)
        if depth.percent:
            checkpoint = await _ChunkReading(
                self._chunks, self._layout, self._inventory, depth, checkpoint, file, self._observer, self._parallelism
            ).run(needed, needed_bytes)
            await self._find_whom_it_costs(plan, checkpoint.damaged)
        self._conclude_chunks()
        return self._report(plan, needed, checkpoint)

    async def _take_inventory(self) -> None:
        async with aclosing(self._chunks.list(self._layout.chunks_prefix)) as objects:
            async for found in objects:
                digest = self._layout.chunk_digest(found.key)
                if digest is not None:
                    self._inventory.add(digest, found.size)
                    if not len(self._inventory) % 1000:
                        self._observer.listed(len(self._inventory))
        self._observer.listed(len(self._inventory))
        await trio.to_thread.run_sync(self._inventory.complete)

    def _look_at_owners(self, plan: Plan) -> None:
        for group in sorted({snapshot.group for snapshot in plan.snapshots}):
            if _OWNER_NAME not in self._contents.groups.get(group, {}):
                path = f"{group.path}/{_OWNER_NAME}"
                self._note(Damage(path, "it is missing: after a restore it has to be written anew"))

    async def _look_at_snapshot(self, snapshot: SnapshotId) -> None:
        try:
            manifest, _ = await read_manifest_object(self._source, self._layout, snapshot)
            problem = None if self._takes_renamed else problem_with_name(manifest, snapshot)
            if problem is not None:
                raise ManifestError(problem)
        except _DAMAGED as error:
            self._note(Damage(snapshot.manifest_path, str(error), (snapshot,)))
        else:
            await self._look_at_files(snapshot, manifest)
        self._observer.snapshot_finished(snapshot, is_damaged=snapshot in self._findings.damaged_snapshots)

    async def _look_at_files(self, snapshot: SnapshotId, manifest: Manifest) -> None:
        self._findings.sizes[snapshot] = manifest.size
        for file in manifest.files:
            try:
                await self._use_chunks_of(snapshot, file, self._use_chunks)
            except _DAMAGED as error:
                self._note(Damage(f"{snapshot.path}/{file.filename}", str(error), (snapshot,)))
        if CLIENT_LOG_NAME in self._contents.snapshots.get(snapshot, {}):
            path = f"{snapshot.path}/{CLIENT_LOG_NAME}"
            try:
                await read_checked(self._source, self._layout.content_key(path), Limit(LONGEST_CLIENT_LOG), check_blob)
            except _DAMAGED as error:
                self._note(Damage(path, str(error)))

    async def _use_chunks_of(
        self, snapshot: SnapshotId, file: ManifestFile, use: Callable[[ManifestFile, Content], BadChunks]
    ) -> None:
        """Read and check a listed file, and give it to `use` in a thread, which returns the chunks that are bad."""
        key = self._layout.content_key(f"{snapshot.path}/{file.filename}")
        limit = Limit(file.longest, file.check_beginning)
        bad = await read_checked(self._source, key, limit, partial(use, file))
        self._findings.left_out += bad.left_out
        for digest, reason in bad.named:
            if self._findings.note_chunk(digest, reason, snapshot):
                self._observer.found(Damage(chunk_path(digest), reason, (snapshot,)))

    def _use_chunks(self, file: ManifestFile, data: Content) -> BadChunks:
        index = check_listed_file(file, data)
        if index is None:
            return BadChunks()
        return self._inventory.use(index, are_encrypted=file.chunks_are_encrypted, most=MOST_DAMAGES)

    async def _find_whom_it_costs(self, plan: Plan, damaged: Mapping[str, str]) -> None:
        """Read the indexes once more, if chunks were damaged, for the snapshots that need them."""
        if not damaged:
            return
        reasons = {bytes.fromhex(digest): reason for digest, reason in damaged.items()}

        def find(file: ManifestFile, data: Content) -> BadChunks:
            index = check_listed_file(file, data)
            found = {digest for digest in index or () if digest in reasons}
            return BadChunks(tuple((digest, reasons[digest]) for digest in sorted(found)))

        async def look(snapshot: SnapshotId) -> None:
            try:
                manifest, _ = await read_manifest_object(self._source, self._layout, snapshot)
                for file in manifest.files:
                    if file.is_index:
                        await self._use_chunks_of(snapshot, file, find)
            except _DAMAGED:
                # Reported when it was looked at first, or gone since.
                return

        await for_each(plan.snapshots, look, _SNAPSHOTS_AT_ONCE)

    def _conclude_chunks(self) -> None:
        for digest, reason in sorted(self._findings.bad_chunks.items()):
            self._findings.note(Damage(chunk_path(digest), reason, tuple(sorted(self._findings.needed_by[digest]))))

    def _note(self, damage: Damage) -> None:
        self._findings.note(damage)
        self._observer.found(damage)

    def _report(self, plan: Plan, needed: int, checkpoint: Checkpoint) -> VerificationReport:
        findings = self._findings
        groups = tuple(
            GroupResult(
                group,
                len(members),
                sum(snapshot in findings.damaged_snapshots for snapshot in members),
                sum(findings.sizes.get(snapshot, 0) for snapshot in members),
            )
            for group, members in (
                (group, list(members))
                for group, members in itertools.groupby(plan.snapshots, key=lambda snapshot: snapshot.group)
            )
        )
        return VerificationReport(
            groups,
            tuple(sorted(findings.damages, key=lambda damage: damage.path)),
            findings.left_out,
            frozenset(findings.damaged_snapshots),
            len(self._inventory),
            self._inventory.bytes,
            needed,
            checkpoint.chunks,
            checkpoint.bytes,
        )


class _ChunkReading:
    """Reads the chunks that are referenced, in the order in which the store lists them."""

    def __init__(
        self,
        source: Source,
        layout: BucketLayout,
        inventory: ChunkInventory,
        depth: Depth,
        checkpoint: Checkpoint,
        file: CheckpointFile,
        observer: VerificationObserver,
        parallelism: int,
    ) -> None:
        self._source = source
        self._layout = layout
        self._inventory = inventory
        self._depth = depth
        self._checkpoint = checkpoint
        self._file = file
        self._observer = observer
        self._parallelism = parallelism
        self._damaged = dict(checkpoint.damaged)
        self._chunks, self._bytes = checkpoint.chunks, checkpoint.bytes
        self._under_way: set[bytes] = set()
        self._newest = bytes.fromhex(checkpoint.done_up_to)
        self._saved_at = trio.current_time()

    async def run(self, needed: int, needed_bytes: int) -> Checkpoint:
        """Read them; returns how it ended. What was read is saved also when this ends with an error."""
        share = self._depth.percent / 100
        self._observer.chunks_begin(self._chunks, math.ceil(needed * share), needed_bytes * share)
        try:
            await self._read_all()
        except BaseException:
            await self._save(shielded=True)
            raise
        self._file.remove()
        return self._position()

    async def _read_all(self) -> None:
        turn = trio.Lock()
        async with aclosing(self._wanted()) as wanted:

            async def work(_: int) -> None:
                while True:
                    async with turn:
                        digest = await anext(wanted, None)
                        if digest is None:
                            return
                        self._under_way.add(digest)
                        self._newest = digest
                    await self._read(digest)

            await for_each(range(self._parallelism), work, self._parallelism)

    async def _wanted(self) -> AsyncGenerator[bytes, None]:
        begin = bytes.fromhex(self._checkpoint.done_up_to) if self._inventory.is_sorted else b""
        async with aclosing(self._source.list(self._layout.chunks_prefix)) as objects:
            async for found in objects:
                digest = self._layout.chunk_digest(found.key)
                if (
                    digest is not None
                    and digest > begin
                    and self._inventory.uses_of(digest)
                    and self._depth.includes(digest, self._checkpoint.salt)
                ):
                    yield digest

    async def _read(self, digest: bytes) -> None:
        key, uses = self._layout.chunk_key(digest), self._inventory.uses_of(digest)
        try:
            await read_chunk(self._source, key, digest, uses=uses, taken=self._count)
        except _DAMAGED as error:
            self._damaged[digest.hex()] = str(error)
            self._observer.found(Damage(chunk_path(digest), str(error)))
        self._under_way.remove(digest)
        self._chunks += 1
        self._observer.chunk_finished(self._bytes)
        if trio.current_time() - self._saved_at >= _SAVE_SECONDS:
            await self._save(shielded=False)

    def _count(self, size: int) -> None:
        self._bytes += size

    async def _save(self, *, shielded: bool) -> None:
        self._saved_at = trio.current_time()
        with trio.CancelScope(shield=shielded):
            await trio.to_thread.run_sync(self._file.save, self._position())

    def _position(self) -> Checkpoint:
        """Everything is done that is less than what is under way, as long as the store lists in order."""
        if not self._inventory.is_sorted:
            return self._checkpoint.advanced("", self._damaged, self._chunks, self._bytes)
        oldest = min(self._under_way, default=None)
        done = self._newest if oldest is None else (max(1, int.from_bytes(oldest, "big")) - 1).to_bytes(32, "big")
        return self._checkpoint.advanced(done.hex(), self._damaged, self._chunks, self._bytes)
