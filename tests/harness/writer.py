"""DatastoreWriter: a stand-in for Proxmox Backup Server that makes and changes a datastore under a path with the
server's own system calls, in the server's own order. Everything follows from the seed."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Literal, TypeVar

from tests.harness import maintenance
from tests.harness.backup import AbortStage, BackupOrder, WrittenSnapshot, run_backup
from tests.harness.bit_rot import rot_chunk, rot_index
from tests.harness.content import SMALL_PLAN, BackupContent, BackupPlan, EncodedChunk, Encoder, encryption_key
from tests.harness.garbage_collection import (
    DAY_SECONDS,
    SAFETY_SECONDS,
    GarbageCollection,
    collect_garbage,
)
from tests.harness.maintenance import UnlinkOrder, VerifyOutcome
from tests.harness.names import GroupName, SnapshotName, chunk_path, parse_snapshot_path
from tests.harness.store import InsertOutcome, Store, SyncLevel, create_datastore, open_store
from tests.harness.system_calls import Identity, StepCallback, SystemCalls

# Generation g of a group is the snapshot of this time (2026-01-01 UTC) plus g hours.
FIRST_SNAPSHOT_TIME = 1767225600
_GENERATION_SECONDS = 3600

Result = TypeVar("Result")


class DatastoreWriter:
    """Acts on the datastore at path, which is usually a mount, sometimes a plain directory.

    Several writers may work on one datastore at once, in threads or in processes; one writer may be used by several
    threads, on different groups. on_step is called with the name of each system call (PURPOSE.CALL, such as
    chunk.rename) before it is made, from whichever thread makes it; what it raises ends the operation as a kill
    of the server would: descriptors are closed, nothing is tidied up.

    Where the datastore belongs to user backup and that user can reach it, files are made as that user (by the
    thread's own fsuid). Close the writer, or use it in a with statement: it keeps .lock open.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        seed: int = 0,
        *,
        on_step: StepCallback | None = None,
        threads: int = 1,
        sync_level: SyncLevel = "filesystem",
        default_plan: BackupPlan = SMALL_PLAN,
        owner: str = "root@pam",
    ) -> None:
        self.path = os.path.abspath(path)
        self.seed = seed
        self.calls = SystemCalls(on_step)
        self._threads, self._sync_level = threads, sync_level
        self._plan, self._owner = default_plan, owner
        self._opened: Store | None = None
        self._generations: dict[GroupName, int] = {}
        self._mutex = threading.Lock()

    def __enter__(self) -> DatastoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close .lock, as the end of the server process does; the next operation opens it again."""
        with self._mutex:
            if self._opened is not None:
                self._opened.lock.detach()
                self._opened = None

    # -- the datastore -----------------------------------------------------------------------------------

    def create(self, chunk_directories: Literal["all", "when needed"] = "all") -> None:
        """Make the datastore; "when needed" leaves the 65,536 chunk directories out, which is quick."""
        create_datastore(self.path, self.calls, chunk_directories=chunk_directories)

    def check_access_times(self) -> bool:
        """The atime check of newer servers: takes a second; False means that they would refuse the datastore."""
        return self._as_server(Store.check_access_times)

    def collect_garbage(
        self, *, age_seconds: float = DAY_SECONDS, safety_seconds: float = SAFETY_SECONDS
    ) -> GarbageCollection:
        """Mark and sweep; with both limits at 0 every chunk goes that no index names. Raises DatastoreBusy."""
        return self._as_server(
            lambda store: collect_garbage(store, age_seconds=age_seconds, safety_seconds=safety_seconds)
        )

    # -- backups -----------------------------------------------------------------------------------------

    def backup(
        self,
        group: str,
        *,
        namespace: str = "",
        plan: BackupPlan | None = None,
        generation: int | None = None,
        encrypted: bool = False,
        compress: bool = True,
        data: str | None = None,
        owner: str | None = None,
        threads: int | None = None,
    ) -> WrittenSnapshot:
        """Back up the group's next generation (or the one given): a first backup when the group has no finished
        snapshot, else an incremental one.

        group is TYPE/ID; generation tells the snapshot's time and which chunks have changed; data names the
        data (default: the group), so that two groups given the same name hold the same chunks. Raises
        BackupRefused, DatastoreBusy, OSError.
        """
        order = self._order(
            GroupName.parse(group, namespace), plan, generation, encrypted, compress, data, owner, threads, None
        )
        written = self._as_server(lambda store: run_backup(store, order))
        if written is None:
            raise AssertionError("a backup that nobody aborted left nothing behind")
        return written

    def abort_backup(
        self,
        group: str,
        *,
        stage: AbortStage = "indexing",
        namespace: str = "",
        plan: BackupPlan | None = None,
        generation: int | None = None,
        encrypted: bool = False,
        data: str | None = None,
    ) -> SnapshotName:
        """A backup whose client goes away: with an index open and mapped, or between the two manifests. The
        snapshot's directory goes again at once; its chunks stay until garbage collection."""
        order = self._order(
            GroupName.parse(group, namespace), plan, generation, encrypted, True, data, None, None, stage
        )
        self._as_server(lambda store: run_backup(store, order))
        return order.snapshot

    def _order(
        self,
        group: GroupName,
        plan: BackupPlan | None,
        generation: int | None,
        encrypted: bool,
        compress: bool,
        data: str | None,
        owner: str | None,
        threads: int | None,
        abort: AbortStage | None,
    ) -> BackupOrder:
        chosen = self._next_generation(group) if generation is None else generation
        content = BackupContent(self.seed, data or group.path, chosen, plan or self._plan)
        return BackupOrder(
            snapshot=SnapshotName(group, FIRST_SNAPSHOT_TIME + chosen * _GENERATION_SECONDS),
            content=content,
            encoder=Encoder(encryption_key(self.seed) if encrypted else None, compress),
            owner=owner or self._owner,
            threads=threads or self._threads,
            abort=abort,
        )

    def _next_generation(self, group: GroupName) -> int:
        """Behind all that this writer has made in the group and all that is there: a time is never used twice."""
        with self._mutex:
            known = self._generations.get(group, -1)
        try:
            there = self._as_server(lambda store: maintenance.list_snapshots(store, group))
        except FileNotFoundError:
            there = []
        on_disk = max(((name.time - FIRST_SNAPSHOT_TIME) // _GENERATION_SECONDS for name in there), default=-1)
        with self._mutex:
            chosen = max(known, on_disk, self._generations.get(group, -1)) + 1
            self._generations[group] = chosen
        return chosen

    # -- changes to snapshots ----------------------------------------------------------------------------

    def set_notes(self, snapshot: SnapshotName | str, text: str) -> bytes:
        """A snapshot's notes, by a replaced manifest. Gives the manifest's new content."""
        name = _snapshot_name(snapshot)
        return self._as_server(lambda store: maintenance.change_unprotected(store, name, "notes", text or None))

    def set_verify_state(self, snapshot: SnapshotName | str, state: Literal["ok", "failed"]) -> bytes:
        """The result of a verification, by a replaced manifest. Gives the manifest's new content."""
        name = _snapshot_name(snapshot)
        value = {"state": state, "upid": f"UPID:harness:00000433:00000D29:00000001:{name.time:08X}:verify::root@pam:"}
        return self._as_server(lambda store: maintenance.change_unprotected(store, name, "verify_state", value))

    def set_protected(self, snapshot: SnapshotName | str, *, protected: bool = True) -> None:
        name = _snapshot_name(snapshot)
        self._as_server(lambda store: maintenance.set_protected(store, name, protected=protected))

    def upload_log(self, snapshot: SnapshotName | str, text: bytes = b"backup finished\n") -> None:
        """client.log.blob, which no manifest lists."""
        name = _snapshot_name(snapshot)
        self._as_server(lambda store: maintenance.upload_log(store, name, text))

    def verify(self, snapshot: SnapshotName | str) -> VerifyOutcome:
        """Read every chunk of a snapshot; corrupt ones become .bad, the manifest gets the result."""
        name = _snapshot_name(snapshot)
        return self._as_server(lambda store: maintenance.verify_snapshot(store, name))

    def forget(self, snapshot: SnapshotName | str, order: UnlinkOrder = "as listed") -> None:
        """Raises BackupRefused when it is protected or in use."""
        name = _snapshot_name(snapshot)
        self._as_server(lambda store: maintenance.forget_snapshot(store, name, order, self.seed))

    def pull(self, source: str | os.PathLike[str], snapshot: SnapshotName | str) -> None:
        """A sync job's pull of one snapshot from another datastore's directory. A snapshot that is there already is
        brought up to date: files that differ are replaced, then the manifest, then what it does not list goes."""
        name = _snapshot_name(snapshot)
        self._as_server(lambda store: maintenance.pull_snapshot(store, os.fspath(source), name))

    def insert_chunk(self, digest: str, raw: bytes) -> str:
        """Insert one chunk's file, as a backup does whose client has the data; "inserted" or "touched"."""
        return self._as_server(lambda store: store.insert_chunk(EncodedChunk(digest, raw)))

    def reinsert_chunk(self, digest: str, *, compress: bool) -> InsertOutcome:
        """Insert the content of a chunk that is there once more, compressed or not: the same name, other bytes unless
        it is so already. Raises FileNotFoundError, and ValueError for an encrypted chunk (nobody here has its key)."""
        return self._as_server(lambda store: maintenance.reinsert_chunk(store, digest, compress=compress))

    # -- damage ------------------------------------------------------------------------------------------

    def corrupt_chunk(self, digest: str, *, backing: str | os.PathLike[str] | None = None) -> None:
        """Bit rot: flip a bit of a chunk file, where it follows from the seed, so that a verification finds it.

        backing is the directory behind a mount; without it the file is changed through the writer's own path, which a
        mount sees as a write. Raises FileNotFoundError.
        """
        rot_chunk(f"{os.fspath(backing or self.path)}/{chunk_path(digest)}", self.seed)

    def corrupt_file(
        self, snapshot: SnapshotName | str, filename: str, *, backing: str | os.PathLike[str] | None = None
    ) -> None:
        """Bit rot in an index or blob of a snapshot (the manifest is one), as corrupt_chunk does it."""
        path = f"{os.fspath(backing or self.path)}/{_snapshot_name(snapshot).path}/{filename}"
        rot = rot_chunk if filename.endswith(".blob") else rot_index
        rot(path, self.seed)

    # -- groups and namespaces ---------------------------------------------------------------------------

    def prune(self, group: str, keep_last: int, *, namespace: str = "") -> tuple[SnapshotName, ...]:
        """Forget all but the newest keep_last snapshots and protected ones. Gives the forgotten."""
        name = GroupName.parse(group, namespace)
        return self._as_server(lambda store: maintenance.prune_group(store, name, keep_last))

    def snapshots(self, group: str, *, namespace: str = "") -> list[SnapshotName]:
        """All snapshot directories of a group, oldest first."""
        name = GroupName.parse(group, namespace)
        return self._as_server(lambda store: maintenance.list_snapshots(store, name))

    def set_group_notes(self, group: str, text: str, *, namespace: str = "") -> None:
        name = GroupName.parse(group, namespace)
        self._as_server(lambda store: maintenance.set_group_notes(store, name, text))

    def change_owner(self, group: str, owner: str, *, namespace: str = "") -> None:
        name = GroupName.parse(group, namespace)
        self._as_server(lambda store: maintenance.change_owner(store, name, owner))

    def forget_group(self, group: str, *, namespace: str = "", order: UnlinkOrder = "as listed") -> None:
        """Raises BackupRefused when a snapshot is protected or in use."""
        name = GroupName.parse(group, namespace)
        self._as_server(lambda store: maintenance.forget_group(store, name, order, self.seed))

    def move_group(self, group: str, target: str, *, namespace: str = "", target_namespace: str = "") -> None:
        """Rename a group's tree to another name or namespace (PBS 4.2). Raises BackupRefused when the target exists or
        its namespace does not, or somebody works in the group."""
        source, destination = GroupName.parse(group, namespace), GroupName.parse(target, target_namespace)
        self._as_server(lambda store: maintenance.move_group(store, source, destination))

    def move_snapshot(self, snapshot: SnapshotName | str, target: str, *, namespace: str = "") -> SnapshotName:
        """Rename one snapshot's directory into another group, as an administrator may. Gives its new name. Raises
        BackupRefused when that group is not there or has such a snapshot, or somebody works on it."""
        name, group = _snapshot_name(snapshot), GroupName.parse(target, namespace)
        return self._as_server(lambda store: maintenance.move_snapshot(store, name, group))

    def create_namespace(self, namespace: str) -> None:
        """namespace is written a/b."""
        self._as_server(lambda store: maintenance.create_namespace(store, namespace))

    def remove_namespace(self, namespace: str, *, delete_groups: bool = False) -> None:
        """From the innermost upward; what holds groups stays unless they are to be deleted."""
        self._as_server(lambda store: maintenance.remove_namespace(store, namespace, delete_groups=delete_groups))

    def move_namespace(self, namespace: str, target: str) -> None:
        """Rename a namespace's tree (PBS 4.2). Raises BackupRefused when the target exists or its parent does not."""
        self._as_server(lambda store: maintenance.move_namespace(store, namespace, target))

    # -- acting as the server ----------------------------------------------------------------------------

    def _as_server(self, operation: Callable[[Store], Result]) -> Result:
        store = self._store()
        with store.identity.acting():
            return operation(store)

    def _store(self) -> Store:
        with self._mutex:
            if self._opened is None:
                identity = Identity.for_datastore(self.path)
                with identity.acting():
                    self._opened = open_store(
                        self.path,
                        self.calls,
                        identity,
                        sync_level=self._sync_level,
                        # Some may have come with their chunks; not just these four.
                        makes_chunk_directories=not all(
                            os.path.isdir(f"{self.path}/.chunks/{name}") for name in ("0000", "5555", "aaaa", "ffff")
                        ),
                    )
            return self._opened


def _snapshot_name(snapshot: SnapshotName | str) -> SnapshotName:
    return parse_snapshot_path(snapshot) if isinstance(snapshot, str) else snapshot
