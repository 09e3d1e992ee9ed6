"""A mirror in whose tests every command must succeed that is not meant to fail, and that can look into its bucket."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

from tests.harness.auditor import Auditor, Violation
from tests.harness.bucket import Bucket
from tests.harness.mirror import PROGRAM, Mirror
from tests.harness.scan import Comparison, compare_datastores
from tests.harness.writer import DatastoreWriter
from tests.json_schema import STATUS_SCHEMA, violations
from tests.stores.seaweedfs import StoreServer

__all__ = ["PROGRAM", "MirrorUnderTest"]

_COMMAND_SECONDS = 90.0


class MirrorUnderTest(Mirror):
    """A mirror of `base`/datastore, whose state is in `base`/state. Commands never give a failure: they raise it."""

    def __init__(self, base: Path, store: StoreServer, bucket: str, endpoint_url: str, name: str = "store1") -> None:
        state, url = base / "state", f"s3://{bucket}/{name}"
        super().__init__(base / "datastore", state, url, endpoint_url, store.environment())
        self.base, self.store = base, store
        self.datastore.mkdir(parents=True, exist_ok=True)

    @property
    def bucket(self) -> str:
        """The bucket that it is mirrored to; one that is set holds from the next mount on."""
        return self.url.removeprefix("s3://").partition("/")[0]

    @bucket.setter
    def bucket(self, bucket: str) -> None:
        self.url = f"s3://{bucket}/{self.name}"

    @property
    def name(self) -> str:
        """Its name in the bucket; one that is set holds from the next mount on."""
        return self.url.rpartition("/")[2]

    @name.setter
    def name(self, name: str) -> None:
        self.url = f"s3://{self.bucket}/{name}"

    def run(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> subprocess.CompletedProcess[str]:
        """See Mirror; it never ends with a traceback."""
        done = super().run(*arguments, timeout=timeout)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    def succeed(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> str:
        """Run a mirrorfs command that must succeed, and return its output."""
        done = self.run(*arguments, timeout=timeout)
        assert done.returncode == 0, f"{arguments}: {done.stderr}\n{self.log[-4000:]}"
        return done.stdout

    def _do(self, *arguments: str, timeout: float = _COMMAND_SECONDS) -> None:
        self.succeed(*arguments, timeout=timeout)

    def status(self) -> dict[str, Any]:
        """See Mirror; somebody must answer."""
        answer = super().status()
        assert answer, self.log[-4000:]
        assert list(violations(answer, STATUS_SCHEMA)) == [], "docs/status.schema.json says something else"
        return answer

    def mount_pid(self) -> int:
        """See Mirror; there must have been one."""
        pid = super().mount_pid()
        assert pid is not None
        return pid

    def uploader_pid(self) -> int:
        """See Mirror; there must have been one."""
        pid = super().uploader_pid()
        assert pid is not None
        return pid

    def writer(self, seed: int = 1) -> DatastoreWriter:
        """The imitation of PBS, working through the mount if there is one."""
        return DatastoreWriter(self.datastore, seed=seed)

    def create(self) -> None:
        """Make an empty datastore, its chunk directories when they are needed."""
        with self.writer() as writer:
            writer.create(chunk_directories="when needed")

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

    def compare(self, target: Path) -> Comparison:
        """Compare a restored datastore with this one, byte for byte."""
        return compare_datastores(self.datastore, target)

    def tear_down(self) -> None:
        """Take mount and processes away, whatever state they are in."""
        for path in (self.base / "mountpoint", self.datastore):
            subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False, timeout=20)
        self.kill_all()
