"""Snapshots that are missed when names are compared, and that nobody saw go: which of them look like a prune.

PBS is often at work while mirrorfs is not mounted, and its prune jobs leave a pattern: the newest snapshot of a group
is there, and so is every protected one. An older copy of the disk, a datastore that was restored in part, or a state
that came back older than the bucket leave others. Only the pattern of a prune is taken for one (docs/semantics.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import groupby

import trio

from mirrorfs.datastore.names import PROTECTED_NAME, SnapshotId
from mirrorfs.datastore.tree import Tree
from mirrorfs.events import EventName, about
from mirrorfs.replication.retention.clock import StoreClock
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.retention import HeldFor, HeldRemoval
from mirrorfs.state.snapshots import SnapshotPhase, SnapshotState
from mirrorfs.state.state import StateTransaction
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

SeenAt = Callable[[SnapshotId], float]
"""Tells when (Unix time) the name of a snapshot was last seen to change; see `Worklist.add`."""


class Absences:
    """Holds the removal of what nobody saw go, unless it looks like a prune, until it has been missed for long."""

    def __init__(
        self,
        tree: Tree,
        state: CommittedState,
        clock: StoreClock,
        *,
        unseen_after: float,
        seen_at: SeenAt,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`unseen_after` is for how many seconds it is held; 0: not at all."""
        self._tree = tree
        self._state = state
        self._clock = clock
        self._unseen_after = unseen_after
        self._seen_at = seen_at
        self._now = now

    async def pass_on(self, gone: Sequence[SnapshotId]) -> list[SnapshotId]:
        """Return those of `gone` that may be taken for removed; the others are noted as held."""
        await self._hold(await trio.to_thread.run_sync(self._to_be_held, gone))
        return await trio.to_thread.run_sync(lambda: [snapshot for snapshot in gone if not self._is_held(snapshot)])

    async def hold_missed(self, missed: Sequence[SnapshotId]) -> None:
        """Note as held what cannot be taken for removed of that which a start has missed.

        To be called when the bucket has been read and before anything is published: then the newest snapshots that are
        known are those of the time before.
        """
        await self.hold_strangers(missed)
        if self._unseen_after > 0:
            await self._hold(await trio.to_thread.run_sync(implausible, missed, self._tree, self._state))

    async def hold_strangers(self, missed: Sequence[SnapshotId]) -> None:
        """Note as held what somebody else may have put into the bucket, of that which a start has missed."""
        if self._state.view(lambda transaction: transaction.identity.has_strangers()):
            strangers = self._state.view(lambda transaction: _adopted(transaction, missed))
            await self._hold(strangers, HeldFor.STRANGER)
            await self._state.apply(lambda transaction: transaction.identity.set_strangers(False))
            reach("absences.strangers-held")

    async def let_go(self, gone: Sequence[SnapshotId]) -> None:
        """Note that `gone` is meant to go, however it went: this is remembered until it is judged, or is back.

        What somebody else may have put into the bucket, or is too much for a day, stays held.
        """
        now = self._now()
        await self._state.apply(lambda transaction: _let_go(transaction, gone, now))
        reach("absences.let-go")

    def overdue(self) -> list[SnapshotId]:
        """Return what was held because nobody saw it go, and has been missed for long enough."""
        held = self._state.view(lambda transaction: list(transaction.retention.all_held()))
        return [
            SnapshotId.parse(removal.path) for removal in held if not removal.approved and self._is_overdue(removal)
        ]

    def _to_be_held(self, gone: Sequence[SnapshotId]) -> set[SnapshotId]:
        if self._unseen_after <= 0:
            return set()
        unseen = self._state.view(lambda transaction: [one for one in gone if self._is_unseen(transaction, one)])
        return implausible(unseen, self._tree, self._state)

    def _is_unseen(self, transaction: StateTransaction, snapshot: SnapshotId) -> bool:
        known = transaction.snapshots.get(snapshot.path)
        # What is on its way out is only continued, and what is held or approved is decided.
        if known is None or not known.phase.counts_references:
            return False
        return transaction.retention.held(snapshot.path) is None and self._seen_at(snapshot) <= known.since

    def _is_held(self, snapshot: SnapshotId) -> bool:
        known, removal = self._state.view(
            lambda transaction: (transaction.snapshots.get(snapshot.path), transaction.retention.held(snapshot.path))
        )
        if removal is None or removal.approved or removal.reason in (HeldFor.WAVE, HeldFor.MEANT):
            return False
        if removal.reason is HeldFor.STRANGER:
            return True
        if known is None:
            return False
        was_seen = self._seen_at(snapshot) > known.since
        return not (was_seen or self._is_overdue(removal) or _has_moved(known, snapshot, self._tree, self._state))

    def _is_overdue(self, removal: HeldRemoval) -> bool:
        if removal.reason is not HeldFor.UNSEEN:
            return False
        # With a clock in doubt nothing becomes old.
        is_old = self._clock.is_trusted and self._now() - removal.since >= self._unseen_after
        return self._unseen_after <= 0 or is_old

    async def _hold(self, snapshots: Iterable[SnapshotId], reason: HeldFor = HeldFor.UNSEEN) -> None:
        paths = sorted(snapshot.path for snapshot in snapshots)
        if not paths:
            return
        now = self._now()
        held = await self._state.apply(lambda transaction: _hold(transaction, paths, reason, now))
        reach("absences.held")
        if held:
            log.error(
                "%d snapshots are not in the datastore, and were not seen to go: they stay in the bucket until "
                "'mirrorfs retention approve'%s. The first is %s",
                len(held),
                "" if reason is HeldFor.STRANGER else f", or for {self._unseen_after / 86400:.3g} days",
                held[0],
                extra=about(EventName.HELD, snapshot=held[0]),
            )


def _hold(transaction: StateTransaction, paths: Sequence[str], reason: HeldFor, now: float) -> list[str]:
    held = [path for path in paths if transaction.retention.held(path) is None]
    for path in held:
        transaction.retention.set_held(HeldRemoval(path, now, approved=False, reason=reason))
    return held


def _let_go(transaction: StateTransaction, gone: Iterable[SnapshotId], now: float) -> None:
    for snapshot in gone:
        removal = transaction.retention.held(snapshot.path)
        if removal is None or (removal.reason is HeldFor.UNSEEN and not removal.approved):
            transaction.retention.set_held(HeldRemoval(snapshot.path, now, approved=False, reason=HeldFor.MEANT))


def _adopted(transaction: StateTransaction, snapshots: Iterable[SnapshotId]) -> list[SnapshotId]:
    known = ((snapshot, transaction.snapshots.get(snapshot.path)) for snapshot in snapshots)
    return [snapshot for snapshot, state in known if state is not None and state.phase is SnapshotPhase.ADOPTED]


def implausible(missed: Iterable[SnapshotId], tree: Tree, state: CommittedState) -> set[SnapshotId]:
    """Return those of the `missed` snapshots whose absence does not look like a prune.

    Of each group that concerns everything is looked at, so that it does not matter which are asked for together.
    Blocks for a look at each snapshot of these groups.
    """
    ordered = sorted(missed)
    return {
        snapshot
        for _, members in groupby(ordered, key=lambda snapshot: snapshot.group)
        for snapshot in _implausible_in_group(list(members), tree, state)
    }


def _implausible_in_group(missed: list[SnapshotId], tree: Tree, state: CommittedState) -> list[SnapshotId]:
    group = missed[0].group
    known = state.view(lambda transaction: _standing(transaction, group.path))
    here = {path for path in known if is_there(tree, path)}
    newest = max(known, default=None)
    protected = state.view(lambda transaction: [path for path in known if _was_protected(transaction, path)])
    looks_pruned = (newest is None or newest in here) and here.issuperset(protected)
    suspects = [
        snapshot
        for snapshot in missed
        if snapshot.path in known and not (looks_pruned and known[snapshot.path].phase is not SnapshotPhase.ADOPTED)
    ]
    return [snapshot for snapshot in suspects if not _has_moved(known[snapshot.path], snapshot, tree, state)]


def is_there(tree: Tree, path: str) -> bool:
    """Tell whether the datastore has the manifest of a snapshot; what cannot be read is not gone."""
    try:
        return tree.exists(SnapshotId.parse(path).manifest_path)
    except OSError:
        return True


def _standing(transaction: StateTransaction, group: str) -> dict[str, SnapshotState]:
    return {path: snapshot for path, snapshot in transaction.snapshots.below(group) if snapshot.phase.counts_references}


def _was_protected(transaction: StateTransaction, path: str) -> bool:
    return transaction.contents.get(f"{path}/{PROTECTED_NAME}") is not None


def _has_moved(known: SnapshotState, snapshot: SnapshotId, tree: Tree, state: CommittedState) -> bool:
    """Tell whether the same backup is published under another name, which the datastore has."""
    twin = state.view(lambda transaction: transaction.snapshots.with_files(known.files))
    if twin is None or twin == snapshot.path or SnapshotId.parse(twin).backup_time != snapshot.backup_time:
        return False
    published = state.view(lambda transaction: transaction.snapshots.get(twin))
    return published is not None and published.phase is SnapshotPhase.PUBLISHED and is_there(tree, twin)
