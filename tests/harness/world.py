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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.harness.auditor import Auditor, ContinuousAudit, audit_continuously, audit_until_converged
from tests.harness.backup import BackupRefused
from tests.harness.bucket import Bucket
from tests.harness.fault_disk import FaultDisk
from tests.harness.mirror import Mirror
from tests.harness.model import Model
from tests.harness.process_lock import DatastoreBusy
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


@dataclass(frozen=True, slots=True)
class WorldSettings:
    """Where a world stands. `base` is a private directory; `bucket` exists; `name` is a prefix that nobody uses.

    `convergence_seconds` is how long after the end of all faults the bucket may take to equal the datastore.
    """

    base: Path
    store: AnyStore
    bucket: str
    name: str
    extra_environment: dict[str, str]
    convergence_seconds: float = _CONVERGENCE_SECONDS


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
            self._proxy = self._stack.enter_context(FaultProxy(endpoint_url))
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
        )
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
                self.statistics.violate([f"P4 {name} {list(scopes)} failed: {error!r}"])
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
        self.calm()
        self.mount()
        self.resolve()
        began = time.monotonic()
        answer = self.mirror.wait(self._settings.convergence_seconds)
        if not self.mirror.is_alive() or (answer is not None and self._has_a_step_fired()):
            self.mount()
            answer = self.mirror.wait(self._settings.convergence_seconds)
        if answer is not None and _REMOVALS_OPTION in answer:
            # The doubt came when the bucket had been read: the mount stands, and waits for an administrator.
            self.mirror.umount()
            self.mount()
            answer = self.mirror.wait(self._settings.convergence_seconds)
        patience = 0.0 if answer is None else max(5.0, self._settings.convergence_seconds - (time.monotonic() - began))
        violations = audit_until_converged(self.auditor, self.backing, timeout_seconds=patience)
        self.statistics.checks["bucket against the datastore (P2, P5)"] += 1
        if violations or (answer is not None and not self.look().damaged and not self.model.rotten - self.model.healed):
            self.statistics.violate([*violations, *([] if answer is None else [f"P2 wait says: {answer}"])])

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
        """Rebuild the datastore from the bucket alone, and compare it byte for byte."""
        target = self._base / "restored"
        sentence = self.mirror.restore(target)
        if sentence is not None:
            self.statistics.violate([f"P1 restoring fails: {sentence}"])
        else:
            comparison = compare_datastores(self.backing, target)
            if not self.look().damaged:
                self.statistics.violate(f"P1 restored: {different}" for different in comparison.differences)
        self.statistics.checks["restore from the bucket alone"] += 1
        shutil.rmtree(target, ignore_errors=True)

    def finish(self, *, restore: bool) -> None:
        """The end of a round: settle, restore if asked to, unmount in good order, and close the audits."""
        self.settle()
        if restore:
            self.restore_and_compare()
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
