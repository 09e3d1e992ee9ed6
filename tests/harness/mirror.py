"""The mirror as an administrator handles it, by its command line, and as accidents handle it, by signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.ends_of_processes import is_over

PROGRAM = [sys.executable, "-m", "mirrorfs.cli"]
_COMMAND_SECONDS = 90.0
_END_SECONDS = 20.0
_MOUNT_LOCK, _UPLOADER_LOCK = "mount.lock", "uploader.lock"
_WORKER_MODULE = "mirrorfs.replication.sending"


@dataclass(slots=True)
class Mirror:
    """One mount of mirrorfs. Commands give None for success, or what the program said of its failure."""

    datastore: Path
    state: Path
    url: str
    endpoint_url: str
    extra_environment: dict[str, str]
    mount_options: tuple[str, ...] = ()
    program: tuple[str, ...] = tuple(PROGRAM)

    # -- commands ------------------------------------------------------------------------------------------

    def mount(self, *options: str) -> str | None:
        """Mount over the datastore."""
        return self._do(*self.mount_arguments(*options))

    def umount(self) -> str | None:
        """Unmount in good order."""
        return self._do("umount", str(self.datastore))

    def wait(self, timeout: float = 60.0) -> str | None:
        """Wait until everything is published."""
        return self._do("wait", str(self.datastore), "--timeout", f"{timeout:.0f}", timeout=timeout + 30)

    def reconcile(self, *options: str) -> str | None:
        """Have datastore and bucket compared."""
        return self._do("reconcile", str(self.datastore), *options, timeout=240)

    def approve_removals(self) -> str | None:
        """Approve of all removals that are held."""
        return self._do("retention", "approve", str(self.datastore))

    def restore(self, target: Path, *options: str) -> str | None:
        """Rebuild a datastore from the bucket."""
        return self._do("restore", self.url, str(target), *self.store_options(), *options, timeout=180)

    def deleted_snapshots(self) -> dict[str, dict[str, Any]]:
        """What `snapshots --deleted --json` lists, by path; empty when it fails."""
        done = self.run("snapshots", self.url, "--deleted", "--json", *self.store_options())
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {"snapshots": []}
        return {snapshot["path"]: snapshot for snapshot in answer["snapshots"]}

    def status(self) -> dict[str, Any]:
        """What `status --json` tells; empty when nobody answers."""
        done = self.run("status", str(self.datastore), "--json")
        answer: dict[str, Any] = json.loads(done.stdout) if done.stdout else {}
        return answer

    def run(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run any mirrorfs command and return how it ended. Raises subprocess.TimeoutExpired."""
        return subprocess.run(
            [*self.program, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def _do(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> str | None:
        try:
            done = self.run(*arguments, timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"'mirrorfs {arguments[0]}' has not ended within {timeout:.0f} s"
        if "Traceback" in done.stderr:
            return f"'mirrorfs {arguments[0]}' ended with a traceback:\n{done.stderr}"
        return None if done.returncode == 0 else done.stderr.strip() or f"exit code {done.returncode}"

    def mount_arguments(self, *options: str) -> list[str]:
        """The mount command of this mirror."""
        options = ("--retry-ceiling", "1", *self.store_options(), *self.mount_options, *options)
        return ["mount", str(self.datastore), "--to", self.url, "--state-dir", str(self.state), *options]

    def store_options(self) -> list[str]:
        """The options that say how to reach the store."""
        return ["--endpoint-url", self.endpoint_url]

    def environment(self) -> dict[str, str]:
        """What commands and mounts run with."""
        return {**os.environ, **self.extra_environment}

    # -- what runs -----------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """Everything that mount and uploader have logged so far."""
        file = self.state / "mirrorfs.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def is_alive(self) -> bool:
        """Whether the filesystem process runs and is mounted."""
        pid = self.mount_pid()
        return pid is not None and self._holds(_MOUNT_LOCK, pid) and _answers(self.datastore)

    def mount_pid(self) -> int | None:
        """The filesystem process, if there has been one."""
        return self._pid(_MOUNT_LOCK)

    def uploader_pid(self) -> int | None:
        """The uploader process, if there has been one."""
        return self._pid(_UPLOADER_LOCK)

    def kill_mount(self) -> None:
        """SIGKILL for the filesystem process; returns when it is gone."""
        self._kill_holder(_MOUNT_LOCK)

    def ends_within(self, seconds: float) -> bool:
        """Whether there is no filesystem process any more, or it ends by itself within so many seconds."""
        pid = self.mount_pid()
        if pid is None:
            return True
        try:
            process = os.pidfd_open(pid)
        except ProcessLookupError:
            return True
        try:
            return not self._holds(_MOUNT_LOCK, pid) or is_over(process, seconds)
        finally:
            os.close(process)

    def kill_uploader(self) -> None:
        """SIGKILL for the uploader; returns when it is gone."""
        self._kill_holder(_UPLOADER_LOCK)

    def worker_pids(self) -> set[int]:
        """The worker processes of the uploader."""
        return {pid for pid in self.processes_of(_WORKER_MODULE) if self._is_worker(pid)}

    def kill_workers(self) -> None:
        """SIGKILL for those that there are; returns when they are gone."""
        for pid in self.worker_pids():
            _kill(pid, self._is_worker)

    @staticmethod
    def processes_of(module: str) -> set[int]:
        """The processes of the whole machine that run a module of mirrorfs."""
        return {
            int(path.name)
            for path in Path("/proc").glob("[0-9]*")
            if module in _command_line(int(path.name)).split("\0")
        }

    def kill_all(self) -> None:
        """SIGKILL for whichever of both there is, the one that would start the other first."""
        for lock in (_MOUNT_LOCK, _UPLOADER_LOCK):
            self._kill_holder(lock)

    def detach_dead(self) -> None:
        """Take a killed mount away, as an administrator would."""
        if not _answers(self.datastore):
            subprocess.run(["umount", "--lazy", str(self.datastore)], check=True, capture_output=True, timeout=30)

    def _is_worker(self, pid: int) -> bool:
        uploader = self.uploader_pid()
        return uploader is not None and _parent_of(pid) == uploader and self._holds(_UPLOADER_LOCK, uploader)

    def _kill_holder(self, lock: str) -> None:
        pid = self._pid(lock)
        if pid is not None:
            _kill(pid, lambda found: self._holds(lock, found))

    def _holds(self, lock: str, pid: int) -> bool:
        # A killed process leaves its number in the file, and the kernel gives numbers again: only who has the file open
        # is the one that wrote it.
        try:
            wanted = os.stat(self.state / lock)
            return any(os.path.samestat(wanted, found) for found in _open_files(pid, lock))
        except OSError:
            return False

    def _pid(self, lock: str) -> int | None:
        try:
            return int((self.state / lock).read_text())
        except (OSError, ValueError):
            return None


def _answers(path: Path) -> bool:
    try:
        os.statvfs(path)
    except OSError:
        return False
    return True


def _open_files(pid: int, name: str) -> Iterator[os.stat_result]:
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        # Others may be on a disk or a mount that answers no more.
        try:
            if descriptor.readlink().name == name:
                yield descriptor.stat()
        except FileNotFoundError:
            continue


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    except OSError:
        return ""


def _parent_of(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return None


def _kill(pid: int, is_it: Callable[[int], bool]) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        # The number may be another's by now; this descriptor never is.
        if not is_it(pid):
            return
        signal.pidfd_send_signal(process, signal.SIGKILL)
        if not is_over(process, _END_SECONDS):
            raise TimeoutError(f"process {pid} does not end {_END_SECONDS:.0f} s after SIGKILL")
    except ProcessLookupError:
        return
    finally:
        os.close(process)
