"""What an administrator has against backups that somebody deletes: grace, held waves, versions and locks."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.auditor import Violation
from tests.harness.scan import compare_datastores
from tests.harness.writer import DatastoreWriter
from tests.stores.seaweedfs import StoreServer


@pytest.fixture
def memory() -> Iterator[Path]:
    """A directory in memory: a restored datastore has 65,536 directories, which a disk is long in making."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as path:
        yield Path(path)


def writer_of(mirror: MirrorUnderTest) -> DatastoreWriter:
    return DatastoreWriter(mirror.datastore, seed=31, default_plan=TINY)


def listed(mirror: MirrorUnderTest, *options: str) -> list[str]:
    """The snapshots that `mirrorfs snapshots` names."""
    answer = json.loads(mirror.succeed("snapshots", mirror.url, "--json", *mirror.store_options(), *options))
    return [snapshot["path"] for snapshot in answer["snapshots"]]


def bucket_problems(mirror: MirrorUnderTest) -> list[Violation]:
    """What the auditor says of the bucket alone."""
    return list(mirror.auditor().audit_bucket())


def test_whoever_forgets_everything_has_not_emptied_the_mirror(mirror: MirrorUnderTest, memory: Path) -> None:
    mirror.mount("--retention-delete-after", "1h")
    with writer_of(mirror) as writer:
        made = [writer.backup("vm/1") for _ in range(2)]
        writer.set_group_notes("vm/1", "the mail server")
    mirror.wait()
    shutil.copytree(mirror.datastore, memory / "before", symlinks=True)
    with writer_of(mirror) as writer:
        writer.forget_group("vm/1")
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    assert listed(mirror) == []
    assert mirror.published() == []
    assert bucket_problems(mirror) == []
    assert listed(mirror, "--deleted") == [snapshot.path for snapshot in made]
    assert [entry["snapshot"] for entry in mirror.status()["retention"]["deleted"]] == [
        snapshot.path for snapshot in made
    ]
    assert "2 removed snapshots are still restorable" in mirror.succeed("status", str(mirror.datastore))
    mirror.restore(memory / "after", "--deleted")
    assert compare_datastores(memory / "before", memory / "after").differences == ()


def test_a_grace_ends(mirror: MirrorUnderTest) -> None:
    mirror.mount("--retention-delete-after", "3s")
    with writer_of(mirror) as writer:
        made = writer.backup("vm/1")
        mirror.wait()
        writer.forget(made.name)
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    deadline = time.monotonic() + 60
    while left := mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.mirrorfs/deleted/"):
        # The end of a grace is an event of the uploader that nobody outside can wait for.
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    mirror.wait()
    assert mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.chunks/") == []
    assert mirror.audit() == []


def test_a_large_wave_waits_for_the_administrator(mirror: MirrorUnderTest) -> None:
    mirror.mount("--retention-max-delete-fraction", "0.4")
    path = str(mirror.datastore)
    assert mirror.succeed("retention", "approve", path) == "no removal is held\n"
    with writer_of(mirror) as writer:
        made = [writer.backup(group) for group in ("vm/1", "vm/1", "vm/2", "ct/3")]
        mirror.wait()
        writer.forget_group("vm/1")
    mirror.wait()
    held = [snapshot.path for snapshot in made[:2]]
    assert [entry["snapshot"] for entry in mirror.status()["retention"]["held"]] == held
    assert mirror.published() == sorted(snapshot.path for snapshot in made)
    shown = mirror.succeed("status", path)
    assert "2 snapshots are gone from the datastore" in shown
    assert "mirrorfs retention approve" in shown
    # Held over a restart too, without a question.
    mirror.umount()
    mirror.mount("--retention-max-delete-fraction", "0.4")
    mirror.wait()
    assert mirror.published() == sorted(snapshot.path for snapshot in made)
    assert json.loads(mirror.succeed("retention", "approve", path, "--json")) == {"approved": held}
    mirror.wait()
    assert mirror.published() == sorted(snapshot.path for snapshot in made[2:])
    assert mirror.audit() == []


@pytest.fixture
def locked_mirror(base: Path, store: StoreServer, prefix: str) -> Iterator[MirrorUnderTest]:
    """A mirror in a bucket with versions and Object Lock."""
    bucket = store.create_bucket(locked=True)
    under_test = MirrorUnderTest(base, store, bucket, store.endpoint_url, prefix)
    under_test.create()
    yield under_test
    under_test.tear_down()


def test_a_locked_bucket_has_what_was_deleted(locked_mirror: MirrorUnderTest, memory: Path) -> None:
    mirror = locked_mirror
    mirror.mount("--verbose", "--retention-lock-for", "1d")
    with writer_of(mirror) as writer:
        made = writer.backup("vm/1")
    mirror.wait()
    wait_for_locks(mirror)
    # Each lock gives its version a new date here (docs/disaster-recovery.md), so the moment must be after the last one.
    deadline = time.monotonic() + 60
    while f"{made.path} is locked until" not in mirror.log:
        assert time.monotonic() < deadline, mirror.log[-4000:]
        time.sleep(0.1)
    shutil.copytree(mirror.datastore, memory / "before", symlinks=True)
    moment = moment_of_the_newest_version(mirror)
    with writer_of(mirror) as writer:
        writer.forget_group("vm/1")
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    assert mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.chunks/") == []
    assert mirror.published() == []
    assert mirror.audit() == []
    assert listed(mirror, "--as-of", moment) == [made.path]
    mirror.restore(memory / "after", "--as-of", moment)
    assert compare_datastores(memory / "before", memory / "after").differences == ()


def moment_of_the_newest_version(mirror: MirrorUnderTest) -> str:
    """A moment as of which all is there that is there now; returns when it is over, since stores tell whole seconds."""
    pages = mirror.store.access.client().get_paginator("list_object_versions").paginate(Bucket=mirror.bucket)
    newest = max(version["LastModified"] for page in pages for version in page["Versions"])
    while time.time() < newest.timestamp() + 1.1:
        time.sleep(0.1)
    return f"{newest.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def wait_for_locks(mirror: MirrorUnderTest) -> None:
    """Wait until everything of the mirror's snapshots is locked for most of a day."""
    client = mirror.store.access.client()
    deadline = time.monotonic() + 60
    waiting = [
        key for key in mirror.store.access.keys(mirror.bucket, f"{mirror.name}/") if "/.chunks/" in key or "Z/" in key
    ]
    assert waiting
    while waiting:
        retained = client.head_object(Bucket=mirror.bucket, Key=waiting[-1]).get("ObjectLockRetainUntilDate")
        if retained is not None and retained.timestamp() > time.time() + 0.9 * 86400:
            waiting.pop()
        else:
            assert time.monotonic() < deadline, f"{waiting}\n{mirror.log[-4000:]}"
            time.sleep(0.5)
