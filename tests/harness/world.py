"""One datastore, its disks, its mirror, its store and what watches over them: everything that a run can break, and the
means to break it and to make it whole again."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.administrator import Administrator
from tests.harness.auditor import Auditor, ContinuousAudit, audit_continuously, audit_until_converged
from tests.harness.backup import BackupRefused
from tests.harness.bucket import Bucket
from tests.harness.deleted import Grace
from tests.harness.fault_disk import FaultDisk
from tests.harness.formats import MANIFEST_NAME
from tests.harness.mirror import Mirror
from tests.harness.model import Model
from tests.harness.moment import Moment
from tests.harness.process_lock import DatastoreBusy
from tests.harness.refusing_store import RefusingStore
from tests.harness.retention import RetentionSettings
from tests.harness.scan import ChunkInspector, FoundDatastore, compare_datastores, scan_datastore
from tests.harness.statistics import Statistics
from tests.harness.steps import StepFile
from tests.harness.wall_clock import WallClock
from tests.harness.worker import Order, Workers
from tests.stores.fault_proxy import FaultProxy
from tests.stores.server import AnyStore

_DATA_DISK_BYTES = 256 * 1024**2
_STATE_DISK_BYTES = 96 * 1024**2
_LISTINGS_LAG_SECONDS = 3.0
_OPERATION_SECONDS = 90.0
_CONVERGENCE_SECONDS = 150.0
_AUDIT_PAUSE_SECONDS = 0.3
_REMOVALS_OPTION = "--allow-removals"
# What a store refused to delete is asked for again after an hour, if it does not say when it may be.
_UNTIL_ASKED_AGAIN = 3700.0
# While the mirror's word is that all is done, what is kept for a while may just be ending.
_ENDING_SECONDS = 75.0
_WAVES_OF_REMOVALS = 5
_TIMES_TO_ASK_AGAIN = 12
_UNTIL_REQUEST_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Where a world stands. `base` is a private directory; `bucket` exists; `name` is a prefix that nobody uses.

    `convergence_seconds` is how long after the end of all faults the bucket may take to equal the datastore.
    `keeps_versions` says that the bucket does.
    """

    base: Path
    store: AnyStore
    bucket: str
    name: str
    extra_environment: dict[str, str]
    convergence_seconds: float = _CONVERGENCE_SECONDS
    retention: RetentionSettings = field(default_factory=RetentionSettings)
    keeps_versions: bool = False


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
        self._trouble: set[str] = set()
        self._generations: dict[str, int] = {}
        self._stop_audits = threading.Event()
        self._audits: list[ContinuousAudit] = []
        self._killed_mount = False
        self._injected_before: dict[str, int] = {}
        self._workers = Workers()
        self._proxy: FaultProxy | None = None
        self._refusing: RefusingStore | None = None
        self._moment: Moment | None = None
        self._fired_before = 0
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
        base = self._base
        self.clock = WallClock(base)
        self.steps = StepFile(base / "step")
        self.data_disk = self._disk("data", _DATA_DISK_BYTES)
        self.state_disk = self._disk("state", _STATE_DISK_BYTES)
        self.datastore = base / "datastore"
        self.datastore.mkdir()
        self._stack.callback(_unmount, self.datastore)
        self.backing.mkdir()
        self._bind()
        endpoint_url = self.store.access.endpoint_url
        if self.store.is_reached_by_http:
            self._refusing = self._stack.enter_context(RefusingStore(self.store.access))
            self._proxy = self._stack.enter_context(FaultProxy(self._refusing.endpoint_url))
            endpoint_url = self._proxy.endpoint_url
        self.mirror = Mirror(
            self.datastore,
            self.state_disk.mountpoint / "state",
            f"s3://{self._settings.bucket}/{self._settings.name}",
            endpoint_url,
            {
                **self.store.environment(),
                **self.clock.environment(),
                **self._settings.extra_environment,
                **self.steps.environment,
            },
            self.retention.mount_options,
        )
        self.administrator = Administrator(self.mirror, self.model, self._bucket(), self.statistics)
        self._stack.callback(self.mirror.tear_down)
        self._stack.callback(self._workers.end)
        self.pbs("create", chunk_directories="when needed")
        self.model.synced()
        _run("sync", "--file-system", str(self.backing))
        self._inspector = ChunkInspector(self.backing)
        self._begin_audits()
        self.mount()

    def _disk(self, name: str, size: int) -> FaultDisk:
        disk = FaultDisk(self._base / f"{name}-disk", size=size)
        self._stack.callback(disk.stop)
        disk.start()
        return disk

    def _bind(self) -> None:
        """The datastore's path is a mount of its own, so that what is behind the mirror stays to be seen."""
        _run("mount", "--bind", str(self.backing), str(self.datastore))
        _run("mount", "--make-private", str(self.datastore))

    def _begin_audits(self) -> None:
        self.auditor = Auditor(self._bucket(), deep=True, threads=2)
        self._audits.append(audit_continuously(self.auditor, self._stop_audits, pause_seconds=_AUDIT_PAUSE_SECONDS))
        if self._proxy is None:
            return
        lagging = self._proxy.lagging_endpoint(_LISTINGS_LAG_SECONDS, self.seed)
        behind = Auditor(self._bucket(lagging), listings_lag=True, threads=2)
        self._audits.append(audit_continuously(behind, self._stop_audits, pause_seconds=1.0))
        self._stack.callback(self._stop_audits.set)

    def _bucket(self, endpoint_url: str | None = None) -> Bucket:
        return Bucket(self.store.access.client(endpoint_url=endpoint_url), self._settings.bucket, self._settings.name)

    @property
    def offers(self) -> frozenset[str]:
        """What accidents may need: "store process" if the store may be killed, "proxy" if requests may be harmed."""
        offered = {"store process": self.store.may_be_killed, "proxy": self._proxy is not None}
        return frozenset(name for name, there in offered.items() if there)

    @property
    def proxy(self) -> FaultProxy:
        """What stands between mirror and store, where `offers` says so."""
        if self._proxy is None:
            raise RuntimeError("there is no proxy before this store")
        return self._proxy

    @property
    def refusing(self) -> RefusingStore:
        """What can have single deletions refused, where `offers` says that there is a proxy."""
        if self._refusing is None:
            raise RuntimeError("there is nothing before this store")
        return self._refusing

    @property
    def backing(self) -> Path:
        """The backing directory itself."""
        return self.data_disk.mountpoint / "datastore"

    @property
    def older_state(self) -> Path:
        """Where a copy of the state directory is kept, to be put back later."""
        return self._base / "older-state"

    @property
    def sync_source(self) -> Path:
        """Another datastore, on a plain disk, from which sync jobs pull."""
        return self._base / "source"

    # -- the mirror ----------------------------------------------------------------------------------------

    def mount(self) -> None:
        """Mount, unless it is. A mount that cannot be made breaks P2, unless a fault excuses it."""
        if self.mirror.is_alive():
            return
        self._killed_mount = False
        sentence = self._mount_as_meant()
        if sentence is None:
            return
        if self._trouble or self._has_a_step_fired():
            # The state disk may be full, or a step have killed the process; both are over now.
            self.disarm_step()
            self.state_disk.free()
            self.data_disk.free()
            self._trouble.clear()
            sentence = self._mount_as_meant()
        if sentence is not None:
            self.statistics.violate([f"P2 the mount fails: {sentence}"])
            raise WorldEnded(sentence)

    def _mount_as_meant(self) -> str | None:
        """Mount; when most snapshots are gone and no journal tells why, the mount asks, and it was meant."""
        sentence = self.mirror.mount()
        if sentence is None or _REMOVALS_OPTION not in sentence:
            return sentence
        self.statistics.checks["mounts that asked whether removals were meant"] += 1
        return self.mirror.mount(_REMOVALS_OPTION)

    def kill_mount(self) -> None:
        """Kill the filesystem process; what is under way through it fails, and may."""
        self._killed_mount = True
        self.mirror.kill_mount()

    def is_step_in_mount_fired(self) -> bool:
        """Whether an armed step, or we, have killed the filesystem process."""
        return self._killed_mount or not self.mirror.is_alive()

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
    ) -> bool:
        """Run one operation of PBS; whether it was answered with success.

        `operation` gives the bytes that it wrote. When it fails, what stands below `scopes` is open: it is looked up
        on the disk by `resolve`. It may fail when the filesystem process was killed or a disk is sick; else P4 is
        broken. One that takes longer than `patience` (seconds) is ended by killing the mount, and breaks P4.
        """
        hung = threading.Event()
        timer = threading.Timer(patience, self._end_hanging, (hung,))
        timer.daemon = True
        timer.start()
        try:
            size = operation()
        except (BackupRefused, DatastoreBusy) as error:
            self._cut_short(name, scopes)
            del error
            return False
        except OSError as error:
            self._cut_short(name, scopes)
            if not hung.is_set() and not self._trouble and not self.is_step_in_mount_fired():
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

    @contextmanager
    def trouble(self, reason: str) -> Iterator[None]:
        """While this lasts, operations may fail: the disk itself does."""
        self._trouble.add(reason)
        try:
            yield
        finally:
            self._trouble.discard(reason)

    @contextmanager
    def without_mirror(self) -> Iterator[None]:
        """PBS goes on while nothing is mounted; mounts again at the end."""
        if self.mirror.is_alive():
            self.mirror.umount()
        self.mirror.detach_dead()
        yield
        self.mount()

    def let_late_requests_end(self) -> None:
        """Wait until the store has done what a mirror that has ended was asking for.

        The intention of such a request stands in its state. Who loses that at this very moment may get an object that
        nobody knows of (docs/semantics.md, P2).
        """
        if self._proxy is not None and not self._proxy.wait_until_idle():
            raise RuntimeError("requests of a mirror that has ended are still under way after a minute")

    @contextmanager
    def uploader_stopped(self) -> Iterator[None]:
        """The uploader gets no processor time while this lasts."""
        pid = self.mirror.uploader_pid()
        if pid is None:
            yield
            return
        try:
            # It may just have been killed, by a step for one.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    # -- steps ---------------------------------------------------------------------------------------------

    def disarm_step(self) -> None:
        """Arm nothing any more, and count the steps that have killed."""
        self.steps.disarm()
        for step, _ in self.steps.fired[self._fired_before :]:
            self.statistics.count_fault(f"killed at step {step}")
            self._fired_before += 1

    def _has_a_step_fired(self) -> bool:
        return len(self.steps.fired) > self._fired_before

    # -- power ---------------------------------------------------------------------------------------------

    def lose_power(self) -> None:
        """The moment of a power cut: from here on nothing reaches the disks."""
        self._trouble.add("power")
        self._killed_mount = True
        self.data_disk.lose_power()
        self.state_disk.lose_power()

    @property
    def has_power(self) -> bool:
        """Whether the disks take writes."""
        return "power" not in self._trouble

    def restore_power(self, choice: random.Random) -> None:
        """Everything ends, what was not on the disks is gone in part or as a whole, and the machine boots."""
        self.mirror.kill_all()
        _unmount(self.datastore)
        for disk in (self.data_disk, self.state_disk):
            cut = disk.restore_power(choice)
            self.statistics.count_fault("power cut: writes lost", cut.lost_writes)
        self._bind()
        self._pretend_another_boot()
        self.administrator.forget()
        self.model.lost_power()
        self._trouble.discard("power")
        self.statistics.count_fault("power cut")
        self.resolve()
        self.mount()

    def _pretend_another_boot(self) -> None:
        note = self.mirror.state / "journal" / "session.json"
        try:
            session = json.loads(note.read_text())
        except (FileNotFoundError, ValueError):
            return
        note.write_text(json.dumps({**session, "boot_id": "00000000-0000-4000-8000-000000000000"}))

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
        self.calm()
        self.mount()
        self.resolve()
        self._remove_what_lost_its_manifest()
        began = time.monotonic()
        answer = self._have_all_carried_over()
        if answer is not None:
            patience = max(5.0, patience, self._settings.convergence_seconds - (time.monotonic() - began))
        elif grace.delete_after:
            patience = max(patience, _ENDING_SECONDS)
        violations = audit_until_converged(self.auditor, self.backing, timeout_seconds=patience, grace=grace)
        self.statistics.checks["bucket against the datastore (P2, P5)"] += 1
        if violations or (answer is not None and not self.look().damaged and not self.model.rotten - self.model.healed):
            self.statistics.violate([*violations, *([] if answer is None else [f"P2 wait says: {answer}"])])

    def _grace(self, *, is_over: bool = False) -> Grace:
        return Grace(self.retention.delete_after, self.model.departures, is_over, self.clock.jumps > 0)

    def _have_all_carried_over(self) -> str | None:
        """Wait, and do what an administrator has to do meanwhile; None, or what the mirror says of why it is not done.

        More than one wave of removals may be held, since what is approved makes others go that were not held yet.
        """
        answer = self._wait()
        for _ in range(_WAVES_OF_REMOVALS):
            self.statistics.violate(self.administrator.look())
            if not self.administrator.held:
                break
            self.administrator.approve()
            answer = self._wait()
        if self.administrator.refused():
            self.ask_again_what_was_refused()
            answer = self._wait()
        return answer

    def _wait(self) -> str | None:
        answer = self.mirror.wait(self._settings.convergence_seconds)
        if not self.mirror.is_alive() or (answer is not None and self._has_a_step_fired()):
            self.mount()
            answer = self.mirror.wait(self._settings.convergence_seconds)
        if answer is not None and _REMOVALS_OPTION in answer:
            # The doubt came when the bucket had been read: the mount stands, and waits for an administrator.
            self.mirror.umount()
            self.mount()
            answer = self.mirror.wait(self._settings.convergence_seconds)
        return answer

    def ask_again_what_was_refused(self) -> None:
        """Nothing is refused any more, but the mirror asks only when its clock says that it is time.

        While its clock is an hour ahead no store takes its requests, so the clock is right again as soon as one was
        made; each time at least one thing that was refused is asked for again.
        """
        refused = self.administrator.refused()
        for _ in range(_TIMES_TO_ASK_AGAIN):
            self.clock.jump_to(_UNTIL_ASKED_AGAIN)
            reconciling = threading.Thread(target=self.mirror.reconcile)
            reconciling.start()
            self._wait_for_a_request(reconciling)
            self.clock.set_right()
            reconciling.join()
            self.mirror.wait(self._settings.convergence_seconds)
            refused = self.administrator.refused()
            if not refused:
                break
        self.statistics.checks["refused deletions asked for again"] += 1
        self.statistics.violate(
            f"P2 {refusal['name']}: not deleted an hour after it was refused: {refusal['reason']}"
            for refusal in refused
        )

    def _wait_for_a_request(self, reconciling: threading.Thread) -> None:
        """Until the store has refused one because of the clock, or it is plain that none is made."""
        deadline = time.monotonic() + _UNTIL_REQUEST_SECONDS
        while reconciling.is_alive() and time.monotonic() < deadline and self._is_store_up():
            time.sleep(0.1)

    def _is_store_up(self) -> bool:
        store: dict[str, Any] = self.mirror.status().get("store", {"up": True})
        return bool(store["up"])

    def _remove_what_lost_its_manifest(self) -> None:
        """A protected snapshot without its manifest stays in the bucket until its directory is gone too, which is for
        an administrator to see to."""
        for group in self.look().groups:
            for marker in (self.backing / group.path).glob("*/.protected"):
                if not (marker.parent / MANIFEST_NAME).exists():
                    shutil.rmtree(self.datastore / marker.parent.relative_to(self.backing))

    def calm(self) -> None:
        """End all faults."""
        self.quieten_store()
        self.disarm_step()
        self.clock.set_right()
        for disk in (self.data_disk, self.state_disk):
            disk.free()
            disk.heal_reads()
            disk.speed_up()
        if not self.store.is_running():
            self.store.restart()
        self._trouble.clear()

    def quieten_store(self) -> None:
        """End what befalls requests."""
        if self._proxy is not None:
            self._proxy.clear()
            self._count_injected(self._proxy)

    def _count_injected(self, proxy: FaultProxy) -> None:
        for name, count in proxy.injected.items():
            self.statistics.count_fault(f"store: {name}", count - self._injected_before.get(name, 0))
            self._injected_before[name] = count

    def restore_and_compare(self) -> None:
        """Rebuild the datastore from the bucket alone, and compare it byte for byte; if there is anything in it."""
        found = self.look()
        if not found.finished and not found.namespaces:
            return
        with self._restored("restore from the bucket alone") as target:
            if target is not None and not self.look().damaged:
                differences = compare_datastores(self.backing, target).differences
                self.statistics.violate(f"P1 restored: {different}" for different in differences)

    def restore_a_deleted_snapshot(self, choice: random.Random) -> None:
        """Bring one back that is kept, and look whether it is whole; `snapshots --deleted` must list just those."""
        if self.retention.ends_soon:
            # What is listed now may go at any moment.
            return
        standing = self.auditor.deleted_snapshots()
        listed = self.mirror.deleted_snapshots()
        self.statistics.violate(
            f"P2 {path}: 'snapshots --deleted' {'lists' if path in listed else 'does not list'} it"
            for path in sorted(standing ^ set(listed))
        )
        if not standing:
            return
        path = choice.choice(sorted(standing))
        with self._restored("restore of a deleted snapshot", "--deleted", "--snapshot", path) as target:
            if target is not None and set(scan_datastore(target).finished) != {path}:
                self.statistics.violate([f"P1 {path}: restored from the deleted ones, and not whole"])

    def note_moment(self) -> None:
        """Settle, and remember what there is, to bring it back at the end from the versions that the bucket keeps."""
        self.settle()
        if not self.violations() and self.model.snapshots:
            self._moment = Moment.now(self.look())

    def restore_the_moment(self) -> None:
        """Rebuild what was noted, if anything was."""
        if self._moment is None:
            return
        with self._restored("restore as of a noted moment", "--as-of", str(self._moment)) as target:
            if target is not None:
                differences = self._moment.differences(target)
                self.statistics.violate(f"P1 restored as of {self._moment}: {different}" for different in differences)

    @contextmanager
    def _restored(self, check: str, *options: str) -> Iterator[Path | None]:
        """A restored datastore, or None when that failed, which is a violation."""
        target = self._base / "restored"
        sentence = self.mirror.restore(target, *options)
        if sentence is not None:
            self.statistics.violate([f"P1 {check} {' '.join(options)} fails: {sentence}"])
        self.statistics.checks[check] += 1
        try:
            yield target if sentence is None else None
        finally:
            shutil.rmtree(target, ignore_errors=True)

    def finish(self, choice: random.Random, *, restore: bool) -> None:
        """The end of a round: settle, restore if asked to, unmount in good order, and close the audits."""
        self.settle()
        if self.retention.delete_after:
            self.restore_a_deleted_snapshot(choice)
        if self.retention.ends_soon and self.retention.delete_after:
            self._settle(self._grace(is_over=True), patience=self._settings.convergence_seconds)
        if restore:
            self.restore_and_compare()
        self.restore_the_moment()
        self.mirror.umount()
        for audit in self._audits:
            self.statistics.violate(audit.finish())
            self.statistics.checks["audits of the bucket (P1, P5, P6)"] += audit.samples
            self.statistics.checks["audits while the store was down"] += audit.unreadable

    def violations(self) -> list[str]:
        """What is known to be broken in this world until now."""
        audited = [str(violation) for audit in self._audits for violation in audit.violations]
        return [*self.statistics.violations[self._violations_before :], *audited]

    def log(self) -> str:
        """What mount and uploader have logged."""
        log = self.mirror.state / "mirrorfs.log"
        return log.read_text(errors="replace") if log.exists() else "there is no log"


class WorldEnded(Exception):
    """The world cannot go on; why was counted as a violation."""


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _unmount(path: Path) -> None:
    """Take every mount from a path, whatever state it is in."""
    while os.path.ismount(path) or _is_dead(path):
        done = subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False, timeout=30)
        if done.returncode != 0:
            return


def _is_dead(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
