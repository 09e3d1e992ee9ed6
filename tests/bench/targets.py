"""What is compared: the backing directory itself, mirrorfs with and without mirroring, and bindfs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mirrorfs.database.directory import StateDirectory
from mirrorfs.replication.priority import DEFAULT_NICE
from mirrorfs.replication.questions import ask
from tests.bench.processes import BenchFailed, FileSystemDaemon, processor_seconds
from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest
from tests.harness.system_calls import SystemCalls
from tests.stores.seaweedfs import StoreServer

_DRAIN_SECONDS = 300.0


class Target:
    """A datastore and a path to it. This one is the backing directory itself; the others are mounted over it."""

    name = "backing"
    title = "backing directory"

    def __init__(self, base: Path) -> None:
        """Makes directories below `base`, which becomes this target's own."""
        self.base = base
        base.mkdir()
        self.backing.mkdir()

    @property
    def backing(self) -> Path:
        """The datastore, past any mount."""
        return self.base / "datastore"

    @property
    def path(self) -> Path:
        """The datastore as the operations see it."""
        return self.backing

    def mount(self) -> None:
        """Bring it up; the datastore may not be changed past the mount from here on."""

    def unmount(self) -> None:
        """Take it down, whatever state it is in."""

    def drain(self) -> float | None:
        """Wait until nothing is left to be mirrored: seconds that this took, None where nothing is mirrored."""
        return None

    def rest(self) -> None:
        """Called when a sample has been taken: what goes on beside it may rest."""

    def daemon_seconds(self) -> float:
        """Processor time of the process that answers the system calls, so far."""
        return 0.0

    def uploader_seconds(self) -> float:
        """Processor time of the uploader, so far."""
        return 0.0


class _Mounted(Target):
    """A target behind a mount point of its own, so that its backing directory can be reached too."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.path.mkdir()

    @property
    def path(self) -> Path:
        """The mount point."""
        return self.base / "mountpoint"


class _ServedByDaemon(_Mounted):
    _daemon: FileSystemDaemon | None = None

    def command(self) -> list[str]:
        """The program that mounts and stays in the foreground."""
        raise NotImplementedError

    def mount(self) -> None:
        """See Target."""
        self._daemon = FileSystemDaemon(self.command(), self.path)

    def unmount(self) -> None:
        """See Target."""
        if self._daemon is not None:
            self._daemon.stop()
            self._daemon = None

    def daemon_seconds(self) -> float:
        """See Target."""
        if self._daemon is None:
            raise BenchFailed(f"{self.name} is not mounted")
        return processor_seconds(self._daemon.pid)


class PassThrough(_ServedByDaemon):
    """mirrorfs' file system alone: no journal, no uploader."""

    name = "pass-through"
    title = "mirrorfs without mirroring"

    def command(self) -> list[str]:
        """See _ServedByDaemon."""
        return [sys.executable, "-m", "mirrorfs.filesystem", str(self.backing), str(self.path)]


class Bindfs(_ServedByDaemon):
    """The peer: a mature pass-through in C, which does nothing but pass calls on."""

    name = "bindfs"
    title = "bindfs"

    def command(self) -> list[str]:
        """See _ServedByDaemon."""
        program = shutil.which("bindfs")
        if program is None:
            raise BenchFailed("there is no bindfs: apt-get install bindfs, or run scripts/bench")
        return [program, "-f", str(self.backing), str(self.path)]


class Mirror(_Mounted):
    """mirrorfs as it is used, mirroring to the store of the run."""

    name = "mirrorfs"
    title = "mirrorfs"

    chunk_store = "auto"
    nice = DEFAULT_NICE

    def __init__(self, base: Path, store: StoreServer, bucket: str, name: str = "bench") -> None:
        super().__init__(base)
        self._mirror = MirrorUnderTest(base, store, bucket, store.endpoint_url, name=name)
        self.workers = 1
        self._store = store
        self._pids: tuple[int, int] | None = None

    def mount(self) -> None:
        """See Target; what is in the datastore already begins to be mirrored. Raises BenchFailed."""
        processes = ("--workers", str(self.workers), "--nice", str(self.nice))
        options = ("--mountpoint", str(self.path), "--chunk-store", self.chunk_store, *processes)
        done = self._mirror.run(*self._mirror.mount_arguments(*options))
        if done.returncode != 0:
            raise BenchFailed(f"mirrorfs does not mount: {done.stderr.strip()}")
        self._pids = self._mirror.mount_pid(), self._mirror.uploader_pid()

    def unmount(self) -> None:
        """See Target."""
        try:
            if self._pids is not None:
                self._mirror.run("umount", str(self.path))
        finally:
            self._mirror.tear_down()
            self._pids = None

    @property
    def state(self) -> Path:
        """The state directory."""
        return self._mirror.state

    def put_state(self, directory: Path) -> None:
        """Have it there from the next mount on."""
        self._mirror.state = directory

    def uploader_pid(self) -> int | None:
        """The uploader's process, while this is mounted."""
        return None if self._pids is None else self._pids[1]

    def change_name(self, name: str) -> None:
        """Forget all of the mirroring, and mirror to another name from the next mount on."""
        shutil.rmtree(self._mirror.state, ignore_errors=True)
        self._mirror.name = name

    def go_through(self, endpoint_url: str) -> None:
        """Reach the store at another address from the next mount on."""
        self._mirror.endpoint_url = endpoint_url

    def waiting(self) -> subprocess.Popen[bytes]:
        """Start `mirrorfs wait`, which ends when all that was done up to now is mirrored."""
        command = [*PROGRAM, "wait", str(self.path), "--timeout", str(_DRAIN_SECONDS)]
        return subprocess.Popen(
            command, env=self._mirror.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def show_status(self) -> None:
        """Run `mirrorfs status`. Raises BenchFailed."""
        done = self._mirror.run("status", str(self.path))
        if done.returncode != 0:
            raise BenchFailed(f"mirrorfs status: {done.stderr.strip()}")

    def drain(self) -> float:
        """See Target. Raises BenchFailed when something cannot be mirrored."""
        began = time.perf_counter()
        # The file system answers in order: all that was closed before is in the journal when this returns.
        os.statvfs(self.path)
        try:
            answer = ask(StateDirectory(str(self._mirror.state)).control_socket, "wait", _DRAIN_SECONDS)
        except OSError as error:
            raise BenchFailed(
                f"the uploader does not answer ({error}); its log ends:\n{self._mirror.log[-2000:]}"
            ) from error
        elapsed = time.perf_counter() - began
        if "error" in answer or answer["problems"]:
            raise BenchFailed(f"not everything was mirrored: {answer}")
        return elapsed

    def daemon_seconds(self) -> float:
        """See Target."""
        return processor_seconds(self._both()[0])

    def uploader_seconds(self) -> float:
        """See Target. Workers included."""
        return sum(processor_seconds(pid) for pid in (self._both()[1], *self._mirror.worker_pids()))

    def store_seconds(self) -> float:
        """Processor time of the object store, so far."""
        return sum(map(processor_seconds, self._store.pids))

    def _both(self) -> tuple[int, int]:
        if self._pids is None:
            raise BenchFailed("mirrorfs is not mounted")
        return self._pids


class MirrorThroughFuse(Mirror):
    """The same, with chunks that pass through FUSE, as where they cannot be native."""

    name = "mirrorfs-fuse"
    title = "mirrorfs, chunks through FUSE"
    chunk_store = "fuse"


def sync_file_system(path: Path) -> None:
    """syncfs(2) on whatever file system this directory is on."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        SystemCalls().sync_file_system("bench", descriptor)
    finally:
        os.close(descriptor)
