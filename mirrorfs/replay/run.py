"""`mirrorfs replay run`: the bucket is brought up to date from what is left of a state directory, without a mount.

Or it is only repaired, for `mirrorfs heal --bucket`. It is the uploader's own engine that works, on a journal that
nobody appends to. What is done stands in the state after each step, so that whoever was interrupted, or killed, begins
again with the same command.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar

import trio

from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError
from mirrorfs.datastore.errors import TooMuch
from mirrorfs.journal.journal import JournalSource, Position, distrust_reason
from mirrorfs.journal.view import NoJournal
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.replay.source import Source, find_place
from mirrorfs.replication.engine import Engine, damage_of
from mirrorfs.replication.ownership.claim import ClaimRefused, ClaimUnreadable
from mirrorfs.replication.ownership.watch import BucketLost
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.damage import open_state, set_state_aside
from mirrorfs.state.identity import ForeignState, Identity
from mirrorfs.state.problems import Problem
from mirrorfs.state.state import State, StateTransaction
from mirrorfs.supervision.sole_mirror import MirroredAlready, sole_mirror

log = logging.getLogger(__name__)

_PROGRESS_SECONDS = 0.5
_OF_OTHER_BUCKET = "replay-"

Result = TypeVar("Result")


class ReplayRefused(Exception):
    """The journal cannot be driven like this; the message says why and what to do."""


class ReplayEnded(Exception):
    """It was begun and could not be brought to its end; the message says why. It can be gone on with."""


@dataclass(frozen=True, slots=True)
class ReplaySettings:
    """What is driven, and where to.

    `uploader` says the datastore (as it lies now, an absolute path), bucket and store. `first` is the sequence to begin
    with, None for the first that is not dealt with, 1 for all. With `only_journal` the datastore is not compared.
    `work_directory` holds the state instead of the source, which is then not written to. With `repair`, that is done
    with the engine instead: the journal is left alone, nothing is compared, and nothing is removed from the bucket,
    whatever the retention settings are, which a repair cannot know.
    """

    uploader: UploaderSettings
    first: int | None = None
    only_journal: bool = False
    work_directory: str | None = None
    repair: Callable[[Engine], Awaitable[None]] | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """How far it is: what is done now, the record read up to and the last one, items that wait, and what was sent.

    `trouble` says why the store does not take anything just now, None if it does.
    """

    phase: str
    read: int
    last: int
    waiting: int
    objects: int
    bytes: int
    trouble: str | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What it came to. `held` are the snapshots that were not removed because an administrator has to approve."""

    state_directory: str
    objects: int
    bytes: int
    published: int
    problems: list[Problem]
    held: list[str]


class Replay:
    """One run; to be entered, which takes the locks and opens everything."""

    def __init__(self, path: str, settings: ReplaySettings, tell: Callable[[Progress], None]) -> None:
        """`path` is what is left of a state directory. `tell` hears twice a second how far it is."""
        self._path = os.path.realpath(path)
        self._settings = settings
        self._tell = tell
        self._opened = ExitStack()
        self._phase = "asking the store"

    def __enter__(self) -> Replay:
        """Take the locks and open everything.

        Raises:
            ReplayRefused: the datastore cannot be opened or is mirrored already, or the state must not be used for this
                bucket.
            DatabaseError and its kinds: a mount uses the directory, or what is needed of it cannot be used.
        """
        try:
            self._open()
        except BaseException:
            self._opened.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._opened.close()

    def _open(self) -> None:
        settings = self._settings.uploader
        place = find_place(self._path)
        self._lock_source()
        self.source = self._opened.enter_context(Source(self._path, place))
        if self._settings.repair is None:
            self._refuse_if_keeping_is_forgotten()
        else:
            refuse_to_repair_what_is_unknown(self.source, settings)
        self.directory = self._choose_directory()
        self._lock_directory()
        root = _open_datastore(settings.datastore)
        self._opened.callback(os.close, root)
        try:
            self._opened.enter_context(sole_mirror(root, settings.datastore))
        except MirroredAlready as error:
            raise ReplayRefused(str(error)) from error
        journal = self._journal()
        state = self._open_state()
        identity = self._identity(state)
        self._state = CommittedState(state)
        # Nothing is mounted: whatever the journal says was recorded by an earlier mount.
        settings = replace(settings, root_descriptor=root, journal_sequence=journal.last_sequence())
        begin_after = None if self._settings.first is None else self._settings.first - 1
        self._engine = Engine(
            settings,
            self._state,
            journal,
            identity,
            begin_after=begin_after,
            is_distrusted=place.journal is not None and distrust_reason(os.path.dirname(place.journal)) is not None,
        )
        self._skips_records = begin_after is not None and begin_after > self._engine.drain.position.sequence

    def _lock_source(self) -> None:
        """Keep mounts from using the source, and refuse if one does."""
        if not os.path.isdir(self._path):
            return
        if self._settings.work_directory is None:
            StateDirectory(self._path).create()
        elif not os.access(self._path, os.W_OK):
            # A copy that may only be read: no mount can use it either.
            return
        lock = DirectoryLock(StateDirectory(self._path), "mount")
        lock.acquire()
        self._opened.callback(lock.release)

    def _refuse_if_keeping_is_forgotten(self) -> None:
        """What the mount keeps for a while, or holds, must not go because a setting is missing here."""
        retention = self._settings.uploader.retention
        if retention.delete_after == 0 and self.source.ask_state(_keeps_deleted):
            raise ReplayRefused(
                "the mirror keeps snapshots for a while after they were removed, and would not keep those that are "
                "removed now: give --retention-delete-after as the mount had it"
            )

    def _choose_directory(self) -> StateDirectory:
        """Tell where the state for this bucket lies or is to lie."""
        settings = self._settings
        if settings.work_directory is not None:
            return StateDirectory(os.path.realpath(settings.work_directory))
        if self.source.place.journal != self._journal_path and self.source.place.state != self._state_path:
            raise ReplayRefused(
                f"{self._path} is not a state directory, but the journal or state of one: give --work-dir, a directory "
                "for the state of this run"
            )
        identity = self.source.identity
        here = settings.uploader.bucket, settings.uploader.prefix
        if identity is None or self._is_of_this_bucket(identity):
            return StateDirectory(self._path)
        name = hashlib.sha256("/".join(here).encode()).hexdigest()[:16]
        return StateDirectory(os.path.join(self._path, f"{_OF_OTHER_BUCKET}{name}"))

    @property
    def _journal_path(self) -> str:
        return os.path.join(StateDirectory(self._path).journal, "data.mdb")

    @property
    def _state_path(self) -> str:
        return StateDirectory(self._path).state

    def _lock_directory(self) -> None:
        self.directory.create()
        if self.directory.path != self._path:
            mount = DirectoryLock(self.directory, "mount")
            mount.acquire()
            self._opened.callback(mount.release)
        self._lock = DirectoryLock(self.directory, "uploader")
        self._lock.acquire()
        self._opened.callback(self._lock.release)

    def _journal(self) -> JournalSource:
        journal = self.source.journal
        if journal is None:
            if self._settings.only_journal:
                raise ReplayRefused(
                    self.source.journal_trouble
                    or f"{self._path} has no journal: without --journal-only the whole datastore is compared"
                )
            return NoJournal()
        first, last = self._settings.first, journal.last_sequence()
        if first is not None and first > last + 1:
            raise ReplayRefused(f"the journal ends with record {last}: there is no record {first} to begin with")
        return journal

    def _open_state(self) -> State:
        if self.directory.path != self._path and self._is_of_this_bucket(self.source.identity):
            self._copy_state()
        state = open_state(self.directory, doubtful=self._lock.abandoned)
        self._opened.callback(state.close)
        return state

    def _copy_state(self) -> None:
        """Begin with what the source's state knows of this bucket, if the work directory has no state yet."""
        if os.path.lexists(self.directory.state) or self.source.place.state is None:
            return
        draft = f"{self.directory.state}.copy"
        shutil.rmtree(draft, ignore_errors=True)
        os.mkdir(draft, 0o700)
        shutil.copyfile(os.path.join(self.source.place.state, "data.mdb"), os.path.join(draft, "data.mdb"))
        os.chmod(os.path.join(draft, "data.mdb"), 0o600)
        os.sync()
        os.rename(draft, self.directory.state)

    def _is_of_this_bucket(self, identity: Identity | None) -> bool:
        return _is_of_bucket(identity, self._settings.uploader)

    def _identity(self, state: State) -> Identity:
        """Tell whose mirror it is. The datastore keeps the name that it had when it was mounted, wherever it lies now.

        Raises:
            ForeignState: the state is of another bucket.
        """
        settings = self._settings.uploader
        stored = state.view(lambda transaction: transaction.identity.get())
        if stored is not None:
            if (stored.bucket, stored.prefix) != (settings.bucket, settings.prefix):
                raise ForeignState(
                    f"the state in {self.directory.path} is of s3://{stored.bucket}/{stored.prefix}: give another "
                    "--work-dir for another bucket"
                )
            return stored
        new = Identity(self.source.datastore or settings.datastore, settings.bucket, settings.prefix)
        before = self.source.identity
        if before is not None and self._is_of_this_bucket(before):
            return replace(new, mirror_id=before.mirror_id)
        return new

    def run(self) -> Outcome:
        """Bring the bucket up to date, or repair it if that is what is to be done.

        Raises:
            ReplayRefused: the bucket is somebody else's, or the datastore looks as if it were not the one.
            ReplayEnded: the store refuses what is needed, the state turned out damaged and has been set aside, or a
                signal has asked for the end (SIGINT, SIGTERM).
            DatabaseError: journal or state cannot be read or written.
        """
        try:
            with _single_errors(self.directory.state) as damage:
                return trio.run(self._run)
        except BucketLost as error:
            raise ReplayEnded(f"{error}. Run it again") from error
        set_state_aside(self.directory, str(damage[0]))
        raise ReplayEnded(f"{damage[0]}. It has been set aside; a new one is built from the bucket by the next run")

    async def _run(self) -> Outcome:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._state.run)
            nursery.start_soon(self._keep_telling)
            nursery.start_soon(end_on_signal)
            try:
                await self._get_to_know_the_bucket()
                if self._settings.repair is None:
                    await self._begin(nursery)
                    await self._work()
                else:
                    await self._engine.begin_to_send(nursery)
                    self._set_phase("sending what is damaged")
                    await self._settings.repair(self._engine)
                    await self._engine.worklist.idle()
            except (StoreError, TooMuch, ClaimUnreadable) as error:
                raise ReplayEnded(str(error)) from error
            except ClaimRefused as error:
                raise ReplayRefused(self._advice(str(error))) from error
            self._tell(self._progress())
            outcome = self._outcome()
            nursery.cancel_scope.cancel()
        return outcome

    async def _get_to_know_the_bucket(self) -> None:
        engine = self._engine
        await self._refuse_doubtful()
        await engine.claim(engine.impatient_store())
        await engine.get_to_know_the_bucket(self._set_phase)
        await self._refuse_doubtful()

    async def _begin(self, nursery: trio.Nursery) -> None:
        engine = self._engine
        if self._settings.uploader.allow_removals:
            # What an earlier run has held, and listed, for a reason that no option of a mount overrules: the name was
            # taken over, and these snapshots were another's. Here the option is the answer to that list.
            await engine.mirror.approve_removals()
        # A position that has skipped records would say of them that they are dealt with.
        await engine.begin(nursery, None if self._skips_records else _ignore)

    async def _refuse_doubtful(self) -> None:
        doubt = await self._engine.doubt()
        if doubt is not None:
            raise ReplayRefused(self._advice(doubt))

    def _advice(self, reason: str) -> str:
        """Name the options of a run where a message speaks of a mount's; a repair has none of them."""
        return reason if self._settings.repair is not None else reason.replace("mount once with --", "give --")

    async def _work(self) -> None:
        drain = self._engine.drain
        if self._settings.only_journal:
            self._set_phase("working on the journal")
            drain.leave_out_reconciling()
        else:
            self._set_phase("comparing the datastore")
            await drain.reconcile()
            self._set_phase("mirroring")
        await drain.settled()
        if not self._skips_records:
            await drain.save_position_now()

    def _set_phase(self, phase: str) -> None:
        self._phase = phase
        log.info("%s", phase)

    async def _keep_telling(self) -> None:
        while True:
            self._tell(self._progress())
            await trio.sleep(_PROGRESS_SECONDS)

    def _progress(self) -> Progress:
        engine, store = self._engine, self._engine.bucket.store
        condition = store.condition
        publishing = sum(engine.mirror.publication.remaining.values())
        return Progress(
            self._phase,
            engine.drain.read_up_to,
            engine.journal.last_sequence(),
            len(engine.worklist) + publishing,
            store.uploaded_objects,
            store.uploaded_bytes,
            None if condition.is_up or condition.last_error is None else str(condition.last_error),
        )

    def _outcome(self) -> Outcome:
        store = self._engine.bucket.store
        problems, held, published = self._state.view(_results)
        return Outcome(self.directory.path, store.uploaded_objects, store.uploaded_bytes, published, problems, held)


def refuse_to_repair_what_is_unknown(source: Source, uploader: UploaderSettings) -> None:
    """To find out what the bucket is to hold is for a mount, which has the settings for what it finds.

    Raises ReplayRefused where the state in `source` does not know it.
    """
    if not (_is_of_bucket(source.identity, uploader) and source.ask_state(_is_adopted)):
        raise ReplayRefused(
            f"{source.state_trouble or f'the state in {source.path} does not know this bucket'}. What "
            f"s3://{uploader.bucket}/{uploader.prefix} is to hold is found out by a mount: mount "
            f"{uploader.datastore} and heal it then"
        )


async def end_on_signal() -> None:
    """Raise ReplayEnded when SIGINT or SIGTERM come, so that what is open is closed."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async for _ in signals:
            raise ReplayEnded("Interrupted")


@contextmanager
def _single_errors(state_directory: str) -> Iterator[list[DatabaseCorrupt]]:
    """Raise the first of our own errors instead of a group; damage of the state is given to whoever goes on after."""
    damage: list[DatabaseCorrupt] = []
    try:
        yield damage
    except BaseExceptionGroup as group:
        found = damage_of(state_directory, group)
        if found is None:
            raise _first_of(group) from group
        damage.append(found)
    except DatabaseCorrupt as error:
        if error.directory != state_directory:
            raise
        damage.append(error)


def _first_of(group: BaseExceptionGroup) -> BaseException:
    """Return the one that says most to a person: what was refused before what broke off because of it."""
    for kind in (KeyboardInterrupt, ReplayRefused, ReplayEnded, BucketLost, DatabaseError):
        matching = group.subgroup(kind)
        if matching is not None:
            found: BaseException = matching
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            return found
    return group


def _is_of_bucket(identity: Identity | None, settings: UploaderSettings) -> bool:
    return identity is not None and (identity.bucket, identity.prefix) == (settings.bucket, settings.prefix)


def _open_datastore(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise ReplayRefused(f"cannot open the datastore {path}: {error.strerror}. Is its disk mounted?") from error


def _keeps_deleted(transaction: StateTransaction) -> bool:
    return any(True for _ in transaction.retention.all_deleted())


def _is_adopted(transaction: StateTransaction) -> bool:
    return transaction.progress.adopted()


def _results(transaction: StateTransaction) -> tuple[list[Problem], list[str], int]:
    held = [removal.path for removal in transaction.retention.all_held() if not removal.approved]
    published = sum(snapshot.phase.counts_references for _, snapshot in transaction.snapshots.all())
    return list(transaction.problems.all()), held, published


def _ignore(position: Position) -> None:
    """The journal stays as it is: the next mount drops what is dealt with."""
