"""A mirror with a dictionary for a store: it looks at P1 after every change, and waits, fails or dies when told to."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar, cast

import crc32c
import pytest
import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.names import SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.objectstore.answers import CheckBeginning, StoredObject
from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.errors import (
    CopyUnsupported,
    ObjectChanged,
    ObjectMissing,
    ObjectTooLarge,
    StoreError,
    StoreRejected,
)
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.replication.comparing.differences import Difference
from mirrorfs.replication.comparing.inspection import no_report
from mirrorfs.replication.mirror import Mirror
from mirrorfs.replication.retention.chunks import CHUNKS_A_BATCH
from mirrorfs.replication.sending.sender import ChunkSender
from mirrorfs.replication.settings import RetentionSettings
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import Item, item_of
from mirrorfs.replication.work.ownership import Ownership
from mirrorfs.replication.work.worklist import WATCHED, Worklist
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.state import State, StateTransaction
from tests.replication.datastore import (
    MANIFEST,
    PREFIX,
    Datastore,
    broken_snapshots,
    difference,
    digest_of,
)
from tests.replication.unwatched import Unwatched
from tests.stores.capabilities import HONEST

_WORKERS = 3


Keys = list[str]
Result = TypeVar("Result")


class Killed(BaseException):
    """The uploader is killed here."""


@dataclass(slots=True)
class Gate:
    """One request that waits: `reached` says that it came, `opened` lets it go on."""

    reached: trio.Event = field(default_factory=trio.Event)
    opened: trio.Event = field(default_factory=trio.Event)


@dataclass(slots=True)
class FakeStore:
    """Stands in for ObjectStore. `broken` collects every instant at which P1 did not hold.

    What is `rejected` can be neither stored nor copied, what is `kept` not be deleted; `deletions` has the keys of each
    request that deletes.
    """

    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    rejected: set[str] = field(default_factory=set)
    kept: set[str] = field(default_factory=set)
    locks: dict[str, float] = field(default_factory=dict)
    clock_ahead: float | None = 0.0
    place: str = "a dictionary"
    deletions: list[Keys] = field(default_factory=list)
    gates: dict[tuple[str, str], Gate] = field(default_factory=dict)
    on_change: Callable[[str, str], None] | None = None
    dies_at: int | None = None
    steps: int = 0
    watches: bool = True
    capabilities: StoreCapabilities = HONEST
    refuses_copies: bool = False

    def cannot_copy(self, *, announced: bool) -> None:
        """Let it copy nothing from now on; `announced`: as it was found when it was probed."""
        self.refuses_copies = True
        self.capabilities = replace(self.capabilities, copies=not announced)

    def gate(self, operation: str, key: str) -> Gate:
        """Have the next such request wait, before it has any effect."""
        return self.gates.setdefault((operation, key), Gate())

    async def put(self, key: str, body: bytes, *, crc32c: int | None = None) -> StoredObject:
        assert crc32c in (None, _stored(key, body).crc32c)
        await self._begin("put", key)
        if key in self.rejected:
            raise StoreRejected(f"store {key}", "it is refused")
        self._step()
        self.objects[key] = body
        self._changed("put", key)
        self._step()
        return _stored(key, body)

    async def put_over(self, key: str, body: bytes, etag: str | None) -> None:
        # What waits at a gate is judged by what stands there then.
        await self._begin("put", key)
        standing = self.objects.get(key)
        if etag != (None if standing is None else _stored(key, standing).etag):
            raise ObjectChanged(f"store {key}", "something else stands there")
        if key in self.rejected:
            raise StoreRejected(f"store {key}", "it is refused")
        self._step()
        self.objects[key] = body
        self._changed("put", key)
        self._step()

    async def copy(
        self, source_key: str, key: str, *, size: int, crc32c: int, body_md5: bytes | None = None
    ) -> StoredObject:
        await self._begin("copy", key)
        if self.refuses_copies or key in self.rejected:
            raise CopyUnsupported(f"copy {source_key}", "it is refused")
        if source_key not in self.objects:
            raise ObjectMissing(f"copy {source_key}", "there is none")
        self._step()
        self.objects[key] = self.objects[source_key]
        stored = _stored(key, self.objects[key])
        assert (stored.size, stored.crc32c) == (size, crc32c)
        self._changed("copy", key)
        self._step()
        return stored

    async def delete(self, keys: Sequence[str]) -> None:
        for error in (await self.delete_each(keys)).values():
            raise error

    async def delete_each(self, keys: Sequence[str]) -> Mapping[str, StoreError]:
        self.deletions.append(list(keys))
        refused: dict[str, StoreError] = {}
        # A store deletes in the order that it likes; the worst one is manifests last.
        for key in sorted(keys, key=lambda key: key.endswith(MANIFEST)):
            await self._begin("delete", key)
            self._step()
            if key in self.kept:
                refused[key] = StoreRejected(f"delete {key}", "it is locked")
            else:
                self.objects.pop(key, None)
                self._changed("delete", key)
            self._step()
        return refused

    async def retain(self, key: str, until: float, mode: str) -> None:
        await self._begin("retain", key)
        if key not in self.objects:
            raise ObjectMissing(f"lock {key}", "there is none")
        self.locks[key] = until

    async def retained_until(self, key: str) -> float | None:
        await self._begin("retained-until", key)
        return None

    async def clock_difference(self, prefix: str = "") -> float | None:
        await self._begin("clock-difference", prefix)
        return self.clock_ahead

    async def get(self, key: str, maximum: int) -> bytes:
        return await self.get_content(key, maximum)

    async def get_unsummed(self, key: str, maximum: int, *, check_beginning: CheckBeginning | None = None) -> bytes:
        return await self.get_content(key, maximum, check_beginning=check_beginning)

    async def get_content(self, key: str, maximum: int, *, check_beginning: CheckBeginning | None = None) -> bytes:
        await self._begin("get", key)
        if key not in self.objects:
            raise ObjectMissing(f"read {key}", "there is none")
        data = self.objects[key]
        if len(data) > maximum:
            raise ObjectTooLarge(f"read {key}", f"it has {len(data)} bytes")
        if check_beginning is not None:
            check_beginning(data[:4096], len(data))
        return data

    async def head(self, key: str) -> StoredObject | None:
        await self._begin("head", key)
        return _stored(key, self.objects[key]) if key in self.objects else None

    async def list(self, prefix: str) -> AsyncGenerator[StoredObject, None]:
        await trio.lowlevel.checkpoint()
        for key in [key for key in self.objects if key.startswith(prefix)]:
            yield _stored(key, self.objects[key])

    async def _begin(self, operation: str, key: str) -> None:
        self.requests.append((operation, key))
        await trio.lowlevel.checkpoint()
        # A copy is a PUT of the key that it is made for.
        gate = self.gates.pop(("put" if operation == "copy" else operation, key), None)
        if gate is not None:
            gate.reached.set()
            await gate.opened.wait()

    def _step(self) -> None:
        """Two steps a change: before it and after it."""
        self.steps += 1
        if self.dies_at is not None and self.steps >= self.dies_at:
            raise Killed

    def _changed(self, operation: str, key: str) -> None:
        if self.watches:
            self.broken += [f"after {operation} of {key}: {problem}" for problem in broken_snapshots(self.objects)]
        if self.on_change is not None:
            self.on_change(operation, key)

    def keys_of(self, *operations: str) -> Keys:
        """The keys of requests so far, in order."""
        return [key for operation, key in self.requests if operation in operations]


def _stored(key: str, body: bytes) -> StoredObject:
    etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
    return StoredObject(key, len(body), etag, crc32c.crc32c(body))


@dataclass(slots=True)
class Running:
    """A mirror at work."""

    mirror: Mirror
    worklist: Worklist
    state: State

    def changed(self, *paths: str | bytes) -> None:
        """What the journal would say."""
        for path in paths:
            item = item_of(os.fsencode(path))
            assert item is not None, path
            self.worklist.add(item, self.worklist.inherited(), seen_at=WATCHED)

    def add(self, *items: Item) -> None:
        for item in items:
            self.worklist.add(item, self.worklist.inherited())

    async def reconcile(self, *, deep: bool = False) -> list[Difference]:
        """As `mirrorfs reconcile` does it; gives what it found."""
        found: list[Difference] = []

        async def add(difference: Difference) -> None:
            found.append(difference)

        await self.mirror.survey.survey(add)
        if deep:
            await self.mirror.inspection.inspect(add)
        await self.mirror.reconciler.reconcile(self.worklist.inherited())
        self.mirror.look_again_at_problems()
        await self.settled()
        return found

    async def settled(self) -> None:
        """Wait until there is nothing left to do."""
        with trio.fail_after(30):
            while len(self.worklist):
                await self.worklist.changed()

    def problems(self) -> dict[str, str]:
        return problems_of(self.state)


@dataclass(slots=True)
class World:
    """A datastore, the state of its mirror, and the store.

    References are counted one by one, as those of a large snapshot are thousand by thousand.
    """

    datastore: Datastore
    state_directory: Path
    store: FakeStore = field(default_factory=FakeStore)
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    now: float = field(default_factory=time.time)
    references_a_commit: int = 1
    ownership: Ownership = field(default_factory=Unwatched)
    unseen_after: float = 0.0
    """What was not seen to go goes at once, where a test is about something else."""
    sender: ChunkSender | None = None

    @asynccontextmanager
    async def running(
        self, *, reconciles: bool = True, newest: Callable[[], int] = lambda: 0
    ) -> AsyncIterator[Running]:
        """An uploader from start to end, as `Uploader` puts it together; `newest` is what the journal would say."""
        opened = State(str(self.state_directory))
        state = CommittedState(opened)
        descriptor = os.open(self.datastore.root, os.O_RDONLY | os.O_DIRECTORY)
        worklist = Worklist()
        store, layout = cast(ObjectStore, self.store), BucketLayout(PREFIX)
        mirror = Mirror(
            Tree(descriptor),
            Bucket(layout, store),
            state,
            worklist,
            parallel=_WORKERS,
            newest=newest,
            ownership=self.ownership,
            retention=replace(self.retention, unseen_after=self.unseen_after),
            now=lambda: self.now,
            references_a_commit=self.references_a_commit,
            sender=self.sender,
        )
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(state.run)
                if reconciles:
                    await mirror.adoption.adopt(mirror.grace)
                    await mirror.clear_staging()
                    if state.view(lambda transaction: transaction.progress.inspecting()):
                        await mirror.inspection.inspect(no_report)
                    await mirror.absences.hold_missed(self._missed(state))
                for _ in range(_WORKERS):
                    nursery.start_soon(_work, mirror, worklist, worklist.take_chunk)
                    nursery.start_soon(_work, mirror, worklist, worklist.take_tree)
                nursery.start_soon(_remove_chunks, mirror, worklist)
                nursery.start_soon(_remove_snapshots, mirror, worklist)
                if reconciles:
                    await mirror.reconciler.reconcile(0)
                    mirror.look_again_at_problems()
                yield Running(mirror, worklist, opened)
                nursery.cancel_scope.cancel()
        finally:
            os.close(descriptor)
            state.close()

    async def converge(self) -> dict[str, str]:
        """Start the uploader, let it come to rest, end it; gives the problems that it has noted."""
        async with self.running() as running:
            await running.settled()
            return running.problems()

    def _missed(self, state: CommittedState) -> list[SnapshotId]:
        """What a start misses, as if its journal were empty."""
        known = [SnapshotId.parse(path) for path in state.view(_undecided)]
        return [snapshot for snapshot in known if not (self.datastore.root / snapshot.manifest_path).exists()]

    def difference(self) -> dict[str, str]:
        return difference(self.datastore, self.store.objects)

    def check(self) -> None:
        """P1 has held at each instant so far, and P2 holds now."""
        assert self.store.broken == []
        assert broken_snapshots(self.store.objects) == []
        assert self.difference() == {}

    def references(self, *labels: str) -> list[int]:
        """The counted references of chunks, while no uploader runs."""
        return self._view(lambda transaction: [_references(transaction, label) for label in labels])

    def interrupted(self, snapshot: str) -> bool:
        """Whether a count of the snapshot's references, or of its kept copy's, has not ended."""
        holders = [ReferenceHolder(snapshot), ReferenceHolder(snapshot, is_kept=True)]
        return self._view(lambda transaction: any(transaction.counting.get(holder) for holder in holders))

    def _view(self, work: Callable[[StateTransaction], Result]) -> Result:
        state = State(str(self.state_directory))
        try:
            return state.view(work)
        finally:
            state.close()


@contextmanager
def perhaps_killed() -> Iterator[None]:
    """What is in it may end with `Killed`, and with nothing else."""
    try:
        yield
    except BaseExceptionGroup as group:
        _, others = group.split(Killed)
        if others is not None:
            raise


def die_at(patch: pytest.MonkeyPatch, step: str, times: int) -> None:
    """Kill at a step when it has been reached so many times."""
    reached = 0

    def look(_: str, now: str) -> None:
        nonlocal reached
        reached += now == step
        if now == step and reached == times:
            raise Killed

    patch.setattr("mirrorfs.steps._file", "armed")
    patch.setattr("mirrorfs.steps._look", look)


def _undecided(transaction: StateTransaction) -> list[str]:
    return [
        path
        for path, snapshot in transaction.snapshots.all()
        if snapshot.phase.counts_references and transaction.retention.held(path) is None
    ]


def problems_of(state: State) -> dict[str, str]:
    return {
        problem.name: problem.reason for problem in state.view(lambda transaction: list(transaction.problems.all()))
    }


def _references(transaction: StateTransaction, label: str) -> int:
    chunk = transaction.chunks.get(digest_of(label))
    return chunk.references if chunk is not None else 0


async def _work(mirror: Mirror, worklist: Worklist, take: Callable[[], Awaitable[Item]]) -> None:
    while True:
        item = await take()
        await mirror.handle(item)
        worklist.done(item)


async def _remove_chunks(mirror: Mirror, worklist: Worklist) -> None:
    while True:
        items = await worklist.take_chunk_removals(CHUNKS_A_BATCH)
        await mirror.remove_chunks(items)
        for item in items:
            worklist.done(item)


async def _remove_snapshots(mirror: Mirror, worklist: Worklist) -> None:
    while True:
        snapshots = await worklist.take_snapshot_removals()
        await mirror.remove_snapshots(snapshots)
        for snapshot in snapshots:
            worklist.done(snapshot)
