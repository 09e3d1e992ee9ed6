"""Object Lock: what live snapshots need is locked in the bucket, and the lock is extended while they live."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from mirrorfs.concurrency import for_each
from mirrorfs.datastore.digests import Digests
from mirrorfs.objectstore.capabilities import LockMode
from mirrorfs.objectstore.errors import ObjectMissing, StoreError
from mirrorfs.replication.publishing.references import References
from mirrorfs.replication.retention.clock import StoreClock
from mirrorfs.replication.retention.recurrence import Recurrence
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_DEFAULT_MODE: LockMode = "GOVERNANCE"
_LONGEST_PAUSE = 600.0
_SHORTEST_PAUSE = 10.0
_CHUNKS_A_COMMIT = 1000
# Of the period: a lock that has less left than this is extended to a whole one …
_EXTEND_BELOW = 0.5
# … and so are, on that occasion, those of all chunks that have less than this left.
_CHUNK_EXTEND_BELOW = 0.75


@dataclass(frozen=True, slots=True)
class _Terms:
    """How objects are locked; `period` in seconds."""

    mode: LockMode
    period: float


class SnapshotLocks:
    """Keeps every object of every published snapshot locked for at least half of the period from now.

    Where Object Lock is enabled but neither the bucket nor the settings give a period, nothing is locked.
    """

    def __init__(
        self,
        bucket: Bucket,
        state: CommittedState,
        references: References,
        clock: StoreClock,
        *,
        lock_for: float | None,
        parallel: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`lock_for` is the period in seconds, None for the bucket's own default."""
        self._bucket = bucket
        self._state = state
        self._references = references
        self._clock = clock
        self._lock_for = lock_for
        self._parallel = parallel
        self._now = now
        self._recurrence = Recurrence()

    async def keep_locked(self) -> None:
        """Lock and extend, for ever; returns at once where there is nothing to lock with."""
        if self._terms() is None:
            if self.obstacle is not None:
                log.error("%s", self.obstacle)
            return
        await self._recurrence.keep_doing(self.extend_due)

    def look_again(self) -> None:
        """Say that a snapshot has been published."""
        self._recurrence.hasten()

    async def extend_due(self) -> float:
        """Lock what is not locked for long enough; returns after how many seconds to look again."""
        terms = self._terms()
        if terms is None:
            return _LONGEST_PAUSE
        pause = max(_SHORTEST_PAUSE, min(_LONGEST_PAUSE, terms.period / 100))
        try:
            if not await self._clock.check():
                return _LONGEST_PAUSE
            for path, snapshot in self._due(terms.period):
                if not await self._extend(path, snapshot, terms):
                    pause = _SHORTEST_PAUSE
        except StoreError as error:
            log.error("the locks of snapshots are not extended for now: %s", error)
        return pause

    def _terms(self) -> _Terms | None:
        rule = self._bucket.store.capabilities.object_lock
        period = None if rule is None else self._lock_for or rule.period
        return None if rule is None or period is None else _Terms(rule.mode or _DEFAULT_MODE, period)

    @property
    def obstacle(self) -> str | None:
        """Why nothing is locked though the bucket could, or though it is wanted; None if all is as it should be."""
        if self._terms() is not None:
            return None
        if self._bucket.store.capabilities.object_lock is not None:
            return (
                f"{self._bucket.store.place} has Object Lock, but no default retention: nothing is locked without "
                "--retention-lock-for"
            )
        if self._lock_for is not None:
            return f"--retention-lock-for has no effect: {self._bucket.store.place} has no Object Lock"
        return None

    def _due(self, period: float) -> list[tuple[str, SnapshotState]]:
        horizon = self._now() + period * _EXTEND_BELOW
        return self._state.view(
            lambda transaction: [
                (path, snapshot)
                for path, snapshot in transaction.snapshots.all()
                if snapshot.phase is SnapshotPhase.PUBLISHED and transaction.locks.snapshot_locked_until(path) < horizon
            ]
        )

    async def _extend(self, path: str, snapshot: SnapshotState, terms: _Terms) -> bool:
        """Lock what belongs to a snapshot; False where something of it is not there now."""
        now = self._now()
        until, horizon = now + terms.period, now + terms.period * _CHUNK_EXTEND_BELOW
        digests = await self._references.digests(ReferenceHolder(path), snapshot.files)
        chunks = await trio.to_thread.run_sync(self._not_locked_until, digests or Digests(), horizon)
        try:
            for part in chunks.parts(_CHUNKS_A_COMMIT):
                await self._retain([self._bucket.layout.chunk_key(digest) for digest in part], until, terms.mode)
                await self._state.apply(
                    lambda transaction, part=part: transaction.locks.set_chunks_locked(part, until)  # type: ignore[misc]
                )
                reach("locks.chunks-recorded")
            contents = self._state.view(lambda transaction: list(transaction.contents.below(path)))
            await self._retain(
                [self._bucket.layout.content_key(content.path) for content in contents], until, terms.mode
            )
        except ObjectMissing as error:
            # It is being removed or replaced, or a file is being added; if not, its publication finds what is missing.
            log.info("the lock of %s is not extended now: %s", path, error)
            return False
        await self._state.apply(lambda transaction: transaction.locks.set_snapshot_locked(path, horizon))
        reach("locks.snapshot-recorded")
        log.debug("%s is locked until %s at least", path, time.strftime("%Y-%m-%d %H:%M", time.gmtime(horizon)))
        return True

    def _not_locked_until(self, digests: Digests, horizon: float) -> Digests:
        return self._state.view(
            lambda transaction: digests.where(lambda digest: transaction.locks.chunk_locked_until(digest) < horizon)
        )

    async def _retain(self, keys: list[str], until: float, mode: LockMode) -> None:
        await for_each(keys, lambda key: self._bucket.store.retain(key, until, mode), self._parallel)
