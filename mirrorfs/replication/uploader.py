"""The uploader process: lives as long as the filesystem process that started it, and does all the network work."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict
from typing import Any

import trio

from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError
from mirrorfs.datastore.errors import TooMuch
from mirrorfs.events import EventName, about
from mirrorfs.journal.journal import JournalReader, Position
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreError, StoreRejected, StoreUnavailable
from mirrorfs.output import say_json
from mirrorfs.replication.comparing.differences import Difference, Remedy
from mirrorfs.replication.control import Tell, serve_control
from mirrorfs.replication.engine import Engine, damage_of
from mirrorfs.replication.ownership.claim import ClaimRefused, ClaimUnreadable
from mirrorfs.replication.parent import REMOVALS_ALLOWED, FilesystemProcess
from mirrorfs.replication.questions import Answer
from mirrorfs.replication.settings import BEGIN_AGAIN, UploaderSettings
from mirrorfs.replication.status import UploaderStatus
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.damage import open_state, set_state_aside
from mirrorfs.state.identity import Identity, check_identity
from mirrorfs.steps import reach

log = logging.getLogger(__name__)

# How long a sick item is left alone when nothing is heard of it; a change through the mount is seen at once. A new one
# may be over soon, such as an object that the store failed to keep again and again; the waits double.
_FIRST_RECHECK_SECONDS = 15.0
_LONGEST_RECHECK_SECONDS = 600.0
# A PUT under way is not waited for longer than this when the uploader is to end: the state knows that it was begun.
_END_SECONDS = 3.0
_FOREIGN_EXAMPLES = 20


class Uploader:
    """One uploader. `run` returns when standard input, held by the filesystem process, is closed.

    Standard input carries, after the settings, an empty line for each time the journal has grown. Standard output
    carries lines of JSON: {"event": "store", "state": "ready" | "waiting" | "refused", "reason": …} once it is known
    how the store answers, {"event": "done", "generation": …, "sequence": …} when the journal is dealt with up to there,
    {"event": "removals-allowed"} when the state knows what `allow_removals` was for,
    {"event": "catch-up", "number": N}, which a line `caught-up N` answers when the journal holds what has happened, and
    {"event": "alive"} twice a minute.
    """

    def __init__(self, settings: UploaderSettings) -> None:
        """Open journal and state. Raises DatabaseError and its kinds."""
        self._settings = settings
        self._directory = directory = StateDirectory(settings.state_directory)
        self._control_path = directory.control_socket
        self._lock = DirectoryLock(directory, "uploader")
        # An uploader that lost its filesystem process may still be ending.
        self._lock.acquire(wait=True)
        self._state = CommittedState(open_state(directory, doubtful=self._lock.abandoned))
        reach("uploader.state-opened")
        self._journal = JournalReader(directory.journal)
        self._everything, self._mirroring = trio.CancelScope(), trio.CancelScope()
        self._begins_again = False
        self._engine = Engine(
            settings,
            self._state,
            self._journal,
            self._checked_identity(directory),
            lost=self._lose,
            stale=self._begin_again,
        )
        self._mirror, self._drain = self._engine.mirror, self._engine.drain
        self._status = UploaderStatus(settings, self._engine, self._state)
        self._parent = FilesystemProcess(self._drain.wake, _report, self._engine.limiting.take)
        self._works = trio.Event()
        self._reconciling = trio.Lock()
        self._refused = trio.Event()
        self._last_obstacle: str | None = None

    def _checked_identity(self, directory: StateDirectory) -> Identity:
        expected = Identity(self._settings.datastore, self._settings.bucket, self._settings.prefix)
        return check_identity(
            self._state.view(lambda transaction: transaction.identity.get()), expected, directory.path
        )

    def hang_up(self) -> None:
        """Pass on that the log is to be opened again; safe from a handler of a signal."""
        self._engine.hang_up()

    async def run(self) -> None:
        """Mirror until standard input is closed.

        Raises:
            SystemExit: the state was found damaged and has been set aside, or to be older than the bucket; the next
                uploader begins anew.
        """
        try:
            await self._run()
        except BaseExceptionGroup as group:
            damage = damage_of(self._directory.state, group)
            if damage is None:
                raise
            self._give_up_state(damage)
            raise SystemExit(1) from group
        self._end()
        if self._begins_again:
            raise SystemExit(BEGIN_AGAIN)

    async def _run(self) -> None:
        with self._everything:
            await self._serve_and_mirror()

    async def _serve_and_mirror(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_parent)
            nursery.start_soon(self._parent.say_alive)
            nursery.start_soon(self._engine.limiting.run)
            nursery.start_soon(self._state.run)
            nursery.start_soon(
                serve_control,
                self._control_path,
                {"status": self._answer_status, "wait": self._answer_wait},
                {
                    "approve": self._answer_approve,
                    "reconcile": self._answer_reconcile,
                    "heal": self._answer_heal,
                },
            )
            if await self._become_owner():
                with self._mirroring:
                    async with trio.open_nursery() as working:
                        await self._mirror_for_ever(working)

    def _give_up_state(self, damage: DatabaseCorrupt) -> None:
        try:
            set_state_aside(self._directory, str(damage))
        except DatabaseError as error:
            log.critical("%s", error)
        self._end()

    def _end(self) -> None:
        self._state.close()
        self._journal.close()
        self._lock.release()

    async def _become_owner(self) -> bool:
        """Claim the prefix, first in one try, so that whoever mounts hears at once how things are."""
        if await self._is_doubtful():
            return False
        store = self._engine.impatient_store()
        while True:
            try:
                await self._engine.claim(store)
            except (StoreUnavailable, StoreRejected, ConfirmationFailed, ClaimUnreadable) as error:
                _report("store", state="waiting", reason=str(error))
                self._note_obstacle(error)
                if store is self._engine.bucket.store:
                    await trio.sleep(self._settings.retry_ceiling)
            except ClaimRefused as error:
                return self._refuse(str(error))
            else:
                self._status.refused = None
                _report("store", state="ready", reason="")
                return True
            store = self._engine.bucket.store

    def _note_obstacle(self, error: StoreError | ClaimUnreadable) -> None:
        """Say in log and status why nothing is mirrored; what the store's condition says is said by that."""
        if isinstance(error, StoreUnavailable):
            self._status.refused = None
            if self._last_obstacle != str(error):
                log.warning("nothing is mirrored yet: %s", error)
        elif self._status.refused != str(error):
            log.error("nothing is mirrored for now: %s", error)
            self._status.refused = str(error)
        self._last_obstacle = str(error)

    async def _is_doubtful(self) -> bool:
        doubt = await self._engine.doubt()
        if doubt is not None:
            self._refuse(doubt)
        return doubt is not None

    def _refuse(self, reason: str) -> bool:
        self._status.phase, self._status.refused = "refused", reason
        self._refused.set()
        log.error("nothing is mirrored: %s", reason, extra=about(EventName.REFUSED))
        report_refusal(reason)
        return False

    def _lose(self, reason: str) -> None:
        """Nothing more may be done to the bucket: it is not this mirror's any more."""
        self._mirroring.cancel()
        self._refuse(reason)

    def _begin_again(self, reason: str) -> None:
        """End; the next uploader begins with what the state does not know, or knows no more, of the bucket."""
        log.warning("%s. Nothing is published or removed before that", reason)
        self._begins_again = True
        self._end_soon(BEGIN_AGAIN)
        self._everything.cancel()

    async def _get_to_know_the_bucket(self) -> None:
        """Probe and adopt. Where a request is refused it is tried again: what refuses may stand in between."""
        while True:
            try:
                await self._engine.get_to_know_the_bucket(self._tell_phase)
            except (StoreRejected, ConfirmationFailed) as error:
                self._note_obstacle(error)
                await trio.sleep(self._settings.retry_ceiling)
            else:
                self._status.refused = None
                return

    def _tell_phase(self, phase: str) -> None:
        self._status.phase = phase

    async def _mirror_for_ever(self, nursery: trio.Nursery) -> None:
        await self._get_to_know_the_bucket()
        if await self._is_doubtful():
            return
        await self._engine.begin(nursery, _report_done)
        if self._settings.allow_removals:
            _report(REMOVALS_ALLOWED)
        self._status.phase = "reconciling"
        self._works.set()
        await self._drain.reconcile()
        self._status.phase = "mirroring"
        nursery.start_soon(self._mirror.scrub.run)
        await self._look_again_at_problems()

    async def _look_again_at_problems(self) -> None:
        delay, known = _FIRST_RECHECK_SECONDS, set[str]()
        while True:
            await trio.sleep(delay)
            names = self._state.view(lambda transaction: {problem.name for problem in transaction.problems.all()})
            delay = _FIRST_RECHECK_SECONDS if names - known else min(delay * 2, _LONGEST_RECHECK_SECONDS)
            known = names
            self._mirror.look_again_at_problems()
            self._mirror.look_again_at_held()
            await self._mirror.look_again_at_refused()

    async def _follow_parent(self) -> None:
        await self._parent.follow()
        log.info("the filesystem process is gone or asks to end: ending")
        reach("uploader.ending")
        self._end_soon(0)
        self._everything.cancel()

    @staticmethod
    def _end_soon(code: int) -> None:
        """End within seconds, whatever hangs."""
        timer = threading.Timer(_END_SECONDS, os._exit, (code,))
        timer.daemon = True
        timer.start()

    async def _answer_status(self) -> Answer:
        if not self._works.is_set():
            return await self._status.answer(self._engine.tree)
        return await self._status.full_answer(
            self._engine.tree, self._journal, self._engine.worklist, self._drain, self._mirror
        )

    async def _answer_wait(self) -> Answer:
        """Answer when everything is settled, or when it is known that nothing will be."""
        await self._unless_refused(self._published)
        if self._status.refused is not None:
            return {"error": self._status.refused}
        return await self._answer_status()

    async def _published(self) -> None:
        """Return when everything is settled, and the bucket has been seen to be ours after that."""
        await self._parent.catch_up()
        await self._drain.settled()
        await self._engine.watch.confirm()

    async def _answer_approve(self, request: Mapping[str, Any], tell: Tell) -> Answer:
        """Approve of the removals that are held, of those below the paths in "below" if there are any."""
        del tell
        if self._status.refused is not None:
            return {"error": self._status.refused}
        approved = await self._mirror.approve_removals([str(path) for path in request.get("below", ())])
        return {"approved": [snapshot.path for snapshot in approved]}

    async def _answer_reconcile(self, request: Mapping[str, Any], tell: Tell) -> Answer:
        """Compare anew, deal with what is found, and tell how much it was; or, "dry_run", tell all of it only."""
        findings = _Findings(tell if request.get("dry_run") else None)
        answer: Answer = {}

        async def reconcile() -> None:
            await self._works.wait()
            async with self._reconciling:
                answer.update(await self._reconcile(findings, deep=bool(request.get("deep"))))

        await self._unless_refused(reconcile)
        if self._status.refused is not None:
            return {"error": self._status.refused}
        return answer

    async def _reconcile(self, findings: _Findings, *, deep: bool) -> Answer:
        corrects = not findings.only_told
        await self._parent.catch_up()
        try:
            doubt = await self._engine.doubt() if corrects else None
            if doubt is None:
                await self._mirror.survey.survey(findings.add)
                if deep:
                    await self._mirror.inspection.inspect(findings.add, corrects=corrects)
                    # Snapshots may have been found in the bucket that the datastore does not have.
                    doubt = await self._engine.doubt() if corrects else None
        except StoreError as error:
            return {"error": str(error)}
        if doubt is not None:
            return {"error": doubt}
        if corrects:
            await self._drain.reconcile_again()
        return {**findings.answer(), "problems": self._status.problems}

    async def _answer_heal(self, request: Mapping[str, Any], tell: Tell) -> Answer:
        """Look at the objects of "paths", which were found to be damaged, and send them again, if not "dry_run".

        The answer names those that were sent, those that are good after all or not needed, and why which are lost.
        """
        del tell
        answer: Answer = {}

        async def heal() -> None:
            await self._works.wait()
            paths = [str(path) for path in request.get("paths", ())]
            try:
                healing = await self._mirror.heal_bucket(paths, dry_run=bool(request.get("dry_run")))
            except (StoreError, TooMuch) as error:
                answer["error"] = str(error)
            else:
                answer.update(asdict(healing))

        await self._unless_refused(heal)
        if self._status.refused is not None:
            return {"error": self._status.refused}
        return answer

    async def _unless_refused(self, work: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:

            async def finish() -> None:
                await work()
                nursery.cancel_scope.cancel()

            nursery.start_soon(finish)
            await self._refused.wait()
            nursery.cancel_scope.cancel()


class _Findings:
    """The differences that were found: counted, and each told to whoever wants to know."""

    def __init__(self, tell: Tell | None) -> None:
        self.only_told = tell is not None
        self._tell = tell
        self._counts = dict.fromkeys(Remedy, 0)
        self._foreign: list[str] = []

    async def add(self, difference: Difference) -> None:
        """Take a difference in."""
        self._counts[difference.remedy] += 1
        if difference.remedy is Remedy.LEAVE and len(self._foreign) < _FOREIGN_EXAMPLES:
            self._foreign.append(difference.key)
        if self._tell is not None:
            await self._tell({"key": difference.key, "found": difference.found, "remedy": difference.remedy.value})

    def answer(self) -> Answer:
        """Tell how many there were, by what is done about them."""
        counts = {remedy.value: count for remedy, count in self._counts.items() if remedy is not Remedy.LEAVE}
        foreign = {"count": self._counts[Remedy.LEAVE], "examples": self._foreign}
        return {"differences": counts, "foreign_objects": foreign}


def report_refusal(reason: str) -> None:
    """Tell the filesystem process that nothing will be mirrored, and why."""
    _report("store", state="refused", reason=reason)


def _report(event: str, /, **details: str | int) -> None:
    say_json({"event": event, **details})


def _report_done(position: Position) -> None:
    _report("done", generation=position.generation, sequence=position.sequence)
