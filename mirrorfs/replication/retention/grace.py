"""Grace: a snapshot that left the datastore stays restorable in the bucket for a while, with its chunks."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import replace

from mirrorfs.datastore.content import Content
from mirrorfs.datastore.deletion import Deletion
from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.layout import DELETED_MARKER_NAME
from mirrorfs.datastore.limits import LONGEST_RECORD, longest_file
from mirrorfs.datastore.names import GROUP_FILE_NAMES, MANIFEST_NAME, GroupId, SnapshotId
from mirrorfs.objectstore.checksums import calculate_crc32c
from mirrorfs.objectstore.errors import CopyUnsupported, ObjectMissing, ObjectTooLarge, StoreError
from mirrorfs.replication.publishing.references import References
from mirrorfs.replication.retention.clock import StoreClock, utc
from mirrorfs.replication.retention.recurrence import Recurrence
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.exclusion import Exclusion
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.stored import UNUSABLE, read_deletion, read_manifest
from mirrorfs.state.contents import ContentState
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.retention import DeletedPhase, DeletedSnapshot
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_LONGEST_WAIT = 60.0
# Others can write there too: no more of them are in memory, whatever the bucket holds.
_ADOPTED_AT_ONCE = 50_000
_MOST_FILES = 1000


class Grace:
    """The deleted snapshots, below `.mirrorfs/deleted/`; at most one of each name.

    A copy is made before the published snapshot goes, its manifest last; from then on it owns the references to chunks
    that the snapshot had. It ends when its time is over, or when a snapshot of its name is published again: manifest
    first, references next, then the rest.
    """

    def __init__(
        self,
        bucket: Bucket,
        state: CommittedState,
        references: References,
        clock: StoreClock,
        ownership: Ownership,
        *,
        delete_after: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`delete_after` is for how many seconds a removed snapshot is kept; 0: not at all."""
        self._bucket = bucket
        self._state = state
        self._references = references
        self._clock = clock
        self._ownership = ownership
        self._delete_after = delete_after
        self._now = now
        self._recurrence = Recurrence()
        self._alone = Exclusion[str]()

    async def keep(self, snapshot: SnapshotId) -> None:
        """Copy a published snapshot that is to be removed, and have the copy own its references.

        Does nothing where removed snapshots are not kept, or where it is not published. After this the state knows the
        snapshot as one whose references are given back.
        """
        known = self._state.view(lambda transaction: transaction.snapshots.get(snapshot.path))
        if self._delete_after <= 0 or known is None or not known.phase.counts_references:
            return
        async with self._alone.hold(snapshot.path):
            await self._keep(snapshot, known)

    async def _keep(self, snapshot: SnapshotId, known: SnapshotState) -> None:
        contents = self._state.view(lambda transaction: list(transaction.contents.below(snapshot.path)))
        if not any(content.path == snapshot.manifest_path for content in contents):
            return
        await self._end(snapshot.path)
        try:
            await self._copy(snapshot, known, contents)
        except ObjectMissing as error:
            log.warning("the removed snapshot %s cannot be kept, it is not complete: %s", snapshot.path, error)
            await self._end(snapshot.path)

    async def _copy(self, snapshot: SnapshotId, known: SnapshotState, contents: list[ContentState]) -> None:
        # Not ours, which may be about to be set right.
        now = await self._clock.time()
        files = [content for content in contents if content.path != snapshot.manifest_path]
        names = (*(_filename(content) for content in files), DELETED_MARKER_NAME, MANIFEST_NAME)
        deleted = DeletedSnapshot(
            snapshot.path, known.files, names, DeletedPhase.COPYING, now, now + self._delete_after
        )
        await self._state.apply(lambda transaction: transaction.retention.set_deleted(deleted))
        reach("grace.begun")
        for content in files:
            try:
                await self._copy_object(snapshot, content)
            except ObjectMissing:
                # What no manifest lists may never have been put.
                if _filename(content) in known.files:
                    raise
            reach("grace.file-copied")
        await self._bucket.store.put(
            self._key(snapshot.path, DELETED_MARKER_NAME), await self._marker(snapshot, deleted)
        )
        reach("grace.marker-put")
        await self._copy_object(
            snapshot, next(content for content in contents if content.path == snapshot.manifest_path)
        )
        reach("grace.manifest-copied")
        await self._state.apply(lambda transaction: _hand_over(transaction, known, deleted))
        reach("grace.handed-over")
        self._recurrence.hasten()
        log.info("%s is gone from the datastore; it stays restorable until %s", snapshot.path, utc(deleted.until))

    async def _copy_object(self, snapshot: SnapshotId, content: ContentState) -> None:
        source, target = self._bucket.layout.content_key(content.path), self._key(snapshot.path, _filename(content))
        if content.confirmed and self._bucket.store.capabilities.copies:
            try:
                await self._bucket.store.copy(source, target, size=content.size, crc32c=content.crc32c)
            except CopyUnsupported as error:
                log.debug("%s", error)
            else:
                return
        data = await self._published(source, content)
        await self._bucket.store.put(target, data)

    async def _published(self, source: str, content: ContentState) -> Content:
        """Read an object of the snapshot. Raises ObjectMissing also where it is not what was published."""
        maximum = content.size if content.confirmed else longest_file(content.path)
        try:
            data = await self._bucket.store.get_content(source, maximum)
        except ObjectTooLarge as error:
            raise ObjectMissing(f"copy {source}", "it is not what was published") from error
        if content.confirmed and (len(data), calculate_crc32c(data)) != (content.size, content.crc32c):
            raise ObjectMissing(f"copy {source}", "it is not what was published")
        return data

    async def _marker(self, snapshot: SnapshotId, deleted: DeletedSnapshot) -> bytes:
        owner, notes = [await self._group_file(snapshot.group, name) for name in GROUP_FILE_NAMES]
        return Deletion(deleted.deleted, deleted.until, owner, notes).encode()

    async def _group_file(self, group: GroupId, name: str) -> str | None:
        try:
            data = await self._bucket.store.get(self._bucket.layout.content_key(f"{group.path}/{name}"), LONGEST_RECORD)
        except ObjectMissing:
            return None
        except ObjectTooLarge as error:
            log.warning("a deleted snapshot is kept without the %s of its group: %s", name, error)
            return None
        return data.decode("utf-8", "replace")

    def look_again(self) -> None:
        """Say that a published snapshot is gone from the bucket: its grace may end."""
        self._recurrence.hasten()

    async def end(self, path: str) -> None:
        """Have nothing of the deleted snapshot `path` in the bucket, and give its references back."""
        async with self._alone.hold(path):
            await self._end(path)

    async def _end(self, path: str) -> None:
        deleted = self._state.view(lambda transaction: transaction.retention.deleted(path))
        if deleted is None:
            return
        if deleted.phase is not DeletedPhase.ENDING:
            await self._release(deleted)
        else:
            await self._references.give_back_interrupted(_holder(path))
        await self._bucket.store.delete([self._key(path, name) for name in deleted.names])
        reach("grace.files-deleted")
        await self._state.apply(lambda transaction: transaction.retention.forget_deleted(path))
        reach("grace.ended")

    async def _release(self, deleted: DeletedSnapshot) -> None:
        await self._bucket.store.delete([self._key(deleted.path, MANIFEST_NAME)])
        reach("grace.manifest-deleted")
        ending = replace(deleted, phase=DeletedPhase.ENDING)

        def note(transaction: StateTransaction) -> None:
            transaction.retention.set_deleted(ending)

        if deleted.phase is DeletedPhase.KEPT:
            await self._references.give_back(_holder(deleted.path), deleted.files, note)
        else:
            await self._state.apply(note)
        reach("grace.released")

    async def end_when_due(self) -> None:
        """End each grace when its time is over, for ever; a store that fails is tried again."""
        await self._recurrence.keep_doing(self.end_due)

    async def end_due(self) -> float:
        """End what is due; returns for how long nothing else is, in seconds, at most a minute: clocks may be set."""
        kept = self._state.view(_may_end)
        moment = self._now()
        due = [deleted for deleted in kept if _is_due(deleted, moment)]
        try:
            if due:
                # By the store's clock, by which they were dated; ours may be ahead by less than would be told.
                moment = await self._clock.time()
                moment = moment if self._clock.is_trusted else float("-inf")
                await self._ownership.confirm_for_removal()
            for deleted in due:
                await self._end_if_due(deleted.path, moment)
        except StoreError as error:
            log.error("deleted snapshots that are due stay in the bucket for now: %s", error)
            return _LONGEST_WAIT
        return min([_LONGEST_WAIT, *(deleted.until - moment for deleted in kept if not _is_due(deleted, moment))])

    async def _end_if_due(self, path: str, moment: float) -> None:
        async with self._alone.hold(path):
            # Another one may have taken its name meanwhile.
            deleted = self._state.view(lambda transaction: _if_it_may_end(transaction, path))
            if deleted is not None and _is_due(deleted, moment):
                await self._end(path)
                log.info("the deleted snapshot %s is not kept any longer", path)

    # --- a new state

    async def adopt(self) -> None:
        """Take into a new state what an earlier one has kept; what is not complete there goes."""
        while names := await self._some_unknown():
            for path, filenames in names.items():
                await self._adopt_snapshot(path, tuple(filenames))

    async def _some_unknown(self) -> dict[str, list[str]]:
        """Return the files of snapshots that the state does not know, not of all of them if there are too many."""
        names: dict[str, list[str]] = {}
        async with aclosing(self._bucket.store.list(self._bucket.layout.deleted_prefix)) as objects:
            async for stored in objects:
                found = self._bucket.layout.deleted_path(stored.key)
                if found is None:
                    continue
                path, _, name = found.rpartition("/")
                if path in names:
                    if len(names[path]) < _MOST_FILES:
                        names[path].append(name)
                elif len(names) < _ADOPTED_AT_ONCE and not self._is_known(path):
                    names[path] = [name]
        return names

    def _is_known(self, path: str) -> bool:
        return self._state.view(lambda transaction: transaction.retention.deleted(path)) is not None

    async def _adopt_snapshot(self, path: str, names: tuple[str, ...]) -> None:
        now = self._now()
        incomplete = DeletedSnapshot(path, {}, names, DeletedPhase.ENDING, now, now)
        deleted, digests = incomplete, Digests()
        if MANIFEST_NAME in names:
            try:
                files = await self._listed_files(path)
                found = await self._references.digests(_holder(path), files)
                times = await self._times(path)
            except UNUSABLE as error:
                log.warning("the deleted snapshot %s in the bucket cannot be used: %s", path, error)
            else:
                if found is not None:
                    digests = await self._references.count_all_but_last(_holder(path), files, found)
                    deleted = replace(
                        incomplete, files=files, phase=DeletedPhase.KEPT, deleted=times[0], until=times[1]
                    )
        await self._state.apply(lambda transaction: _take_in(transaction, deleted, digests))
        reach("grace.adopted")

    async def _listed_files(self, path: str) -> dict[str, str]:
        return (await read_manifest(self._bucket.store, self._key(path, MANIFEST_NAME))).checksums

    async def _times(self, path: str) -> tuple[float, float]:
        """Read when it was deleted and until when it is kept; without a readable note, from now on."""
        now = self._now()
        try:
            deletion = await read_deletion(self._bucket.store, self._key(path, DELETED_MARKER_NAME))
        except UNUSABLE as error:
            log.warning("it cannot be read when %s was deleted, so it is kept from now on: %s", path, error)
            return now, now + self._delete_after
        return deletion.deleted, deletion.until

    def _key(self, path: str, name: str) -> str:
        return self._bucket.layout.deleted_key(path, name)


def _hand_over(transaction: StateTransaction, known: SnapshotState, deleted: DeletedSnapshot) -> None:
    transaction.retention.set_deleted(replace(deleted, phase=DeletedPhase.KEPT))
    transaction.locks.forget_snapshot(deleted.path)
    transaction.snapshots.set(deleted.path, replace(known, phase=SnapshotPhase.RELEASED, since=deleted.deleted))


def _take_in(transaction: StateTransaction, deleted: DeletedSnapshot, digests: Digests) -> None:
    transaction.retention.set_deleted(deleted)
    if deleted.phase is DeletedPhase.KEPT:
        transaction.counting.end_count(_holder(deleted.path), digests)


def _holder(path: str) -> ReferenceHolder:
    return ReferenceHolder(path, is_kept=True)


def _may_end(transaction: StateTransaction) -> list[DeletedSnapshot]:
    """Return the deleted snapshots that may end as far as that is not a matter of time."""
    paths = (deleted.path for deleted in transaction.retention.all_deleted())
    return [deleted for path in paths if (deleted := _if_it_may_end(transaction, path)) is not None]


def _if_it_may_end(transaction: StateTransaction, path: str) -> DeletedSnapshot | None:
    """Return a deleted snapshot unless it may still stand published, and need the references for that (P5).

    They have been handed over before the published manifest goes; a crash may come in between.
    """
    return transaction.retention.deleted(path) if transaction.snapshots.get(path) is None else None


def _is_due(deleted: DeletedSnapshot, moment: float) -> bool:
    """Tell whether one that may end has to: at its time, or because it was given up when it was copied or removed."""
    return deleted.phase is not DeletedPhase.KEPT or deleted.until <= moment


def _filename(content: ContentState) -> str:
    return content.path.rpartition("/")[2]
