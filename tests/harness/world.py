"""One datastore at which PBS works, its machine, its mirror, its store and what watches over them: everything that a
run can break, and the means to break it and to make it whole again."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tests.harness.administrator import Administrator
from tests.harness.auditor import audit_until_converged
from tests.harness.backup import BackupRefused
from tests.harness.completion import Completion
from tests.harness.crash_loop import crash_loops
from tests.harness.deleted import Grace
from tests.harness.disks import Disks
from tests.harness.formats import MANIFEST_NAME
from tests.harness.machine import Machine
from tests.harness.mirror import Mirror
from tests.harness.model import Model
from tests.harness.process_lock import DatastoreBusy
from tests.harness.refusing_store import RefusingStore
from tests.harness.restores import Restores
from tests.harness.retention import RetentionSettings
from tests.harness.scan import ChunkInspector, FoundDatastore, lacks_files, scan_datastore
from tests.harness.statistics import Statistics
from tests.harness.steps import StepFile
from tests.harness.store_route import StoreRoute
from tests.harness.wall_clock import WallClock
from tests.harness.watch import Watch
from tests.harness.worker import Order, Workers
from tests.stores.fault_proxy import FaultProxy
from tests.stores.server import AnyStore

_OPERATION_SECONDS = 90.0
_CONVERGENCE_SECONDS = 150.0
# While the mirror's word is that all is done, what is kept for a while may just be ending.
_ENDING_SECONDS = 75.0
NATIVE_CHUNKS = "native chunks"
"""What a world offers whose chunk store may be native."""
WORKERS = "workers"
"""What a world offers whose uploader has chunks sent by other processes."""
_WORKERS_VARIABLE = "MIRRORFS_MOUNT_WORKERS"
_CHUNK_STORE_VARIABLE = "MIRRORFS_MOUNT_CHUNK_STORE"


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Where a world stands. `base` is a private directory; `bucket` exists; `name` is a prefix that nobody uses.

    `convergence_seconds` is how long after the end of all faults the bucket may take to equal the datastore.
    `keeps_versions` says that the bucket does. `chunk_store` is how PBS is to reach its chunks: auto, native or fuse.
    `workers` is how many processes send chunks, 1: the uploader itself.
    """

    base: Path
    store: AnyStore
    bucket: str
    name: str
    extra_environment: dict[str, str]
    convergence_seconds: float = _CONVERGENCE_SECONDS
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    keeps_versions: bool = False
    chunk_store: str = "auto"
    workers: int = 1


class World:
    """Use it in a with statement: whatever happens, processes, mounts and disks are gone behind it.

    One thread drives it. What breaks a promise is counted in `statistics`, and goes on unless it cannot.
    """

    def __init__(self, settings: WorldSettings, statistics: Statistics, seed: int) -> None:
        self.statistics = statistics
        self._violations_before = len(statistics.violations)
        self.store = settings.store
        self.model = Model()
        self.seed = seed
        self.retention = settings.retention
        self.keeps_versions = settings.keeps_versions
        self._settings = settings
        self._base = settings.base
        self._stack = ExitStack()
        self._generations: dict[str, int] = {}
        self._workers = Workers()
        self._good_chunks: dict[str, bytes] = {}

    # -- beginning and end ---------------------------------------------------------------------------------

    def __enter__(self) -> World:
        try:
            self._begin()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _begin(self) -> None:
        base, settings = self._base, self._settings
        self.clock = WallClock(base)
        self.steps = StepFile(base / "step")
        self.datastore = base / "datastore"
        disks = self._stack.enter_context(Disks(base, self.datastore))
        self.data_disk, self.state_disk = disks.data, disks.state
        self._route = StoreRoute(self.store, settings.bucket, settings.name, self.statistics)
        self._stack.enter_context(self._route)
        self.mirror = self._new_mirror()
        self._stack.callback(self.mirror.kill_all)
        self._machine = Machine(disks, self.clock, self.steps, self.mirror, self.statistics)
        self._stack.callback(self._workers.end)
        self.pbs("create", chunk_directories="when needed")
        self.model.synced()
        disks.sync()
        self._inspector = ChunkInspector(self.backing)
        self._watch = Watch(self._route, self.seed)
        self._stack.callback(self._watch.stop)
        self.auditor = self._watch.auditor
        self.administrator = Administrator(
            self.mirror, self.model, self._route.bucket(), self.statistics, self.auditor.seen_published
        )
        self._completion = Completion(
            self._machine,
            self.administrator,
            self.statistics,
            settings.convergence_seconds,
            self.retention.lock_for or 0.0,
        )
        self._restores = Restores(self.mirror, self.auditor, self.look, base / "restored", self.statistics)
        self.mount()

    def _new_mirror(self) -> Mirror:
        environment = {
            **self.store.environment(),
            **self.clock.environment(),
            **self._settings.extra_environment,
            _CHUNK_STORE_VARIABLE: self._settings.chunk_store,
            _WORKERS_VARIABLE: str(self._settings.workers),
            **self.steps.environment,
        }
        return Mirror(
            self.datastore,
            self.state_disk.mountpoint / "state",
            f"s3://{self._settings.bucket}/{self._settings.name}",
            self._route.endpoint_url,
            environment,
            self.retention.mount_options,
        )

    @property
    def backing(self) -> Path:
        """The backing directory itself."""
        return self._machine.disks.backing

    @property
    def older_state(self) -> Path:
        """Where a copy of the state directory is kept, to be put back later."""
        return self._base / "older-state"

    @property
    def sync_source(self) -> Path:
        """Another datastore, on a plain disk, from which sync jobs pull."""
        return self._base / "source"

    # -- the machine: see Machine --------------------------------------------------------------------------

    def mount(self) -> None:
        """Mount, unless it is, and have done what a removal that was cut short has left. Raises WorldEnded."""
        self._machine.mount()
        if self.model.half_removed:
            self._remove_halves()

    def mount_as_asked_for(self, answer: str | None) -> None:
        """Mount anew, and say that removals are meant, if that is what the mirror asks in `answer`."""
        self._machine.mount_as_asked_for(answer)

    def kill_mount(self) -> None:
        """Kill the filesystem process; what is under way through it fails, and may."""
        self._machine.kill_mount()

    def without_mirror(self) -> AbstractContextManager[None]:
        """PBS goes on while nothing is mounted; mounts again at the end."""
        return self._machine.without_mirror()

    def uploader_stopped(self) -> AbstractContextManager[None]:
        """The uploader gets no processor time while this lasts."""
        return self._machine.uploader_stopped()

    def filesystem_process_stopped(self) -> AbstractContextManager[None]:
        """The filesystem process gets no processor time while this lasts: nothing in the mount is answered."""
        return self._machine.filesystem_process_stopped()

    def trouble(self, reason: str) -> AbstractContextManager[None]:
        """While this lasts, operations may fail: the disk itself does."""
        return self._machine.trouble(reason)

    def disarm_step(self) -> None:
        """Arm nothing any more, and count the steps that have killed."""
        self._machine.disarm_step()

    def lose_power(self) -> None:
        """The moment of a power cut: from here on nothing reaches the disks."""
        self._machine.lose_power()

    @property
    def has_power(self) -> bool:
        """Whether the disks take writes."""
        return self._machine.has_power

    def restore_power(self, choice: random.Random) -> None:
        """Everything ends, what was not on the disks is gone in part or as a whole, and the machine boots."""
        self._machine.restore_power(choice)
        self.administrator.forget()
        self.model.lost_power()
        self.resolve()
        self.mount()

    # -- the way to the store: see StoreRoute --------------------------------------------------------------

    @property
    def offers(self) -> frozenset[str]:
        """What accidents may need."""
        native = frozenset() if self._settings.chunk_store == "fuse" else frozenset((NATIVE_CHUNKS,))
        workers = frozenset((WORKERS,)) if self._settings.workers > 1 else frozenset()
        return self._route.offers | native | workers

    @property
    def proxy(self) -> FaultProxy:
        """What stands between mirror and store, where `offers` says so."""
        return self._route.proxy

    @property
    def refusing(self) -> RefusingStore:
        """What can have single deletions refused, where `offers` says that there is a proxy."""
        return self._route.refusing

    def quieten_store(self) -> None:
        """End what befalls requests."""
        self._route.quieten()

    def let_late_requests_end(self) -> None:
        """Wait until the store has done what a mirror that has ended was asking for."""
        self._route.let_late_requests_end()

    def plant(self, objects: Mapping[str, bytes]) -> None:
        """Put objects below the mirror's prefix as somebody else (keys below it); the audits overlook just these."""
        self._route.plant(objects)

    def unplant(self, key: str, before: bytes | None) -> None:
        """Take a planted object away: what was there before stands there again."""
        self._route.put_back(key, before)

    @property
    def route(self) -> StoreRoute:
        """The way to the store, for whoever uses the bucket as somebody else."""
        return self._route

    def forget_takings(self) -> None:
        """From now on the mirror answers again for what is not there: all is back that others have taken away."""
        # One that has found something gone asks for the reason only later.
        self._watch.let_looks_end()
        self._route.forget_takings()

    def other_mirror(self, base: Path) -> Mirror:
        """Another machine's mirror to the same place in the bucket: with a datastore and a state of its own."""
        return replace(self.mirror, datastore=base / "datastore", state=base / "state")

    def audit_beside(self, strangers: Collection[str]) -> None:
        """Hold the mirror to its word, but for what others have put below these paths: nobody has approved yet that it
        goes."""
        violations = audit_until_converged(
            self.auditor,
            self.backing,
            timeout_seconds=self._settings.convergence_seconds,
            grace=self._grace(),
            strangers=strangers,
        )
        self.statistics.checks["bucket against the datastore, beside strangers (P2, P5)"] += 1
        self.statistics.violate(violations)

    def read_object(self, key: str) -> bytes | None:
        """What stands below the mirror's prefix, read past everything."""
        found = self._route.bucket().get(key)
        return None if found is None else found[1]

    # -- operations ----------------------------------------------------------------------------------------

    def pbs(
        self,
        method: str,
        *arguments: object,
        seed: int | None = None,
        stop_at: str | None = None,
        on_stop: Callable[[], None] | None = None,
        **keywords: object,
    ) -> Any:  # noqa: ANN401
        """Call a method of a DatastoreWriter on the datastore's path, in a process of its own.

        `on_stop` is called while that process waits before the system call `stop_at`.
        """
        order = Order(
            str(self.datastore), self.seed if seed is None else seed, method, arguments, dict(keywords), stop_at
        )
        return self._workers.do(order, on_stop or (lambda: None))

    def next_generation(self, group: str) -> int:
        """A snapshot time that the group has not had yet."""
        self._generations[group] = self._generations.get(group, -1) + 1
        return self._generations[group]

    def perform(
        self,
        name: str,
        scopes: Sequence[str],
        operation: Callable[[], int | None],
        *,
        patience: float = _OPERATION_SECONDS,
        removes: bool = False,
    ) -> bool:
        """Run one operation of PBS; whether it was answered with success.

        `operation` gives the bytes that it wrote. When it fails, what stands below `scopes` is open: it is looked up
        on the disk by `resolve`; if it `removes`, the halves of snapshots that it leaves are removed by `mount`. It
        may fail when the filesystem process was killed or a disk is sick; else P4 is broken. One that takes longer
        than `patience` (seconds) is ended by killing the mount, and breaks P4.
        """
        hung = threading.Event()
        timer = threading.Timer(patience, self._end_hanging, (hung,))
        timer.daemon = True
        timer.start()
        try:
            size = operation()
        except (BackupRefused, DatastoreBusy):
            self._cut_short(name, scopes)
            return False
        except OSError as error:
            self._cut_short(name, scopes)
            if removes:
                self.model.half_removed |= set(scopes)
            if not hung.is_set() and not self._machine.excuses_failure():
                self.statistics.violate([f"P4 {name} {list(scopes)} failed: {type(error).__name__}: {error}"])
            return False
        finally:
            timer.cancel()
            if hung.is_set():
                self.statistics.violate([f"P4 {name} {list(scopes)} hung for {patience:.0f} s"])
        self.statistics.count_operation(name, size or 0)
        return True

    def _cut_short(self, name: str, scopes: Sequence[str]) -> None:
        self.statistics.refused[name] += 1
        self.model.open_scopes |= set(scopes)
        for scope in scopes:
            self.model.departures.open(scope)

    def _end_hanging(self, hung: threading.Event) -> None:
        hung.set()
        self.kill_mount()

    # -- chunks and snapshots that come from elsewhere -----------------------------------------------------

    def keep_good_chunk(self, digest: str, raw: bytes) -> None:
        """Remember a chunk's file before it rots: its client still has the data."""
        self._good_chunks.setdefault(digest, raw)

    def good_chunk(self, digest: str) -> bytes:
        """What `keep_good_chunk` remembered."""
        return self._good_chunks[digest]

    def drop_cached_pages(self, path: str) -> None:
        """Have the next read of a file of the datastore come from the disk. Raises OSError."""
        for root in (self.backing, self.datastore) if self.mirror.is_alive() else (self.backing,):
            descriptor = os.open(root / path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)

    def pulled(self, path: str) -> None:
        """A sync job has made a snapshot what it is at the source."""
        before = self.model.snapshots.get(path)
        self.model.found(self.sync_source, scan_datastore(self.sync_source).finished[path])
        self.model.synced()
        if before is not None:
            self.model.changed(
                path, is_protected=before.is_protected, has_log=before.has_log or self.model.snapshots[path].has_log
            )

    # -- checks --------------------------------------------------------------------------------------------

    def look(self) -> FoundDatastore:
        """The datastore as it stands on the disk behind the mirror."""
        return scan_datastore(self.backing, self._inspector)

    def resolve(self) -> None:
        """Compare the disk with what PBS believes to hold: nothing that was answered may be lost (P3, P4)."""
        self.statistics.checks["datastore against the model (P3, P4)"] += 1
        self.statistics.violate(f"P3 {sentence}" for sentence in self.model.resolve(self.look()))

    def settle(self) -> None:
        """End every fault, wait until the mirror says that it is done, and hold it to its word."""
        self._settle(self._grace())

    def _settle(self, grace: Grace, patience: float = 0.0) -> None:
        self._calm()
        self.mount()
        self.resolve()
        self._remove_what_lost_its_manifest()
        began = time.monotonic()
        answer = self._completion.reach()
        if answer is not None:
            patience = max(5.0, patience, self._settings.convergence_seconds - (time.monotonic() - began))
        elif grace.delete_after:
            patience = max(patience, _ENDING_SECONDS)
        violations = audit_until_converged(self.auditor, self.backing, timeout_seconds=patience, grace=grace)
        self.statistics.violate(crash_loops(self.mirror.log))
        self.statistics.checks["bucket against the datastore (P2, P5)"] += 1
        if violations or (answer is not None and not self.look().damaged and not self.model.rotten - self.model.healed):
            self.statistics.violate([*violations, *([] if answer is None else [f"P2 wait says: {answer}"])])

    def _grace(self, *, is_over: bool = False) -> Grace:
        return Grace(self.retention.delete_after, self.model.departures, is_over, self.clock.jumps > 0)

    def _calm(self) -> None:
        """End all faults."""
        self.quieten_store()
        if not self.store.is_running():
            self.store.restart()
        self._machine.calm()

    def _remove_halves(self) -> None:
        """What lacks a file is no backup any more: whoever saw the removal fail repeats it."""
        paths = [path for scope in self.model.half_removed for path in self.model.below(scope)]
        halves = [path for path in paths if lacks_files(self.backing, path)]

        def work() -> None:
            for path in halves:
                shutil.rmtree(self.datastore / path)
                self.model.removed_below(path)

        if not halves or self.perform("removal repeated", halves, work, removes=True):
            self.model.half_removed.clear()

    def _remove_what_lost_its_manifest(self) -> None:
        """A protected snapshot without its manifest stays in the bucket until its directory is gone too, which is for
        an administrator to see to."""
        for group in self.look().groups:
            for marker in (self.backing / group.path).glob("*/.protected"):
                if not (marker.parent / MANIFEST_NAME).exists():
                    shutil.rmtree(self.datastore / marker.parent.relative_to(self.backing))

    def note_moment(self) -> None:
        """Settle, and remember what there is, to bring it back at the end from the versions that the bucket keeps.

        Not where they are locked: SeaweedFS gives a version the time at which its lock was last extended, and whoever
        begins a new state locks all of them again.
        """
        self.settle()
        if not self.violations() and self.model.snapshots and self.retention.lock_for is None:
            self._restores.note_moment()

    def finish(self, choice: random.Random, *, restore: bool) -> None:
        """The end of a round: settle, restore if asked to, unmount in good order, and close the audits."""
        self.settle()
        if self.retention.delete_after and self.retention.ends_soon:
            # What is still kept may go at any moment: it cannot be brought back for sure.
            self._settle(self._grace(is_over=True), patience=self._settings.convergence_seconds)
        elif self.retention.delete_after:
            self._restores.bring_back_a_deleted_snapshot(choice)
        if restore:
            self._restores.compare_all()
        self._restores.compare_the_moment()
        sentence = self.mirror.umount()
        if sentence is not None:
            self.statistics.violate([f"P4 the mount does not end in order: {sentence}"])
        self._watch.finish(self.statistics)

    def violations(self) -> list[str]:
        """What is known to be broken in this world until now."""
        return [*self.statistics.violations[self._violations_before :], *self._watch.violations()]

    def log(self) -> str:
        """What mount and uploader have logged."""
        return self.mirror.log or "there is no log"
