"""Publishing a snapshot: closure first, manifest last; and keeping a published one up to date."""

from __future__ import annotations

import logging
import random
import time
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

import trio

from mirrorfs.concurrency import for_each
from mirrorfs.datastore.blob import check_blob
from mirrorfs.datastore.content import Content
from mirrorfs.datastore.digests import Digests
from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.manifest import Manifest, check_listed_file, parse_manifest
from mirrorfs.datastore.names import CLIENT_LOG_NAME, MANIFEST_NAME, PROTECTED_NAME, GroupId, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.events import EventName, about
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected
from mirrorfs.replication.publishing.chunks import ChunkMirror
from mirrorfs.replication.publishing.groups import GroupMirror, NamespaceMirror
from mirrorfs.replication.publishing.outlook import Forecast, Outlook
from mirrorfs.replication.publishing.references import References
from mirrorfs.replication.publishing.replica import Replica
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.exclusion import Exclusion
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.problems import CannotMirror, Problems
from mirrorfs.replication.work.stored import UNUSABLE
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_EXTRAS = (PROTECTED_NAME, CLIENT_LOG_NAME)
MOST_FAILURES = 1000
# A snapshot may lack thousands of chunks; naming a few tells the administrator as much.
_NAMED_CHUNKS = 3
# Of each snapshot; what a state that is older than the bucket has wrong is mostly not wrong of one chunk alone.
_CHUNKS_LOOKED_FOR = 3
# Each takes some ten times the memory of its manifest, which whoever writes to the datastore chooses.
_READ_AT_ONCE = 2


@dataclass(frozen=True, slots=True)
class LocalManifest:
    """A snapshot's manifest as the datastore holds it now, checked."""

    data: bytes
    manifest: Manifest

    @property
    def files(self) -> dict[str, str]:
        """The listed files with their checksums in hex."""
        return self.manifest.checksums


@dataclass(frozen=True, slots=True)
class LocalClosure:
    """The files that a manifest lists, checked against it, and the chunks that they need."""

    files: dict[str, Content]
    digests: Digests


class Removal(Protocol):
    """Whoever takes out of the bucket what stands in the way of a publication; the room `retention` decides how."""

    async def remove(self, snapshot: SnapshotId) -> None:
        """Have nothing of the snapshot in the bucket, its manifest gone before anything that it lists."""


class SnapshotPublication:
    """Makes the bucket's copy of a snapshot equal to the datastore's, in an order that keeps P1 at each instant."""

    def __init__(
        self,
        tree: Tree,
        replica: Replica,
        state: CommittedState,
        chunks: ChunkMirror,
        groups: GroupMirror,
        namespaces: NamespaceMirror,
        references: References,
        removal: Removal,
        problems: Problems,
        ownership: Ownership,
        *,
        handle_if_listed: Callable[[bytes], Awaitable[None]],
        parallel: int,
    ) -> None:
        """`handle_if_listed` is called with each chunk that is needed: one that waits to be handled is handled first,
        so that nobody has to look at it once more. `parallel` is how many chunks of one snapshot are sent at once.
        """
        self._tree = tree
        self._replica = replica
        self._state = state
        self._chunks = chunks
        self._groups = groups
        self._namespaces = namespaces
        self._references = references
        self._removal = removal
        self._problems = problems
        self._ownership = ownership
        self._handle_if_listed = handle_if_listed
        self._parallel = parallel
        self._readers = trio.CapacityLimiter(_READ_AT_ONCE)
        self._alone = Exclusion[SnapshotId]()
        self._blocked: defaultdict[bytes, set[SnapshotId]] = defaultdict(set)
        self._replacing: set[SnapshotId] = set()
        self.remaining: dict[SnapshotId, int] = {}
        """Chunks still to be sent for each snapshot that is being published."""

    def blocked_by(self, digest: bytes) -> set[SnapshotId]:
        """Return, once, the snapshots that could not be published because of a chunk."""
        return self._blocked.pop(digest, set())

    async def settle(self, snapshot: SnapshotId, *, at_a_glance: bool = False) -> bool:
        """Have the bucket agree with what the datastore holds now under the snapshot's name.

        Removes nothing: returns False where the snapshot is gone from the datastore, and something of it is left in the
        bucket. `at_a_glance`, listed files are not read if the manifest is the one that was published.

        Raises:
            CannotMirror: the snapshot, or part of it, cannot be published as it is.
        """
        async with self._alone.hold(snapshot):
            local = await trio.to_thread.run_sync(self._read_manifest, snapshot, limiter=self._readers)
            if local is None:
                self._replacing.discard(snapshot)
                await self._note_extras(snapshot, {})
                if not self._state.view(lambda transaction: _leaves_nothing(transaction, snapshot.path)):
                    return False
                # Had it been there, or on its way, it would have kept these.
                await self._settle_group(snapshot.group)
                await self._namespaces.settle_with_parents(snapshot.group.namespace)
                return True
            try:
                if not await self._publish(snapshot, local, at_a_glance):
                    return False
                await self._settle_extras(snapshot, local)
            except (StoreRejected, ConfirmationFailed) as error:
                raise self._problems.refusal(snapshot.path, error) from error
            return True

    def listed_files(self, snapshot: SnapshotId) -> Mapping[str, str] | None:
        """Return what the datastore's manifest lists, with the checksums in hex; None if that cannot be told.

        Blocks for the disk.
        """
        try:
            local = self._read_manifest(snapshot)
        except CannotMirror:
            return None
        return None if local is None else local.files

    def alone(self, snapshot: SnapshotId) -> AbstractAsyncContextManager[None]:
        """Keep a snapshot from being settled, after whoever settles it now."""
        return self._alone.hold(snapshot)

    def is_being_settled(self, snapshot: SnapshotId) -> bool:
        """Tell whether somebody settles the snapshot, or keeps it from being settled, at this moment."""
        return snapshot in self._alone.held()

    def outlook(self, snapshot: SnapshotId) -> Forecast | None:
        """Tell what `settle` would do, and why, as far as the state knows the bucket; None if nothing.

        Blocks for the disk.
        """
        path = snapshot.path
        try:
            local = self._read_manifest(snapshot)
        except CannotMirror as failure:
            return Forecast(Outlook.FAIL, failure.reason)
        known, leaves_nothing = self._state.view(
            lambda transaction: (transaction.snapshots.get(path), _leaves_nothing(transaction, path))
        )
        if local is None:
            gone = Forecast(Outlook.REMOVE, "the datastore has not, or not any more, its manifest")
            return None if leaves_nothing else gone
        if known is None or not known.phase.counts_references or known.files != local.files:
            return Forecast(Outlook.SEND, "the datastore has this snapshot, the bucket has not, or other files of it")
        if not self._is_as_published(snapshot, known, local) or self._extras_differ(snapshot, local):
            return Forecast(
                Outlook.COMPARE, "not all that is in its directory is known to be in the bucket, or the reverse"
            )
        return None

    def _extras_differ(self, snapshot: SnapshotId, local: LocalManifest) -> bool:
        extras, damaged = self._read_extras(snapshot)
        names = (*local.files, *extras, *damaged)
        expected = {snapshot.manifest_path, *(f"{snapshot.path}/{name}" for name in names)}
        stored = self._state.view(
            lambda transaction: {content.path for content in transaction.contents.below(snapshot.path)}
        )
        return bool(stored - expected) or not all(
            self._replica.is_confirmed(f"{snapshot.path}/{name}", data) for name, data in extras.items()
        )

    async def _publish(self, snapshot: SnapshotId, local: LocalManifest, at_a_glance: bool) -> bool:
        """Returns False, with the manifest as it was in the bucket, where the datastore's has gone meanwhile."""
        path = snapshot.path
        known = self._state.view(lambda transaction: transaction.snapshots.get(path))
        if known is None or not known.phase.counts_references or known.files != local.files:
            await self._commit_closure(snapshot, local, await self._closure(snapshot, local))
        elif not (at_a_glance and self._is_as_published(snapshot, known, local)):
            await self._compare_closure(snapshot, known, local)
        await self._namespaces.settle_with_parents(snapshot.group.namespace)
        await self._settle_group(snapshot.group)
        if not self._replica.is_confirmed(snapshot.manifest_path, local.data):
            # A snapshot goes before the owner of its group: if it is still there, the group was whole when it was read.
            # What had another one removed comes all the same, so that its own removal is judged, and it is kept.
            there = await trio.to_thread.run_sync(self._tree.exists, snapshot.manifest_path)
            if not there and snapshot not in self._replacing:
                return False
            await self._ownership.confirm()
        reach("publication.before-manifest")
        await self._replica.put(snapshot.manifest_path, local.data)
        self._replacing.discard(snapshot)
        reach("publication.manifest-put")
        known = self._state.view(lambda transaction: transaction.snapshots.get(path))
        if known is None or known.phase is not SnapshotPhase.PUBLISHED:
            published = SnapshotState(SnapshotPhase.PUBLISHED, local.files, time.time())
            await self._state.apply(lambda transaction: transaction.snapshots.set(path, published))
            reach("publication.recorded")
            log.info("%s published", path, extra=about(EventName.PUBLISHED, snapshot=path))
            _warn_of_another_name(snapshot, local.manifest)
        return True

    async def _settle_group(self, group: GroupId) -> None:
        try:
            await self._groups.settle(group)
        except CannotMirror as failure:
            # The snapshot is complete without it.
            await self._problems.note(failure.name, failure.reason, failure.code)

    def _is_as_published(self, snapshot: SnapshotId, known: SnapshotState, local: LocalManifest) -> bool:
        return (
            known.phase is not SnapshotPhase.ADOPTED
            and self._replica.is_confirmed(snapshot.manifest_path, local.data)
            and all(self._replica.is_confirmed(f"{snapshot.path}/{name}") for name in known.files)
        )

    async def _closure(self, snapshot: SnapshotId, local: LocalManifest) -> LocalClosure:
        return await trio.to_thread.run_sync(self._read_closure, snapshot, local.manifest, limiter=self._readers)

    async def _compare_closure(self, snapshot: SnapshotId, known: SnapshotState, local: LocalManifest) -> None:
        """Have the objects of a snapshot equal files whose checksums are those that were published.

        An index may have other bytes all the same: its checksum is over the digests, not over its header. As they are
        the same digests, it can be replaced beneath the published manifest, unless that gives another size for it.
        """
        closure = await self._closure(snapshot, local)
        if known.phase is SnapshotPhase.ADOPTED:
            async with self._chunks.pinned(closure.digests) as missing:
                await self._mend_chunks(snapshot, missing)
        changed = [
            name
            for name, data in closure.files.items()
            if not self._replica.is_confirmed(f"{snapshot.path}/{name}", data)
        ]
        if changed and await self._sizes_differ(snapshot, local):
            await self._commit_closure(snapshot, local, closure)
            return
        for name in changed:
            await self._replica.put(f"{snapshot.path}/{name}", closure.files[name])
            reach("publication.file-put")

    async def _mend_chunks(self, snapshot: SnapshotId, digests: Sequence[bytes]) -> None:
        try:
            await self._ensure_chunks(snapshot, digests)
        except CannotMirror as failure:
            reason = (
                f"its copy in the bucket is incomplete: {failure.reason}. Verify it in PBS; a new backup of the same "
                "guest brings back the chunks that its source still has; else forget this snapshot"
            )
            raise CannotMirror(failure.name, reason, failure.chunks) from failure

    async def _sizes_differ(self, snapshot: SnapshotId, local: LocalManifest) -> bool:
        if self._replica.is_confirmed(snapshot.manifest_path, local.data):
            return False
        try:
            published = await self._replica.published_manifest(snapshot)
        except UNUSABLE:
            # Nothing that can be read refers to the files.
            return False
        return _sizes(published) != _sizes(local.manifest)

    async def _commit_closure(self, snapshot: SnapshotId, local: LocalManifest, closure: LocalClosure) -> None:
        reach("publication.begun")
        async with self._chunks.pinned(closure.digests) as missing:
            await self._ensure_chunks(snapshot, missing)
            reach("publication.chunks-put")
            await self._look_for_some(closure.digests, missing)
            # Not before everything that takes its place is known to be good.
            if self._state.view(lambda transaction: _stands_in_the_way(transaction, snapshot, local.files)):
                if self._replica.is_confirmed(snapshot.manifest_path):
                    self._replacing.add(snapshot)
                await self._removal.remove(snapshot)
            # If it was moved here, it still stands under its earlier name.
            twin = self._state.view(lambda transaction: transaction.snapshots.with_files(local.files))
            for name, data in closure.files.items():
                same_as = None if twin is None else f"{twin}/{name}"
                await self._replica.put(f"{snapshot.path}/{name}", data, same_as=same_as)
                reach("publication.file-put")
            reach("publication.before-commit")
            left = await self._references.count_all_but_last(
                ReferenceHolder(snapshot.path), local.files, closure.digests
            )
            committed = SnapshotState(SnapshotPhase.COMMITTED, local.files, time.time())
            # A chunk may have been found missing in the bucket since it was ensured.
            while doubted := await self._state.apply(
                lambda transaction: _commit_if_complete(transaction, snapshot, committed, closure.digests, left)
            ):
                await self._ensure_chunks(snapshot, doubted)
            reach("publication.committed")

    async def _look_for_some(self, digests: Digests, missing: Digests) -> None:
        """Look for a few of the chunks that were there before: where one is gone, the state is not to be believed."""
        for digest in _some(digests, missing, _CHUNKS_LOOKED_FOR):
            if not await self._chunks.is_in_bucket(digest):
                await self._ownership.doubt(f"the chunk {digest.hex()} is not in the bucket, though it was confirmed")

    async def _ensure_chunks(self, snapshot: SnapshotId, digests: Sequence[bytes]) -> None:
        failures: list[CannotMirror] = []
        self.remaining[snapshot] = len(digests)

        async def send(digest: bytes) -> None:
            try:
                await self._handle_if_listed(digest)
                await self._chunks.ensure(digest)
            except CannotMirror as failure:
                # At once: the chunk may be repaired while others are still being sent.
                for missing in failure.chunks:
                    self._blocked[missing].add(snapshot)
                failures.append(failure)
                if len(failures) >= MOST_FAILURES:
                    # Of an index that names none that is there, the failures alone would fill the memory.
                    raise self._incomplete(snapshot, failures) from None
            self.remaining[snapshot] -= 1

        try:
            await for_each(digests, send, self._parallel)
        finally:
            del self.remaining[snapshot]
        if failures:
            raise self._incomplete(snapshot, failures)

    def _incomplete(self, snapshot: SnapshotId, failures: list[CannotMirror]) -> CannotMirror:
        digests = tuple(digest for failure in failures for digest in failure.chunks)
        codes = {failure.code for failure in failures}
        if len(codes) == 1 and "" not in codes:
            # It waits for the end of that condition, and is no problem of its own.
            return CannotMirror(snapshot.path, failures[0].reason, digests, failures[0].code)
        named = "; ".join(str(failure) for failure in failures[:_NAMED_CHUNKS])
        more = f"; and {len(failures) - _NAMED_CHUNKS} more" if len(failures) > _NAMED_CHUNKS else ""
        count = f"{'at least ' if len(failures) >= MOST_FAILURES else ''}{len(failures)}"
        return CannotMirror(snapshot.path, f"{count} of its chunks cannot be sent: {named}{more}", digests)

    async def _settle_extras(self, snapshot: SnapshotId, local: LocalManifest) -> None:
        extras, damaged = await trio.to_thread.run_sync(self._read_extras, snapshot, limiter=self._readers)
        await self._note_extras(snapshot, damaged)
        for name, data in extras.items():
            await self._replica.put(f"{snapshot.path}/{name}", data)
            reach("publication.extra-put")
        names = (*local.files, *extras, *damaged)
        expected = {snapshot.manifest_path, *(f"{snapshot.path}/{name}" for name in names)}
        stale = self._state.view(
            lambda transaction: [content.path for content in transaction.contents.below(snapshot.path)]
        )
        await self._replica.delete([path for path in stale if path not in expected])
        reach("publication.stale-deleted")

    async def _note_extras(self, snapshot: SnapshotId, damaged: dict[str, str]) -> None:
        for name in _EXTRAS:
            path = f"{snapshot.path}/{name}"
            if name in damaged:
                await self._problems.note(path, damaged[name])
            else:
                await self._problems.clear(path)

    def _read_manifest(self, snapshot: SnapshotId) -> LocalManifest | None:
        try:
            data = self._tree.read(snapshot.manifest_path)
            manifest = parse_manifest(data)
        except FileNotFoundError:
            return None
        except (DatastoreError, OSError) as error:
            raise CannotMirror(snapshot.path, f"its manifest {MANIFEST_NAME} cannot be used: {error}") from error
        return LocalManifest(data, manifest)

    def _read_closure(self, snapshot: SnapshotId, manifest: Manifest) -> LocalClosure:
        files: dict[str, Content] = {}
        digests: list[Digests] = []
        for listed in manifest.files:
            try:
                path = f"{snapshot.path}/{listed.filename}"
                data = self._tree.read_content(
                    path, maximum_size=listed.longest, check_beginning=listed.check_beginning
                )
                index = check_listed_file(listed, data)
                if index is not None:
                    digests.append(index.unique_digests())
            except FileNotFoundError as error:
                reason = f"its manifest lists {listed.filename}, which is missing"
                raise CannotMirror(snapshot.path, reason) from error
            except (DatastoreError, OSError) as error:
                raise CannotMirror(snapshot.path, f"{listed.filename} cannot be used: {error}") from error
            files[listed.filename] = data
        return LocalClosure(files, Digests.union(*digests))

    def _read_extras(self, snapshot: SnapshotId) -> tuple[dict[str, bytes], dict[str, str]]:
        """Read what may stand beside the listed files; also says why what cannot be used cannot."""
        extras: dict[str, bytes] = {}
        damaged: dict[str, str] = {}
        for name in _EXTRAS:
            path = f"{snapshot.path}/{name}"
            try:
                data = self._tree.read(path)
                if name == CLIENT_LOG_NAME:
                    check_blob(data)
            except FileNotFoundError:
                continue
            except (DatastoreError, OSError) as error:
                damaged[name] = f"it cannot be used: {error}"
            else:
                extras[name] = data
        return extras, damaged


def _warn_of_another_name(snapshot: SnapshotId, manifest: Manifest) -> None:
    """Say what a restore will ask for, while whoever has renamed the group may still remember that."""
    named = manifest.names_other_than(snapshot)
    if named is not None:
        log.warning(
            "%s has the manifest of %s: it is published as it is, and restored from the bucket only with --renamed",
            snapshot.path,
            named,
        )


def _stands_in_the_way(transaction: StateTransaction, snapshot: SnapshotId, files: Mapping[str, str]) -> bool:
    """Tell whether what is in the bucket may be published, or has to go before other files take its place."""
    begun = transaction.counting.get(ReferenceHolder(snapshot.path))
    return (
        transaction.snapshots.get(snapshot.path) is not None
        or transaction.contents.get(snapshot.manifest_path) is not None
        or (begun is not None and begun.files != files)
    )


def _commit_if_complete(
    transaction: StateTransaction,
    snapshot: SnapshotId,
    committed: SnapshotState,
    digests: Digests,
    uncounted: Digests,
) -> list[bytes]:
    """Count the last references if all chunks are confirmed; else return those that are not, and do nothing."""
    doubted = transaction.chunks.unconfirmed(digests)
    if not doubted:
        transaction.commit_snapshot(snapshot.path, committed, uncounted)
    return doubted


def _leaves_nothing(transaction: StateTransaction, path: str) -> bool:
    return transaction.snapshots.get(path) is None and not any(transaction.contents.below(path))


def _some(digests: Digests, missing: Digests, most: int) -> list[bytes]:
    """A few by chance of the `digests` that are not missing; `missing` are some of them."""

    def not_missing_up_to(position: int) -> int:
        return position + 1 - bisect_right(missing, digests[position])

    count = len(digests) - len(missing)
    ranks = random.sample(range(1, count + 1), min(most, count))
    return [digests[bisect_left(range(len(digests)), rank, key=not_missing_up_to)] for rank in ranks]


def _sizes(manifest: Manifest) -> dict[str, int]:
    return {file.filename: file.size for file in manifest.files}
