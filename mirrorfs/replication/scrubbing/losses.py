"""What is damaged or gone in the bucket and could not be sent again: problems that name the snapshots it costs."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence

import trio

from mirrorfs.replication.publishing.closures import Closures
from mirrorfs.replication.publishing.references import References
from mirrorfs.replication.scrubbing.examination import UNREADABLE, Examination, Fault, Outcome, digest_of
from mirrorfs.replication.scrubbing.kept import KeptSnapshots, kept_at
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import name_in_bucket, path_in_bucket
from mirrorfs.replication.work.problems import Problems
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.problems import Problem
from mirrorfs.state.retention import DeletedPhase
from mirrorfs.state.state import StateTransaction

log = logging.getLogger(__name__)

_MOST = 1000
_MANY = name_in_bucket("more")
_NAMED_SNAPSHOTS = 5
_RECHECK_SECONDS = 600.0
_LONGEST_PAUSE = 86400.0
# For so long, in seconds, a round waits for there to be nothing else to do.
_LONGEST_WAIT = 60.0
# To find out whom a loss costs is to read each index; what is found meanwhile waits for the next time.
_REST = 10.0
_NOT_YET = "; which snapshots need it is being looked for"


class Losses:
    """The register of them: kept with the problems, under names of its own, since no handling of an item ends them."""

    def __init__(
        self,
        examination: Examination,
        state: CommittedState,
        worklist: Worklist,
        problems: Problems,
        references: References,
        closures: Closures,
        kept: KeptSnapshots,
    ) -> None:
        self._examination = examination
        self._state = state
        self._worklist = worklist
        self._problems = problems
        self._references = references
        self._closures = closures
        self._kept = kept
        self._found = trio.Event()
        self._due: dict[str, float] = {}

    async def see_to(self, path: str) -> Outcome:
        """Look at the object of a datastore path, have it sent again if it is not sound, and register what came of it.
        Or look at a deleted snapshot, by its path in the bucket, of which nothing can be sent again.

        Raises UNREADABLE.
        """
        kept = kept_at(path)
        if kept is not None:
            return await self._see_to_kept(path, kept)
        fault = await self._examination.examine(path)
        if fault is not None:
            outcome = (await self._examination.mend([fault]))[fault]
        else:
            outcome = Outcome.IN_DOUBT if self._examination.is_in_doubt(path) else Outcome.GOOD
        if fault is not None and outcome is Outcome.LOST:
            await self.note([fault])
        else:
            await self.end(path)
        return outcome

    async def _see_to_kept(self, path: str, snapshot: str) -> Outcome:
        reason = await self._kept.fault(snapshot)
        if reason is None:
            await self._problems.clear(name_in_bucket(path))
            return Outcome.GOOD
        await self._register(path, reason)
        return Outcome.LOST

    async def note(self, faults: Sequence[Fault]) -> None:
        """Register objects that stay damaged. Whom a chunk costs is found out by `keep_looking`."""
        for fault in faults:
            whom = _NOT_YET if digest_of(fault.path) is not None else ""
            await self._register(fault.path, await self._examination.loss(fault), whom)

    async def _register(self, path: str, reason: str, whom: str = "") -> None:
        name = name_in_bucket(path)
        if self._is_noted(name, reason):
            return
        if len(self._known()) >= _MOST:
            more = f"more than {_MOST} objects in the bucket are damaged: 'mirrorfs verify --deep' lists them"
            await self._problems.note(_MANY, more)
            return
        await self._problems.note(name, f"{reason}{whom}")
        self._found.set()

    async def end(self, path: str) -> None:
        """Register that the object of a datastore path was found to be good, or needed no more, if it still is."""
        if not self._examination.is_in_doubt(path):
            await self._problems.clear(name_in_bucket(path))

    async def keep_looking(self, *, reads: bool) -> None:
        """Find out whom losses cost, and have them end where they are none any more, for ever.

        What the datastore has again is looked at soon; without `reads`, nothing else is.
        """
        while True:
            began = trio.current_time()
            try:
                await self._name_snapshots()
            except UNREADABLE as error:
                log.warning("which snapshots need what the bucket has lost cannot be read: %s", error)
            rest = (trio.current_time() - began) * _REST
            await self._look_again(reads=reads)
            await trio.sleep(rest)
            with trio.move_on_after(_RECHECK_SECONDS):
                await self._found.wait()
            self._found = trio.Event()

    async def _look_again(self, *, reads: bool) -> None:
        known = self._known()
        self._due = {path: self._due.get(path) or _next_look(problem) for path, problem in known.items()}
        for path, problem in known.items():
            is_lost = await self._is_lost(path)
            if is_lost and (not reads or trio.current_time() < self._due[path]):
                continue
            with trio.move_on_after(_LONGEST_WAIT) as waiting:
                await self._worklist.idle()
            if waiting.cancelled_caught:
                return
            self._due[path] = _next_look(problem)
            await self._look_at(path, is_lost=is_lost)
        if len(self._known()) < _MOST:
            await self._problems.clear(_MANY)

    async def _is_lost(self, path: str) -> bool:
        kept = kept_at(path)
        return await self._examination.is_lost(path) if kept is None else self._kept.is_kept(kept)

    async def _look_at(self, path: str, *, is_lost: bool) -> None:
        try:
            if kept_at(path) is not None or not (is_lost and await self._examination.is_gone(path)):
                await self.see_to(path)
        except UNREADABLE as error:
            log.warning("what is damaged in the bucket cannot be looked at: %s", error)

    async def _name_snapshots(self) -> None:
        """Complete the problems of chunks of which it is not known yet whom they cost."""
        reasons = self._state.view(_reasons_without_snapshots)
        if not reasons:
            return
        needed_by: defaultdict[bytes, list[str]] = defaultdict(list)
        for holder, files in self._state.view(_holders):
            digests = await (
                self._references.digests(holder, files)
                if holder.is_kept
                else self._closures.digests(holder.path, files)
            )
            for digest in () if digests is None else digests.among(set(reasons)):
                needed_by[digest].append(f"{holder.path} (deleted)" if holder.is_kept else holder.path)
        for digest, (name, reason) in reasons.items():
            await self._problems.note(name, reason.removesuffix(_NOT_YET) + _cost(needed_by[digest]))

    def _is_noted(self, name: str, reason: str) -> bool:
        """Tell whether a loss is registered for this reason; whom it costs may stand behind that."""
        known = self._state.view(lambda transaction: transaction.problems.get(name))
        return known is not None and known.reason.startswith(reason)

    def _known(self) -> dict[str, Problem]:
        """Return what is registered, by the datastore path of the object."""
        problems = self._state.view(lambda transaction: list(transaction.problems.all()))
        paths = ((path_in_bucket(problem.name), problem) for problem in problems if problem.name != _MANY)
        return {path: problem for path, problem in paths if path is not None}


def _next_look(problem: Problem) -> float:
    """Return when (in trio's time) to read an object again: the pause grows with the time for which it is lost."""
    age = time.time() - problem.since
    return trio.current_time() + min(max(age, _RECHECK_SECONDS), _LONGEST_PAUSE)


def _reasons_without_snapshots(transaction: StateTransaction) -> dict[bytes, tuple[str, str]]:
    """The chunks whose problems do not name snapshots yet, each with the name and the reason of its problem."""
    found = {}
    for problem in transaction.problems.all():
        digest = digest_of(path_in_bucket(problem.name) or "")
        if digest is not None and problem.reason.endswith(_NOT_YET):
            found[digest] = problem.name, problem.reason
    return found


def _holders(transaction: StateTransaction) -> list[tuple[ReferenceHolder, dict[str, str]]]:
    published = [
        (ReferenceHolder(path), dict(snapshot.files))
        for path, snapshot in transaction.snapshots.all()
        if snapshot.phase.counts_references
    ]
    kept = [
        (ReferenceHolder(snapshot.path, is_kept=True), dict(snapshot.files))
        for snapshot in transaction.retention.all_deleted()
        if snapshot.phase is DeletedPhase.KEPT
    ]
    return published + kept


def _cost(snapshots: Iterable[str]) -> str:
    paths = sorted(snapshots)
    if not paths:
        return "; no snapshot that can be read needs it"
    more = f" and {len(paths) - _NAMED_SNAPSHOTS} more" if len(paths) > _NAMED_SNAPSHOTS else ""
    return f"; it costs {', '.join(paths[:_NAMED_SNAPSHOTS])}{more}. A new backup may bring it back"
