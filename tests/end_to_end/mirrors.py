"""A mirror under test, used through the command line as an administrator would, and taken down whatever happens."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.harness.auditor import Auditor, Violation
from tests.harness.bucket import Bucket
from tests.harness.scan import Comparison, compare_datastores
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import StoreServer

PROGRAM = [sys.executable, "-m", "mirrorfs.cli"]
_COMMAND_SECONDS = 90.0


@dataclass
class MirrorUnderTest:
    """One datastore, its state directory, its place in a bucket, and the mount when it is up."""

    base: Path
    store: StoreServer
    bucket: str
    endpoint_url: str
    name: str = "store1"
    extra_environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.datastore.mkdir(exist_ok=True)

    @property
    def datastore(self) -> Path:
        """The datastore, over which the mirror mounts itself."""
        return self.base / "datastore"

    @property
    def state(self) -> Path:
        """The state directory."""
        return self.base / "state"

    @property
    def url(self) -> str:
        """Where it is mirrored to."""
        return f"s3://{self.bucket}/{self.name}"

    @property
    def log(self) -> str:
        """Everything that mount and uploader have logged so far."""
        return (self.state / "mirrorfs.log").read_text() if (self.state / "mirrorfs.log").exists() else ""

    def run(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run a mirrorfs command and return how it ended, never with a traceback."""
        done = subprocess.run(
            [*PROGRAM, *arguments],
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def succeed(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> str:
        """Run a mirrorfs command that must succeed, and return its output."""
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.log[-4000:]}"
        return done.stdout

    def environment(self) -> dict[str, str]:
        """What commands and mounts run with."""
        return {**os.environ, **self.store.environment(), **self.extra_environment}

    def store_options(self) -> list[str]:
        """The options that say how to reach the store."""
        return ["--endpoint-url", self.endpoint_url]

    def mount_arguments(self, *extra: str) -> list[str]:
        """The mount command of this mirror."""
        options = ["--state-dir", str(self.state), "--retry-ceiling", "1", *self.store_options()]
        return ["mount", str(self.datastore), "--to", self.url, *options, *extra]

    def mount(self, *extra: str) -> str:
        """Mount over the datastore."""
        return self.succeed(*self.mount_arguments(*extra))

    def umount(self) -> None:
        """Unmount, in good order."""
        self.succeed("umount", str(self.datastore))

    def wait(self, timeout: float = 60.0) -> None:
        """Wait until everything is published."""
        self.succeed("wait", str(self.datastore), "--timeout", str(timeout), timeout=timeout + 30)

    def status(self) -> dict[str, Any]:
        """What the uploader tells."""
        done = self.run("status", str(self.datastore), "--json")
        assert done.stdout, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer

    def writer(self, seed: int = 1) -> DatastoreWriter:
        """The imitation of PBS, working through the mount if there is one."""
        return DatastoreWriter(self.datastore, seed=seed)

    def create(self) -> None:
        """Make an empty datastore, its chunk directories when they are needed."""
        with self.writer() as writer:
            writer.create(chunk_directories="when needed")

    def mount_pid(self) -> int:
        """The filesystem process."""
        return int((self.state / "mount.lock").read_text())

    def uploader_pid(self) -> int:
        """The uploader process."""
        return int((self.state / "uploader.lock").read_text())

    def kill_mount(self) -> None:
        """Kill the filesystem process with SIGKILL and wait until it is gone."""
        _kill_and_wait(self.mount_pid())

    def kill_uploader(self) -> None:
        """Kill the uploader with SIGKILL."""
        _kill_and_wait(self.uploader_pid())

    def auditor(self) -> Auditor:
        """The harness' auditor of this mirror's place, past any proxy."""
        return Auditor(Bucket(self.store.access.client(), self.bucket, self.name), deep=True)

    def audit(self) -> list[Violation]:
        """Check P1, and P2 against the datastore."""
        auditor = self.auditor()
        return [*auditor.audit_bucket(), *auditor.audit_datastore(self.datastore)]

    def published(self) -> list[str]:
        """The snapshots whose manifests stand in the bucket, by a listing of our own."""
        keys = self.store.access.keys(self.bucket, f"{self.name}/.cnt/")
        matches = (re.fullmatch(rf"{self.name}/\.cnt/(.+)/index\.json\.blob", key) for key in keys)
        return sorted(match[1] for match in matches if match)

    def restore(self, target: Path, *extra: str) -> subprocess.CompletedProcess[str]:
        """Restore into `target`."""
        return self.run("restore", self.url, str(target), *self.store_options(), *extra)

    def compare(self, target: Path) -> Comparison:
        """Compare a restored datastore with this one, byte for byte."""
        return compare_datastores(self.datastore, target)

    def tear_down(self) -> None:
        """Take mount and processes away, whatever state they are in."""
        for path in (self.base / "mountpoint", self.datastore):
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False, timeout=20)
        for lock in ("mount.lock", "uploader.lock"):
            try:
                _kill_and_wait(int((self.state / lock).read_text()))
            except (FileNotFoundError, ValueError, ProcessLookupError):
                continue


def _kill_and_wait(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        if "mirrorfs" in Path(f"/proc/{pid}/cmdline").read_text():
            signal.pidfd_send_signal(process, signal.SIGKILL)
            _wait_for_end(process)
    finally:
        os.close(process)


def _wait_for_end(process: int) -> None:
    poll = select.poll()
    poll.register(process, select.POLLIN)
    assert poll.poll(20_000), "a killed process does not end"
