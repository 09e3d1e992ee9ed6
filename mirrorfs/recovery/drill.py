"""A drill: what a restore would bring back is brought back, read, compared, and thrown away; the proof is a report."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from mirrorfs.concurrency import for_each
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.objectstore.errors import ObjectMissing, ObjectTooLarge, StoreError
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.catalog import list_contents, read_manifest_object
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.estimate import estimate_restore
from mirrorfs.recovery.ownership import Owner
from mirrorfs.recovery.progress import Problem, RestoreObserver, RestoreReport
from mirrorfs.recovery.reading_back import ReadBack, read_back
from mirrorfs.recovery.restore import restore_datastore
from mirrorfs.recovery.scratch import Room, Scratch, scratch_directory
from mirrorfs.recovery.selection import Plan, Selection, plan_restore
from mirrorfs.recovery.source import PresentSource
from mirrorfs.recovery.target import CHUNK_DIRECTORIES
from mirrorfs.steps import reach

# What cannot be compressed is stored with a header, and a file takes whole blocks.
_OVERHEAD = 1.02
_FEW_FILES = 1000
_SMALLEST_CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class DrilledSnapshot:
    """A snapshot that was to be brought back: its size before compression (None if its manifest is damaged), and why it
    was not, None if it was.
    """

    snapshot: SnapshotId
    size: int | None
    problem: str | None


@dataclass(frozen=True, slots=True)
class DrillReport:
    """What a drill was about and what came of it. Times are Unix times; durations are in seconds.

    `store` is bucket and endpoint. `problems` are what was not restored, and what was not as it should be when it was
    read back. `failure` is what ended it early, None if it came to its end; then `restore` or `read` may be missing.
    """

    url: str
    store: str
    selection: Selection
    began: float
    ended: float
    snapshots: tuple[DrilledSnapshot, ...]
    restore: RestoreReport | None
    restore_seconds: float
    read: ReadBack | None
    read_seconds: float
    problems: tuple[Problem, ...]
    failure: str | None

    @property
    def is_good(self) -> bool:
        """Whether everything came back as it was published."""
        return self.failure is None and not self.problems


@dataclass(slots=True)
class _Course:
    """How far a drill has come."""

    restore: RestoreReport | None = None
    restore_seconds: float = 0.0
    read: ReadBack | None = None
    read_seconds: float = 0.0
    failure: str | None = None


class DrillObserver(RestoreObserver):
    """Told of the progress of a drill, in the trio thread; see RestoreObserver."""

    def abandoned_removed(self, path: Path) -> None:
        """What a drill has left that was killed has been removed."""

    def read_back(self, size: int) -> None:
        """So many bytes of what was restored have been read."""


async def drill(
    store: ObjectStore,
    address: StoreAddress,
    scratch_base: Path,
    *,
    selection: Selection,
    parallelism: int = 8,
    observer: DrillObserver | None = None,
    listing_store: ObjectStore | None = None,
    now: Callable[[], float] = time.time,
) -> DrillReport:
    """Restore what is selected into a directory of its own in `scratch_base`, read it all, and remove it.

    The directory is gone when this returns or raises. What ends the restore early, a full disk or a store that is gone,
    is a part of the report. Raises RestoreError and StoreError if nothing could be begun: nothing is there or chosen,
    the scratch directory cannot be made, there is no room for it.
    """
    layout = BucketLayout(address.prefix)
    source = PresentSource(store, listing_store)
    contents = await list_contents(source, layout)
    if not contents.published:
        raise RestoreError(f"There are no snapshots at {address}. Check the name with: mirrorfs snapshots {address}")
    plan = plan_restore(contents, selection)
    if not plan.snapshots:
        raise RestoreError(f"Nothing that was chosen at {address} has a snapshot.")
    began, course, observer = now(), _Course(), observer or DrillObserver()
    sizes = await _sizes(source, layout, plan)
    with scratch_directory(scratch_base, observer.abandoned_removed) as scratch:
        await _refuse_without_room(scratch, scratch_base, store, address, selection, plan, sizes)
        try:
            await _run_course(course, store, address, scratch, selection, parallelism, observer)
        except (RestoreError, StoreError) as error:
            course.failure = _reason(error)
    return _report(address, store.place, selection, began, now(), plan, sizes, course)


async def _run_course(
    course: _Course,
    store: ObjectStore,
    address: StoreAddress,
    scratch: Scratch,
    selection: Selection,
    parallelism: int,
    observer: DrillObserver,
) -> None:
    began = trio.current_time()
    # Nobody else is to have these files.
    owner = Owner(os.geteuid(), os.getegid())
    try:
        course.restore = await restore_datastore(
            store,
            address,
            scratch.datastore,
            owner=owner,
            selection=selection,
            parallelism=parallelism,
            observer=observer,
        )
    finally:
        course.restore_seconds = trio.current_time() - began
    reach("drill.restored")
    began = trio.current_time()
    root = os.open(scratch.datastore, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        course.read = await read_back(root, course.restore.restored, parallelism=parallelism, told=observer.read_back)
    except OSError as error:
        raise RestoreError(f"what was restored cannot be read back: {error.strerror}") from error
    finally:
        os.close(root)
        course.read_seconds = trio.current_time() - began
    reach("drill.read")


async def _sizes(source: PresentSource, layout: BucketLayout, plan: Plan) -> dict[SnapshotId, int]:
    """Tell how large the snapshots are before compression; those whose manifest is damaged are left out."""
    sizes: dict[SnapshotId, int] = {}

    async def read(snapshot: SnapshotId) -> None:
        try:
            manifest, _ = await read_manifest_object(source, layout, snapshot)
        except (DatastoreError, ObjectMissing, ObjectTooLarge):
            return
        sizes[snapshot] = manifest.size

    await for_each(plan.snapshots, read, 8)
    return sizes


async def _refuse_without_room(
    scratch: Scratch,
    base: Path,
    store: ObjectStore,
    address: StoreAddress,
    selection: Selection,
    plan: Plan,
    sizes: dict[SnapshotId, int],
) -> None:
    """Raise RestoreError if the scratch directory's file system has not the room that is needed.

    The sizes before compression mostly say that there is enough, and cost nothing. Where they do not, the chunks that
    are needed are counted, which costs a listing of all of them and a look at each index.
    """
    room = scratch.room()
    frame = CHUNK_DIRECTORIES * room.directory
    most = sum(sizes.values())
    most_files = CHUNK_DIRECTORIES + most // _SMALLEST_CHUNK + _FEW_FILES * len(plan.snapshots)
    if most * _OVERHEAD + frame <= room.bytes and (room.files is None or most_files <= room.files):
        return
    estimate = await estimate_restore(store, address, scratch.datastore, selection=selection)
    files = CHUNK_DIRECTORIES + estimate.chunks + _FEW_FILES * len(plan.snapshots)
    need = estimate.bytes + frame + estimate.chunks * room.block
    if need > room.bytes or (room.files is not None and files > room.files):
        raise RestoreError(_describe_lack(base, room, need, files))


def _describe_lack(base: Path, room: Room, need: int, files: int) -> str:
    of_files = "" if room.files is None else f" and {files} files, of which there may be {room.files} more"
    return (
        f"There is no room in {base}: about {need / 1e6:.0f} MB are needed, and {room.bytes / 1e6:.0f} MB are free"
        f"{of_files}. Give another --scratch DIR, or choose less (--group, --latest, --full for one group after the "
        "other)."
    )


def _reason(error: Exception) -> str:
    """Say why it ended; how a restore is gone on with, which the later sentences tell, does not help here."""
    return str(error).partition(". ")[0] if isinstance(error, RestoreError) else str(error)


def _report(
    address: StoreAddress,
    place: str,
    selection: Selection,
    began: float,
    ended: float,
    plan: Plan,
    sizes: dict[SnapshotId, int],
    course: _Course,
) -> DrillReport:
    restore, read = course.restore, course.read
    problems = (*(() if restore is None else restore.problems), *(() if read is None else read.problems))
    reasons = {problem.path: problem.reason for problem in problems}
    restored = frozenset(() if restore is None else restore.restored)
    snapshots = tuple(
        DrilledSnapshot(
            snapshot,
            sizes.get(snapshot),
            None if snapshot in restored else reasons.get(snapshot.path, course.failure or "it was not restored"),
        )
        for snapshot in plan.snapshots
    )
    return DrillReport(
        str(address),
        place,
        selection,
        began,
        ended,
        snapshots,
        restore,
        course.restore_seconds,
        read,
        course.read_seconds,
        problems,
        course.failure,
    )
