"""A wave of removals that is larger than it should ever be waits for an administrator."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mirrorfs.datastore.names import SnapshotId
from mirrorfs.events import EventName, about
from mirrorfs.replication.retention.clock import StoreClock
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.retention import HeldFor, HeldRemoval
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

_DAY = 86400.0
# A prune job takes its snapshots one by one, within milliseconds through the mount; a slow disk may need longer.
_QUIET_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class _Verdict:
    admitted: list[SnapshotId]
    held: int
    standing: int


class RemovalWaves:
    """Counts the snapshots that go in a day, and holds back those with which they become too large a share.

    The share is of the snapshots that stand in the bucket and of those that went within the day: what there was when
    the day began. One that has moved, and stands under its new name, does not count. Snapshots that go together, with
    less than a few seconds in between, are held together.
    """

    def __init__(
        self,
        state: CommittedState,
        clock: StoreClock,
        *,
        max_delete_fraction: float | None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`max_delete_fraction` is the share, more than 0 and at most 1; None holds nothing back but what is held."""
        self._state = state
        self._clock = clock
        self._fraction = max_delete_fraction
        self._now = now

    @property
    def quiet(self) -> float:
        """How many seconds without a removal end a wave; without a limit there is nothing to wait for."""
        return 0.0 if self._fraction is None else _QUIET_SECONDS

    async def admit(self, gone: Sequence[SnapshotId]) -> list[SnapshotId]:
        """Return those of `gone` that may be removed now; the others are noted as held.

        What is admitted counts as removed from here on, also if that is interrupted and continued.
        """
        if not gone:
            return []
        fraction, now = self._fraction, self._now()
        # With a clock in doubt nothing that was counted becomes too old to count.
        day_began = now - _DAY if self._clock.is_trusted else float("-inf")
        verdict = await self._state.apply(lambda transaction: _judge(transaction, gone, fraction, now, day_began))
        reach("wave.recorded")
        if verdict.held:
            log.error(
                "%d snapshots are gone from the datastore, more than %.3g of the %d that the mirror held within a day: "
                "their removal from the bucket is held. If it is meant: mirrorfs retention approve",
                verdict.held,
                fraction,
                verdict.standing,
                extra=about(EventName.HELD),
            )
        return verdict.admitted

    async def approve(self, below: Sequence[str] = ()) -> list[SnapshotId]:
        """Approve of all that is held now, or of that which is, or lies in, one of the paths `below`; returns it."""
        approved = await self._state.apply(lambda transaction: _approve(transaction, below))
        reach("wave.approved")
        if approved:
            log.info(
                "the removal of %d snapshots is approved: %s",
                len(approved),
                approved[0],
                extra=about(EventName.APPROVED),
            )
        return [SnapshotId.parse(path) for path in approved]

    async def forget(self, snapshot: SnapshotId) -> None:
        """Note that there is nothing to hold any more: the snapshot is removed, or it is back."""
        if self._state.view(lambda transaction: transaction.retention.held(snapshot.path)) is not None:
            await self._state.apply(lambda transaction: transaction.retention.forget_held(snapshot.path))
            reach("wave.forgotten")


def _judge(
    transaction: StateTransaction, gone: Sequence[SnapshotId], fraction: float | None, now: float, day_began: float
) -> _Verdict:
    standing = {path for path, snapshot in transaction.snapshots.all() if snapshot.phase.counts_references}
    removals = {removal.path: removal for removal in transaction.retention.all_held() if _is_of_a_wave(removal)}
    approved = {removal.path for removal in removals.values() if removal.approved}
    remaining = standing.difference(snapshot.path for snapshot in gone)
    # What does not stand in the bucket any more is only continued, and what was moved is not lost.
    new = [
        snapshot
        for snapshot in gone
        if snapshot.path in standing
        and snapshot.path not in removals
        and not _stands_elsewhere(transaction, snapshot.path, remaining)
    ]
    went = transaction.retention.removals_since(day_began)
    # What was admitted counts as gone, though it may still stand.
    total = len(standing - approved) + went
    counted = went + len(removals.keys() - approved) + len(new)
    is_too_large = fraction is not None and bool(new) and counted > fraction * total
    for snapshot in new:
        transaction.retention.set_held(HeldRemoval(snapshot.path, now, approved=not is_too_large))
    for path in {snapshot.path for snapshot in gone}.difference(snapshot.path for snapshot in new):
        was_held = transaction.retention.held(path)
        if was_held is not None and not _is_of_a_wave(was_held):
            transaction.retention.set_held(replace(was_held, approved=True))
    if new and not is_too_large:
        transaction.retention.note_removals(now, len(new), day_began)
    held = {removal.path for removal in transaction.retention.all_held() if not removal.approved}
    return _Verdict(
        [snapshot for snapshot in gone if snapshot.path not in held], len(held) if is_too_large else 0, total
    )


def _is_of_a_wave(removal: HeldRemoval) -> bool:
    """Tell what counts here; what was held because nobody saw it go is new when it comes here."""
    return removal.approved or removal.reason is HeldFor.WAVE


def _stands_elsewhere(transaction: StateTransaction, path: str, remaining: set[str]) -> bool:
    snapshot = transaction.snapshots.get(path)
    twin = None if snapshot is None else transaction.snapshots.with_files(snapshot.files)
    # Backups of an idle guest are all the same, but for their times.
    return twin is not None and twin in remaining and _time_of(twin) == _time_of(path)


def _time_of(path: str) -> str:
    return path.rpartition("/")[2]


def _approve(transaction: StateTransaction, below: Sequence[str]) -> list[str]:
    held = [
        removal for removal in transaction.retention.all_held() if not removal.approved and _lies(removal.path, below)
    ]
    for removal in held:
        transaction.retention.set_held(replace(removal, approved=True))
    return [removal.path for removal in held]


def _lies(path: str, below: Sequence[str]) -> bool:
    return not below or any(path == directory or path.startswith(f"{directory}/") for directory in below)
