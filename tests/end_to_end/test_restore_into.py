"""Bringing snapshots back into a living datastore: under a mount, while others back up and collect garbage, and with
the restore killed wherever it may be.
"""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.auditor import audit_continuously
from tests.harness.backup import BackupRefused, WrittenSnapshot
from tests.harness.process_lock import DatastoreBusy
from tests.harness.scan import compare_datastores
from tests.harness.steps import StepFile
from tests.harness.writer import DatastoreWriter

STAGING_NAME = ".mirrorfs-restore.tmp"
STEPS = [
    ("insertion.before-rename", 1),
    ("insertion.before-rename", 3),
    ("insertion.inserted", 2),
    ("into.staged", 1),
    ("into.staged", 2),
    ("into.before-placing", 1),
    ("into.placed", 1),
    ("into.before-finish", 1),
]


class Lost:
    """A mirror of a datastore that has lost snapshots since, and is mirrored to another name now."""

    def __init__(self, mirror: MirrorUnderTest) -> None:
        self.mirror = mirror
        self.source = mirror.url
        self.before = mirror.base / "before"
        mirror.mount()
        with writer_of(mirror) as writer:
            self.lost: list[WrittenSnapshot] = [writer.backup("vm/1"), writer.backup("vm/1")]
            self.kept = writer.backup("vm/1")
            writer.create_namespace("a")
            self.lost.append(writer.backup("ct/2", namespace="a", encrypted=True))
            writer.set_protected(self.lost[0].name)
            writer.set_notes(self.lost[1].name, "precious")
        mirror.wait()
        mirror.umount()
        copy(mirror.datastore, self.before)
        with writer_of(mirror) as writer:
            writer.set_protected(self.lost[0].name, protected=False)
            for snapshot in self.lost:
                writer.forget(snapshot.name)
            writer.forget_group("ct/2", namespace="a")
            writer.collect_garbage(age_seconds=0, safety_seconds=0)
        mirror.name += "-b"
        mirror.state = mirror.base / "state-b"

    def arguments(self) -> list[str]:
        """The command that brings everything back."""
        return ["restore", self.source, "--into", str(self.mirror.datastore), *self.mirror.store_options()]

    def assert_back(self) -> None:
        """All of it is as it was, and what is mirrored is right."""
        only = frozenset(snapshot.path for snapshot in (*self.lost, self.kept))
        mirror = self.mirror
        assert compare_datastores(self.before, mirror.datastore, only=only).differences == ()
        assert not (mirror.datastore / STAGING_NAME).exists()
        mirror.wait()
        assert mirror.audit() == []
        assert only <= set(mirror.published())
        assert mirror.status()["problems"] == []


def writer_of(mirror: MirrorUnderTest, seed: int = 31) -> DatastoreWriter:
    return DatastoreWriter(mirror.datastore, seed=seed, default_plan=TINY)


def copy(datastore: Path, to: Path) -> None:
    """Copy a datastore with owners, which shutil leaves behind."""
    subprocess.run(["cp", "--archive", str(datastore), str(to)], check=True)


def half_snapshots(datastore: Path) -> list[Path]:
    """Directories of snapshots without manifest, where PBS would see them."""
    found = [*datastore.glob("*/*/2026-*"), *datastore.glob("ns/*/*/*/2026-*")]
    return [path for path in found if not (path / "index.json.blob").exists()]


@pytest.fixture
def lost(mirror: MirrorUnderTest) -> Lost:
    return Lost(mirror)


@contextmanager
def others_at_work(mirror: MirrorUnderTest) -> Iterator[dict[str, int]]:
    """Backups of another group and garbage collections, one after the other, until the context ends."""
    stop = threading.Event()
    done = {"backups": 0, "collections": 0, "refused": 0}

    def work() -> None:
        with writer_of(mirror, seed=77) as writer:
            while not stop.is_set():
                with suppress(BackupRefused):
                    writer.backup("host/other")
                    done["backups"] += 1
                try:
                    writer.collect_garbage()
                    done["collections"] += 1
                except DatastoreBusy:
                    # As PBS: none begins while another process has a writer.
                    done["refused"] += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("chunk_store", ["native", "fuse"])
def test_while_others_back_up_and_collect_garbage(lost: Lost, chunk_store: str) -> None:
    mirror = lost.mirror
    mirror.mount("--chunk-store", chunk_store)
    stop = threading.Event()
    audit = audit_continuously(mirror.auditor(), stop)
    with others_at_work(mirror) as done:
        mirror.succeed(*lost.arguments(), timeout=240)
        while not done["backups"]:
            stop.wait(0.05)
    stop.set()
    assert audit.finish() == []
    assert not half_snapshots(mirror.datastore)
    lost.assert_back()
    # What came back is used: a collection that keeps nothing else leaves all of it.
    with writer_of(mirror) as writer:
        collected = writer.collect_garbage(age_seconds=0, safety_seconds=0)
    assert collected.missing == ()
    lost.assert_back()


@pytest.mark.parametrize(("step", "number"), STEPS)
def test_killed_at_a_step_and_given_again(lost: Lost, step: str, number: int) -> None:
    mirror = lost.mirror
    mirror.mount()
    steps = StepFile(mirror.base / "restore-step")
    mirror.extra_environment.update(steps.environment)
    steps.arm(step, number)
    killed = mirror.run(*lost.arguments(), timeout=180)
    assert killed.returncode != 0
    assert [name for name, _ in steps.fired] == [step], f"a restore has no {step} number {number}"
    assert not half_snapshots(mirror.datastore)
    mirror.wait()
    assert mirror.audit() == []
    mirror.succeed(*lost.arguments(), timeout=180)
    lost.assert_back()
    assert not list(mirror.datastore.glob(".chunks/*/*.tmp_*"))


def test_without_a_mount(lost: Lost) -> None:
    mirror = lost.mirror
    done = mirror.succeed(*lost.arguments(), "--json")
    assert '"complete": true' in done
    again = mirror.succeed(*lost.arguments())
    assert "Restored 0 snapshots" in again
    mirror.mount()
    lost.assert_back()


def test_what_was_deleted_comes_back_from_its_own_bucket(mirror: MirrorUnderTest) -> None:
    mirror.mount("--retention-delete-after", "1h")
    with writer_of(mirror) as writer:
        made = [writer.backup("vm/1") for _ in range(2)]
        other = writer.backup("vm/2")
        mirror.wait()
        copy(mirror.datastore, mirror.base / "before")
        writer.forget_group("vm/1")
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    client = mirror.store.access.client()

    def chunk_objects() -> dict[str, object]:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=mirror.bucket, Prefix=f"{mirror.name}/.chunks/")
        return {found["Key"]: found["LastModified"] for page in pages for found in page.get("Contents", [])}

    before = chunk_objects()
    into = ("--into", str(mirror.datastore), "--deleted")
    mirror.succeed("restore", mirror.url, *into, *mirror.store_options(), timeout=180)
    mirror.wait()
    # Seconds tell nothing of what was put within one; but nothing was put at all, so all of them are as they were.
    assert chunk_objects() == before
    assert mirror.published() == sorted(snapshot.path for snapshot in (*made, other))
    assert compare_datastores(mirror.base / "before", mirror.datastore).differences == ()
    assert mirror.audit() == []
    assert mirror.status()["problems"] == []


def test_a_mount_is_no_empty_target(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    refused = mirror.run("restore", mirror.url, str(mirror.datastore), *mirror.store_options())
    assert refused.returncode == 1
    assert "is mounted by mirrorfs: add snapshots to it with --into" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1


def test_a_dead_mount_is_no_datastore(lost: Lost) -> None:
    mirror = lost.mirror
    mirror.mount()
    mirror.kill_mount()
    refused = mirror.run(*lost.arguments())
    assert refused.returncode == 1
    assert "was killed: mount it again" in refused.stderr
    subprocess.run(["umount", "--lazy", str(mirror.datastore)], check=True)
