"""What is damaged or gone in the bucket and could not be sent again: problems that name the snapshots it costs."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence

import trio

from mirrorfs.objectstore.errors import StoreError
from mirrorfs.replication.publishing.closures import Closures
from mirrorfs.replication.publishing.references import References
from mirrorfs.replication.scrubbing.examination import Examination, Fault, digest_of
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.items import name_in_bucket, path_in_bucket
from mirrorfs.replication.work.problems import Problems
from mirrorfs.state.counting import ReferenceHolder
from mirrorfs.state.retention import DeletedPhase
from mirrorfs.state.state import StateTransaction

log = logging.getLogger(__name__)

_MOST = 1000
_MANY = name_in_bucket("more")
_NAMED_SNAPSHOTS = 5
_RECHECK_SECONDS = 600.0
# To find out whom a loss costs is to read each index; what is found meanwhile waits for the next time.
_REST = 10.0
_NOT_YET = "; which snapshots need it is being looked for"
_NOWHERE = ", and the datastore does not have it good"


class Losses:
    """The register of them: kept with the problems, under names of its own, since no handling of an item ends them."""

    def __init__(
        self,
        examination: Examination,
        state: CommittedState,
        problems: Problems,
        references: References,
        closures: Closures,
    ) -> None:
        self._examination = examination
        self._state = state
        self._problems = problems
        self._references = references
        self._closures = closures
        self._found = trio.Event()

    async def note(self, faults: Sequence[Fault]) -> None:
        """Register objects that stay damaged. Whom a chunk costs is found out by `keep_looking`."""
        for fault in faults:
            if len(self._paths()) >= _MOST:
                more = f"more than {_MOST} objects in the bucket are damaged: 'mirrorfs verify --deep' lists them"
                await self._problems.note(_MANY, more)
                return
            whom = _NOT_YET if digest_of(fault.path) is not None else ""
            await self._problems.note(name_in_bucket(fault.path), f"{fault.reason}{_NOWHERE}{whom}")
        self._found.set()

    async def keep_looking(self) -> None:
        """Find out whom losses cost, and have them end where they are none any more, for ever."""
        while True:
            began = trio.current_time()
            try:
                await self._look_again()
                await self._name_snapshots()
            except StoreError as error:
                log.warning("what is damaged in the bucket cannot be looked at: %s", error)
            await trio.sleep((trio.current_time() - began) * _REST)
            with trio.move_on_after(_RECHECK_SECONDS):
                await self._found.wait()
            self._found = trio.Event()

    async def _look_again(self) -> None:
        for path in self._paths():
            fault = await self._examination.examine(path)
            if fault is not None and await self._examination.mend([fault]):
                continue
            if fault is None and self._examination.is_in_doubt(path):
                continue
            await self._problems.clear(name_in_bucket(path))
        if len(self._paths()) < _MOST:
            await self._problems.clear(_MANY)

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

    def _paths(self) -> list[str]:
        paths = (path_in_bucket(name) for name in self._problems.names())
        return [path for path in paths if path is not None and name_in_bucket(path) != _MANY]


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
