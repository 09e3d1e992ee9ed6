"""What plays PBS for the service tests: whoever writes to a datastore in a Debian, and the administrator of that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.harness.auditor import Auditor
from tests.harness.bucket import Bucket
from tests.harness.scan import compare_datastores
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import StoreServer

DATASTORE = "/mnt/datastore/store1"
STATE = "/var/lib/mirrorfs/mnt-datastore-store1"


class Machine(Protocol):
    """A Debian, entered or booted."""

    def run(self, *command: str) -> str:
        """Run a command in it that must succeed, and return its output."""

    def path(self, path: str) -> Path:
        """A path in it, as others reach it."""


class PBS:
    """The datastore in a Debian, as a PBS sees it, and the bucket that it is mirrored to.

    `machine` may be exchanged, as for one that is booted from then on.
    """

    def __init__(self, machine: Machine, store: StoreServer) -> None:
        self.machine, self._store = machine, store
        self._bucket = store.create_bucket()
        self._place = (f"s3://{self._bucket}/store1", "--endpoint-url", store.endpoint_url)

    @property
    def datastore(self) -> Path:
        """The datastore, or what is mounted over it."""
        return self.machine.path(DATASTORE)

    def backup(self, *groups: str) -> None:
        """Back groups up, one after the other."""
        with DatastoreWriter(self.datastore) as writer:
            for group in groups:
                writer.backup(group)

    def command(self, *words: str) -> str:
        """Run mirrorfs in the Debian as its administrator does."""
        return self.machine.run("env", "AWS_SHARED_CREDENTIALS_FILE=/etc/mirrorfs/credentials", "mirrorfs", *words)

    def wait(self) -> None:
        """Wait until everything is published."""
        self.command("wait", "store1", "--timeout", "300")

    def set_up(self, *settings: str) -> None:
        """What docs/operating.md says, up to the start of the unit, with these settings too."""
        self.datastore.mkdir(parents=True)
        with DatastoreWriter(self.datastore) as writer:
            writer.create(chunk_directories="when needed")
        self.command("config", "init", DATASTORE, "--to", *self._place, "--retry-ceiling", "1s", *settings)
        credentials = self.machine.path("/etc/mirrorfs/credentials")
        credentials.touch(mode=0o600)
        keys = f"aws_access_key_id = {self._store.access_key}\naws_secret_access_key = {self._store.secret_key}\n"
        credentials.write_text(f"[default]\n{keys}")
        assert "fails" not in self.command("config", "check", "store1")
        self.command("install", "store1")

    def assert_that_nothing_is_lost(self, *groups: str) -> None:
        """Each group has been published, and the bucket gives back what stands in the datastore."""
        self.wait()
        shown = self.command("snapshots", "store1")
        assert [group for group in groups if f"{group}/" not in shown] == []
        auditor = Auditor(Bucket(self._store.access.client(), self._bucket, "store1"), deep=True)
        assert [*auditor.audit_bucket(), *auditor.audit_datastore(self.datastore)] == []
        assert self.command("status", "store1").splitlines()[0].startswith("healthy")
        assert not self.machine.path(f"{STATE}/journal.distrusted").exists()

    def assert_that_it_comes_back(self) -> None:
        """A restore gives the same datastore."""
        place, *options = self._place
        self.command("restore", place, "/srv/restored", *options)
        compare_datastores(self.datastore, self.machine.path("/srv/restored"))


@contextmanager
def backing_up(pbs: PBS) -> Iterator[list[str]]:
    """Make one backup after the other meanwhile; each must succeed. Gives the groups that are finished so far."""
    ends, groups = threading.Event(), list[str]()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            while not ends.is_set():
                pbs.backup(group := f"vm/{1000 + len(groups)}")
                groups.append(group)
        except BaseException as error:  # noqa: BLE001
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield groups
    finally:
        ends.set()
        thread.join()
    assert failures == []
