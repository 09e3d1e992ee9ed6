"""What mirrors, without anything of a process: the parts put together with a journal, and what comes before they work.

The uploader drives it for a mount, `mirrorfs replay run` without one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import trio

from mirrorfs.database.errors import DatabaseCorrupt
from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.journal import JournalSource, Position
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.retry import AT_ONCE, Patience
from mirrorfs.objectstore.store import QUIET_SECONDS, ObjectStore
from mirrorfs.objectstore.throttle import Throttle
from mirrorfs.replication.comparing.inspection import no_report
from mirrorfs.replication.limiting import Limiting
from mirrorfs.replication.mirror import Mirror
from mirrorfs.replication.ownership.claim import claim_prefix
from mirrorfs.replication.ownership.precaution import Datastore, doubt_about, gone_snapshots, missed_snapshots
from mirrorfs.replication.ownership.watch import BucketLost, OwnershipWatch
from mirrorfs.replication.sending.attempt import Way, reach_step_of_object
from mirrorfs.replication.sending.messages import WorkerSettings
from mirrorfs.replication.sending.sender import ChunkSender, Hand
from mirrorfs.replication.sending.threads import ThreadHand
from mirrorfs.replication.sending.workers import Worker
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.replication.work.bucket import Bucket
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.drain import Drain
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.restarts import Failing
from mirrorfs.state.identity import Identity

log = logging.getLogger(__name__)

_TREE_WORKERS = 4
# A first mirror may keep the others busy for days, and what is new then lacks next to nothing.
_WORKERS_FOR_NEWS = 2
# Chunks take at most `parallel` requests, however slow the line; a manifest does not wait for one of them to end.
_REQUESTS_BESIDE_CHUNKS = 4


def _give_up(reason: str) -> None:
    raise BucketLost(reason)


class Engine:
    """A mirror with its journal, worklist and workers. `state.run` must be running for most of it."""

    def __init__(
        self,
        settings: UploaderSettings,
        state: CommittedState,
        journal: JournalSource,
        identity: Identity,
        *,
        begin_after: int | None = None,
        is_distrusted: bool = False,
        lost: Callable[[str], None] = _give_up,
        stale: Callable[[str], None] = _give_up,
    ) -> None:
        """Put the parts together. `begin_after` is the record after which the journal is worked on, None for the one up
        to which the state has dealt with it. `is_distrusted`: the machine went down over this journal, and the state
        may have come back older than the bucket.

        `lost` is told, as a sentence, that the bucket is not this mirror's any more, `stale` that what the state says
        of it is not true any more: another engine that begins with this state finds out what is. Each has to end this
        one, as the BucketLost does that is raised if they are not given.
        """
        self._settings = settings
        self.identity = identity
        self.state = state
        self.journal = journal
        self.tree = Tree(settings.root_descriptor)
        self.datastore = Datastore(settings.datastore, self.tree, journal, settings.journal_sequence)
        layout = BucketLayout(settings.prefix)
        self._requests = settings.parallel + _REQUESTS_BESIDE_CHUNKS
        throttle = Throttle()
        self.limiting = Limiting(throttle, settings.limits)
        self._client = S3Client(
            settings.bucket,
            settings.store,
            parallelism=self._requests,
            is_chunk=lambda key: layout.chunk_digest(key) is not None,
            throttle=throttle,
        )
        store = ObjectStore(
            self._client,
            parallelism=self._requests,
            patience=Patience(ceiling=settings.retry_ceiling),
            observer=reach_step_of_object,
        )
        self.bucket = Bucket(layout, store)
        self.watch = OwnershipWatch(self.bucket, state, lost=lost, stale=stale)
        self.worklist = Worklist()
        in_memory = trio.CapacityLimiter(settings.parallel)
        self._workers = _workers(settings, throttle)
        hands: list[Hand] = [hand for worker in self._workers for hand in worker.hands]
        if not hands:
            way = Way(self.tree, layout, self._client)
            hands = [ThreadHand(way, in_memory) for _ in range(settings.parallel)]
        self._sender = ChunkSender(hands, store)
        self.mirror = Mirror(
            self.tree,
            self.bucket,
            state,
            self.worklist,
            parallel=settings.parallel,
            newest=journal.last_sequence,
            retention=settings.retention,
            ownership=self.watch,
            verify_percent_per_day=settings.verify_percent_per_day,
            sender=self._sender,
            in_memory=in_memory,
        )
        self.drain = Drain(
            journal,
            state,
            self.worklist,
            self.mirror,
            mounted_at=settings.journal_sequence,
            begin_after=begin_after,
        )
        self._is_distrusted = is_distrusted
        self._is_in_doubt: bool | None = None
        self._allows_removals = settings.allow_removals

    def hang_up(self) -> None:
        """Have the workers open the log again; safe from a handler of a signal."""
        for worker in self._workers:
            worker.hang_up()

    @property
    def requests_without_progress(self) -> list[tuple[str, float]]:
        """What has been under way without progress for too long: in words, and for how many seconds."""
        of_workers = (entry for worker in self._workers for entry in worker.without_answer(QUIET_SECONDS))
        return [*self.bucket.store.requests_without_progress, *of_workers]

    @property
    def workers(self) -> Sequence[Worker]:
        """The worker processes; none where the uploader sends by itself."""
        return self._workers

    @property
    def failing_workers(self) -> list[Failing]:
        """The workers that die again and again; what they were to send is sent all the same, more slowly."""
        return [worker.failing for worker in self._workers if worker.failing is not None]

    def impatient_store(self) -> ObjectStore:
        """Return the store as it is for whoever wants to hear at once how things are: each request has one try."""
        return ObjectStore(
            self._client,
            parallelism=self._requests,
            patience=AT_ONCE,
            condition=self.bucket.store.condition,
        )

    async def claim(self, store: ObjectStore) -> None:
        """Claim the prefix. Raises ClaimRefused, ClaimUnreadable and StoreError: see `claim_prefix`."""
        bucket, take_over = replace(self.bucket, store=store), self._settings.take_over
        claim = await claim_prefix(bucket, self.identity, self.state, take_over=take_over)
        self.identity = replace(self.identity, mirror_id=claim.mirror_id)
        self.watch.begin(claim)

    async def doubt(self) -> str | None:
        """Return why the mirror should not follow the datastore now, as a sentence; None when all looks well."""
        if self._allows_removals:
            return None
        return await trio.to_thread.run_sync(doubt_about, self.datastore, self.state)

    async def get_to_know_the_bucket(self, tell_phase: Callable[[str], None]) -> None:
        """Probe and adopt, after `claim` and before `begin`; may be called again where it has failed.

        Raises:
            StoreRejected, ConfirmationFailed: the store refuses what is needed for that.
        """
        if self._is_in_doubt is None:
            self._is_in_doubt = self.state.view(
                lambda transaction: (
                    transaction.progress.adopted()
                    and (self._is_distrusted or self.drain.follows_another_journal or transaction.progress.inspecting())
                )
            )
        await self.bucket.store.probe(self.bucket.layout.own_key("probe"))
        tell_phase("reading the bucket")
        await self.mirror.adoption.adopt(self.mirror.grace)
        await self.mirror.clear_staging()
        if self._is_in_doubt:
            tell_phase("comparing the bucket")
            await self._compare_bucket()

    async def _compare_bucket(self) -> None:
        """Before anything relies on a state that may be older than the bucket: is it as the state says?

        A disk may forget at a power cut what it said to have stored. Costs one request for a thousand objects listed.
        """
        log.warning("the journal is another one, or not trusted, or a comparison was interrupted: comparing the bucket")
        await self.mirror.inspection.inspect(no_report)
        # From here on the state belongs to this journal.
        position = self.drain.position
        await self.state.apply(lambda transaction: transaction.progress.set_position(position))

    async def begin(self, nursery: trio.Nursery, saved: Callable[[Position], None] | None) -> None:
        """Begin to work on the journal, in `nursery` and until that is cancelled.

        `saved` hears how far the journal is dealt with, when the state has it; without it the state's position stays.
        What is gone now, and is allowed to go, goes also if this engine ends before. What goes later is not meant.
        """
        await self.begin_to_send(nursery)
        nursery.start_soon(self.drain.intake)
        if saved is not None:
            nursery.start_soon(self.drain.save_position, saved)
        nursery.start_soon(self.drain.handle_chunk_removals)
        nursery.start_soon(self.drain.handle_snapshot_removals)
        nursery.start_soon(self.mirror.clock.keep_checking)
        nursery.start_soon(self.mirror.grace.end_when_due)
        nursery.start_soon(self.mirror.locks.keep_locked)

    async def begin_to_send(self, nursery: trio.Nursery) -> None:
        """Begin to handle what is listed, in `nursery` and until that is cancelled; that is all where `begin` is not
        called: the journal is left alone, and no snapshot or chunk leaves the bucket because the datastore has it not.
        """
        await self._look_for_what_is_missed()
        store = self.bucket.store
        log.info("mirroring to %s, confirmed by %s", store.place, store.capabilities.confirmation.value)
        nursery.start_soon(self._sender.run)
        for worker in self._workers:
            nursery.start_soon(worker.keep_running)
        for _ in range(self.mirror.chunks_at_once):
            nursery.start_soon(self.drain.handle_chunks)
        for _ in range(_TREE_WORKERS):
            nursery.start_soon(self.drain.handle_tree)
        for _ in range(_WORKERS_FOR_NEWS):
            nursery.start_soon(partial(self.drain.handle_tree, only_told=True))
        nursery.start_soon(self.watch.keep_looking)

    async def _look_for_what_is_missed(self) -> None:
        missed = await trio.to_thread.run_sync(missed_snapshots, self.datastore, self.state)
        absences = self.mirror.absences
        if not self._allows_removals:
            await absences.hold_missed(missed)
            return
        await absences.hold_strangers(missed)
        await absences.let_go(await trio.to_thread.run_sync(gone_snapshots, self.datastore, self.state))
        self._allows_removals = False


def damage_of(directory: str, error: BaseException) -> DatabaseCorrupt | None:
    """Find in a group of errors, or in one, that the environment in `directory` is damaged."""
    if isinstance(error, BaseExceptionGroup):
        found = (damage_of(directory, inner) for inner in error.exceptions)
        return next((damage for damage in found if damage is not None), None)
    return error if isinstance(error, DatabaseCorrupt) and error.directory == directory else None


def _workers(settings: UploaderSettings, throttle: Throttle) -> list[Worker]:
    """Share out what may be sent at the same time; none where the uploader is to send by itself."""
    count = min(settings.workers, settings.parallel)
    if count == 1:
        return []
    given = WorkerSettings(
        settings.bucket,
        settings.prefix,
        settings.store,
        settings.root_descriptor,
        connections=(),
        verbose=settings.verbose,
        log_format=settings.log_format,
        throttle=throttle.descriptor,
    )
    shares = [settings.parallel // count + (number < settings.parallel % count) for number in range(count)]
    return [Worker(number, given, share) for number, share in enumerate(shares, start=1)]
