"""What a restore would do, without doing it: which snapshots, how many bytes, about how long."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from mirrorfs import own_files
from mirrorfs.checking.reading import Limit, read_checked
from mirrorfs.concurrency import for_each
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.index import Index, is_index_name
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.limits import LONGEST_CHUNK
from mirrorfs.datastore.manifest import ManifestFile, check_listed_file
from mirrorfs.datastore.names import CHUNKS_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.errors import ObjectMissing, StoreRejected
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.catalog import problem_with_name, read_manifest_object, try_reading
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.inventory import ChunkInventory
from mirrorfs.recovery.marker import Marker
from mirrorfs.recovery.progress import Damages, Problem
from mirrorfs.recovery.restore import Manner, list_datastore
from mirrorfs.recovery.selection import Plan, Selection, plan_restore
from mirrorfs.recovery.source import Source, View, open_source
from mirrorfs.recovery.target import marker_in

_SNAPSHOTS_AT_ONCE = 4
_MOST_NAMED = 10_000
_SAMPLE_CHUNKS = 32
_SAMPLE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a restore would bring, and what it would not.

    `chunks` of `chunk_bytes` would be fetched, `chunks_there` stand in the directory (whether they are good is not
    looked at), `file_bytes` are those of all other files. `bytes_per_second` is what a few chunks were read with, None
    where there was none; `seconds` what that makes of all.
    """

    snapshots: tuple[SnapshotId, ...]
    already_there: tuple[SnapshotId, ...]
    problems: tuple[Problem, ...]
    chunks: int
    chunk_bytes: int
    chunks_there: int
    file_bytes: int
    bytes_per_second: float | None

    @property
    def bytes(self) -> int:
        """How many bytes would be fetched."""
        return self.chunk_bytes + self.file_bytes

    @property
    def seconds(self) -> float | None:
        """About how long that takes; None where it is not known."""
        return None if self.bytes_per_second is None else self.bytes / self.bytes_per_second


async def estimate_restore(
    store: ObjectStore,
    address: StoreAddress,
    target: Path,
    *,
    selection: Selection = Selection(),  # noqa: B008 - immutable
    view: View = View(),  # noqa: B008 - immutable
    manner: Manner = Manner(),  # noqa: B008 - immutable
    parallelism: int = 8,
    listing_store: ObjectStore | None = None,
) -> Estimate:
    """Tell what `restore_datastore` would do, given the same; writes nothing.

    Lists the chunks of the bucket, which takes 13 bytes of memory for each, and reads manifests and indexes. Raises
    RestoreError where a restore would refuse the directory, and StoreError.
    """
    layout = BucketLayout(address.prefix)
    source = open_source(view, store, layout, listing_store)
    contents = await list_datastore(source, address, layout, view)
    plan = plan_restore(contents, selection, view)
    if listing_store is not None:
        await try_reading(open_source(view, listing_store, layout), layout, plan.snapshots)
    root = _open(target)
    with closing(_Directory(root)) as directory:
        if root is not None and not manner.into:
            marker_in(root, target, Marker(str(address), view))
        estimation = _Estimation(source, layout, directory, manner, takes_renamed=selection.renamed)
        there = directory.snapshots_of(plan) if manner.into else ()
        snapshots = [snapshot for snapshot in plan.newest_first() if snapshot not in frozenset(there)]
        # Deleted snapshots have their chunks where the published ones have theirs.
        await estimation.list_chunks(open_source(View(view.as_of), store, layout, listing_store))
        await for_each(snapshots, estimation.look_at, _SNAPSHOTS_AT_ONCE)
        return await estimation.finish(snapshots, there, parallelism)


def _open(target: Path) -> int | None:
    """Open the directory if it is there. Raises RestoreError."""
    if not target.exists():
        return None
    try:
        return own_files.open_directory(str(target))
    except own_files.NotOwn as error:
        raise RestoreError(f"Cannot restore into {target}: {error}.") from error
    except OSError as error:
        raise RestoreError(f"Cannot restore into {target}: {error.strerror}.") from error


class _Directory:
    """What stands in the target."""

    def __init__(self, root: int | None) -> None:
        self._root = root
        self._tree = None if root is None else Tree(root)

    def snapshots_of(self, plan: Plan) -> tuple[SnapshotId, ...]:
        if self._tree is None or not self._tree.is_directory(CHUNKS_NAME):
            raise RestoreError("There is no datastore to restore into: there is no directory .chunks in it.")
        return tuple(snapshot for snapshot in plan.snapshots if self._tree.is_taken(snapshot.manifest_path))

    def present(self, digests: Iterable[bytes]) -> list[bytes]:
        if self._tree is None:
            return []
        return [digest for digest in digests if self._tree.chunk_size(digest) is not None]

    def close(self) -> None:
        if self._root is not None:
            os.close(self._root)


class _Estimation:
    """One run."""

    def __init__(
        self, source: Source, layout: BucketLayout, directory: _Directory, manner: Manner, *, takes_renamed: bool
    ) -> None:
        self._source = source
        self._layout = layout
        self._directory = directory
        self._manner = manner
        self._takes_renamed = takes_renamed
        self._inventory = ChunkInventory()
        self._file_bytes = 0
        self._problems: list[Problem] = []
        self._sample: list[bytes] = []
        self._seen = 0
        self._randomness = random.Random()  # noqa: S311 - it chooses a sample, nothing is to be hidden

    async def list_chunks(self, source: Source) -> None:
        """List the chunks, unless none would be fetched."""
        if self._manner.metadata_only:
            return
        async with aclosing(source.list(self._layout.chunks_prefix)) as objects:
            async for found in objects:
                digest = self._layout.chunk_digest(found.key)
                if digest is not None:
                    self._inventory.add(digest, found.size)
        await trio.to_thread.run_sync(self._inventory.complete)

    async def look_at(self, snapshot: SnapshotId) -> None:
        """Count what a snapshot needs."""
        damages = Damages()
        try:
            manifest, data = await read_manifest_object(self._source, self._layout, snapshot)
            problem = None if self._takes_renamed else problem_with_name(manifest, snapshot)
            if problem is not None:
                damages.note(snapshot.path, problem)
                self._problems.extend(damages.problems)
                return
            self._file_bytes += len(data)
            for file in manifest.files:
                await self._look_at_file(snapshot, file, damages)
        except (DatastoreError, ObjectMissing, StoreRejected) as error:
            damages.note(snapshot.path, str(error))
        self._problems.extend(damages.problems)

    async def _look_at_file(self, snapshot: SnapshotId, file: ManifestFile, damages: Damages) -> None:
        if not is_index_name(file.filename):
            self._file_bytes += file.size
            return
        key = self._layout.content_key(f"{snapshot.path}/{file.filename}")
        limit = Limit(file.longest, file.check_beginning)
        index = await read_checked(self._source, key, limit, partial(check_listed_file, file), self._count)
        if index is not None and not self._manner.metadata_only:
            for digest, reason in await trio.to_thread.run_sync(self._use, index, file):
                damages.note(f"{snapshot.path}: chunk {digest.hex()}", reason)

    def _count(self, size: int) -> None:
        self._file_bytes += size

    def _use(self, index: Index, file: ManifestFile) -> list[tuple[bytes, str]]:
        """Note which chunks are needed and which stand there; returns those that cannot be had."""
        digests = index.unique_digests()
        bad = self._inventory.use(digests, are_encrypted=file.chunks_are_encrypted, most=_MOST_NAMED).named
        self._inventory.leave(self._directory.present(digests))
        for digest in digests:
            self._seen += 1
            if len(self._sample) < _SAMPLE_CHUNKS:
                self._sample.append(digest)
            elif (place := self._randomness.randrange(self._seen)) < _SAMPLE_CHUNKS:
                self._sample[place] = digest
        there = set(self._directory.present(digest for digest, _ in bad))
        return [(digest, reason) for digest, reason in bad if digest not in there]

    async def finish(
        self, snapshots: Iterable[SnapshotId], there: tuple[SnapshotId, ...], parallelism: int
    ) -> Estimate:
        """Sum up, after some chunks were read against the clock."""
        chunks, chunk_bytes = self._inventory.count_used()
        rate = await self._measure(parallelism) if chunks else None
        limit = self._manner.bytes_per_second
        if rate is not None and limit is not None:
            rate = min(rate, limit)
        return Estimate(
            tuple(sorted(snapshots)),
            there,
            tuple(sorted(self._problems, key=lambda problem: problem.path)),
            chunks,
            chunk_bytes,
            self._inventory.left,
            self._file_bytes,
            rate,
        )

    async def _measure(self, parallelism: int) -> float | None:
        size = 0

        async def read(digest: bytes) -> None:
            nonlocal size
            try:
                size += len(await self._source.get(self._layout.chunk_key(digest), Limit(LONGEST_CHUNK)))
            except (ObjectMissing, StoreRejected):
                return

        began = trio.current_time()
        with trio.move_on_after(_SAMPLE_SECONDS):
            await for_each(self._sample, read, parallelism)
        return size / (trio.current_time() - began) if size else None
