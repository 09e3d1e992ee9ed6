"""The uploader process: lives as long as the filesystem process that started it, and does all the network work."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading

import trio

from mirrorfs.datastore.layout import BucketLayout
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.directory import DirectoryLock, StateDirectory
from mirrorfs.journal.journal import JournalReader, Position
from mirrorfs.journal.state import Identity, State, check_identity
from mirrorfs.objectstore.client import S3Client
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected, StoreUnavailable
from mirrorfs.objectstore.retry import AT_ONCE, Patience
from mirrorfs.objectstore.store import ObjectStore
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.replication.adoption import Adoption
from mirrorfs.replication.claim import ClaimRefused, claim_prefix
from mirrorfs.replication.control import Answer, serve_control
from mirrorfs.replication.drain import Drain
from mirrorfs.replication.mirror import Mirror
from mirrorfs.replication.precaution import doubt_about
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.replication.status import UploaderStatus
from mirrorfs.replication.steps import armed_step
from mirrorfs.replication.worklist import Worklist

log = logging.getLogger(__name__)

_TREE_WORKERS = 4
# How long a sick item is left alone when nothing is heard of it; a change through the mount is seen at once.
_RECHECK_SECONDS = 600.0
# A PUT under way is not waited for longer than this when the uploader is to end: the state knows that it was begun.
_END_SECONDS = 3.0
_WAKE_BYTES = 4096


class Uploader:
    """One uploader. `run` returns when standard input, held by the filesystem process, is closed.

    Standard input carries, after the settings, one byte for each time the journal has grown. Standard output carries
    lines of JSON: {"event": "store", "state": "ready" | "waiting" | "refused", "reason": …} once it is known how the
    store answers, and {"event": "done", "generation": …, "sequence": …} when the journal is dealt with up to there.
    """

    def __init__(self, settings: UploaderSettings) -> None:
        """Open journal and state. Raises JournalError and its kinds."""
        self._settings = settings
        directory = StateDirectory(settings.state_directory)
        self._control_path = directory.control_socket
        self._lock = DirectoryLock(directory, "uploader")
        # An uploader that lost its filesystem process may still be ending.
        self._lock.acquire(wait=True)
        self._state = State(directory.state)
        self._journal = JournalReader(directory.journal)
        self._identity = self._checked_identity(directory)
        self._tree = Tree(settings.root_descriptor)
        self._layout = BucketLayout(settings.prefix)
        self._client = S3Client(
            settings.bucket,
            StoreOptions(settings.endpoint_url, settings.profile, settings.region),
            parallelism=settings.parallel,
        )
        self._store = ObjectStore(
            self._client,
            parallelism=settings.parallel,
            patience=Patience(ceiling=settings.retry_ceiling),
            observer=armed_step(os.environ),
        )
        self._worklist = Worklist()
        self._mirror = Mirror(
            self._tree, self._layout, self._store, self._state, self._worklist, parallel=settings.parallel
        )
        self._drain = Drain(self._journal, self._state, self._mirror.commits, self._worklist, self._mirror)
        self._status = UploaderStatus(settings, self._store, self._state)
        self._running = False
        self._refused = trio.Event()

    def _checked_identity(self, directory: StateDirectory) -> Identity:
        expected = Identity(self._settings.datastore, self._settings.bucket, self._settings.prefix)
        return check_identity(self._state.view(lambda transaction: transaction.identity()), expected, directory.path)

    async def run(self) -> None:
        """Mirror until standard input is closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow_parent, nursery.cancel_scope)
            nursery.start_soon(self._mirror.commits.run)
            nursery.start_soon(
                serve_control, self._control_path, {"status": self._answer_status, "wait": self._answer_wait}
            )
            if await self._become_owner():
                await self._mirror_for_ever(nursery)
        self._state.close()
        self._journal.close()
        self._lock.release()

    async def _become_owner(self) -> bool:
        """Claim the prefix, first in one try, so that whoever mounts hears at once how things are."""
        if await self._is_doubtful():
            return False
        store = ObjectStore(
            self._client, parallelism=self._settings.parallel, patience=AT_ONCE, condition=self._store.condition
        )
        while True:
            try:
                await self._claim(store)
            except (StoreUnavailable, StoreRejected, ConfirmationFailed) as error:
                _report("store", state="waiting", reason=str(error))
                if store is self._store:
                    await trio.sleep(self._settings.retry_ceiling)
            except ClaimRefused as error:
                return self._refuse(str(error))
            else:
                _report("store", state="ready", reason="")
                return True
            store = self._store

    async def _claim(self, store: ObjectStore) -> None:
        self._identity = await claim_prefix(
            store,
            self._layout,
            self._identity,
            self._state,
            self._mirror.commits,
            take_over=self._settings.take_over,
        )

    async def _is_doubtful(self) -> bool:
        if self._settings.allow_removals:
            return False
        doubt = await trio.to_thread.run_sync(
            doubt_about, self._settings.datastore, self._tree, self._state, self._journal
        )
        if doubt is not None:
            self._refuse(doubt)
        return doubt is not None

    def _refuse(self, reason: str) -> bool:
        self._status.phase, self._status.refused = "refused", reason
        self._refused.set()
        log.error("nothing is mirrored: %s", reason)
        report_refusal(reason)
        return False

    async def _get_to_know_the_bucket(self) -> None:
        """Probe and adopt. Where a request is refused it is tried again: what refuses may stand in between."""
        while True:
            try:
                await self._store.probe(self._layout.own_key("probe"))
                self._status.phase = "reading the bucket"
                await Adoption(self._layout, self._store, self._state, self._mirror.commits).adopt()
            except (StoreRejected, ConfirmationFailed) as error:
                if self._status.refused != str(error):
                    log.error("nothing is mirrored for now: %s", error)
                self._status.refused = str(error)
                await trio.sleep(self._settings.retry_ceiling)
            else:
                self._status.refused = None
                return

    async def _mirror_for_ever(self, nursery: trio.Nursery) -> None:
        await self._get_to_know_the_bucket()
        if await self._is_doubtful():
            return
        log.info("mirroring to %s, confirmed by %s", self._store.place, self._store.capabilities.confirmation.value)
        self._status.phase = "reconciling"
        self._running = True
        nursery.start_soon(self._drain.intake)
        nursery.start_soon(self._drain.save_position, _report_done)
        for _ in range(self._settings.parallel):
            nursery.start_soon(self._drain.handle_chunks)
        for _ in range(_TREE_WORKERS):
            nursery.start_soon(self._drain.handle_tree)
        await self._drain.reconcile()
        self._status.phase = "mirroring"
        while True:
            await trio.sleep(_RECHECK_SECONDS)
            self._mirror.look_again_at_problems()

    async def _follow_parent(self, scope: trio.CancelScope) -> None:
        async with trio.lowlevel.FdStream(os.dup(sys.stdin.fileno())) as stream:
            while await stream.receive_some(_WAKE_BYTES):
                self._drain.wake()
        log.info("the filesystem process is gone or asks to end: ending")
        timer = threading.Timer(_END_SECONDS, os._exit, (0,))
        timer.daemon = True
        timer.start()
        scope.cancel()

    async def _answer_status(self) -> Answer:
        if not self._running:
            return self._status.answer()
        return await self._status.full_answer(self._tree, self._journal, self._worklist, self._drain, self._mirror)

    async def _answer_wait(self) -> Answer:
        """Answer when everything is settled, or when it is known that nothing will be."""
        async with trio.open_nursery() as nursery:

            async def settle() -> None:
                await self._drain.settled()
                nursery.cancel_scope.cancel()

            nursery.start_soon(settle)
            await self._refused.wait()
            nursery.cancel_scope.cancel()
        if self._status.refused is not None:
            return {"error": self._status.refused}
        return await self._answer_status()


def report_refusal(reason: str) -> None:
    """Tell the filesystem process that nothing will be mirrored, and why."""
    _report("store", state="refused", reason=reason)


def _report(event: str, **details: str | int) -> None:
    print(json.dumps({"event": event, **details}), flush=True)


def _report_done(position: Position) -> None:
    _report("done", generation=position.generation, sequence=position.sequence)
