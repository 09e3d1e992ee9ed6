"""kill -9 at every step: what is published is complete at every moment, and all of it is published in the end."""

from __future__ import annotations

import faulthandler
import multiprocessing
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.auditor import audit_continuously
from tests.harness.content import BackupPlan, BlobPlan, ImagePlan
from tests.harness.steps import StepFile
from tests.harness.writer import DatastoreWriter

# Three chunks, two listed files, a manifest and an owner: every kind of PUT, and few of each.
TINY = BackupPlan(images=(ImagePlan("drive-scsi0.img", 3 * 65536, 65536),), blobs=(BlobPlan("qemu-server.conf", 300),))


def work(writer: DatastoreWriter) -> None:
    """A life in short: publish, publish incrementally, change notes, forget, collect."""
    first = writer.backup("vm/1")
    second = writer.backup("vm/1")
    writer.set_notes(second.name, "noted")
    writer.set_protected(second.name)
    writer.backup("vm/2")
    writer.forget(first.name)
    writer.forget_group("vm/2")
    writer.collect_garbage(age_seconds=0, safety_seconds=0)


@contextmanager
def audited(mirror: MirrorUnderTest) -> Iterator[None]:
    """Check P1 all the time, and P2 when everything has settled."""
    stop = threading.Event()
    audit = audit_continuously(mirror.auditor(), stop)
    try:
        yield
        mirror.wait()
    finally:
        stop.set()
        incomplete = audit.finish()
    assert incomplete == []
    assert mirror.audit() == []


@pytest.fixture
def steps(mirror: MirrorUnderTest) -> StepFile:
    """Arms steps in what is mounted from now on."""
    step_file = StepFile(mirror.base / "step")
    mirror.extra_environment.update(step_file.environment)
    return step_file


@pytest.mark.parametrize("number", [1, 5, *(pytest.param(number, marks=pytest.mark.long) for number in (3, 8, 12))])
@pytest.mark.parametrize("step", ["object.before-put", "object.after-put"])
def test_uploader_killed_around_a_put(mirror: MirrorUnderTest, steps: StepFile, step: str, number: int) -> None:
    steps.arm(step, number)
    mirror.mount()
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=5, default_plan=TINY) as writer:
        work(writer)
        mirror.wait()
    assert [name for name, _ in steps.fired] == [step], f"the work has no {step} number {number}"


@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize("step", ["object.before-delete", "object.after-delete"])
def test_uploader_killed_around_a_delete(mirror: MirrorUnderTest, steps: StepFile, step: str, number: int) -> None:
    mirror.mount()
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=5, default_plan=TINY) as writer:
        # Deletions need something that has been published before.
        writer.backup("vm/3")
        writer.backup("vm/4")
        mirror.wait()
        steps.arm(step, number)
        writer.forget_group("vm/3")
        writer.forget_group("vm/4")
        work(writer)
        mirror.wait()
    assert [name for name, _ in steps.fired] == [step], f"the work has no {step} number {number}"


@pytest.mark.parametrize(
    ("step", "number"),
    [
        ("interception.before-record", 1),
        ("interception.before-record", 6),
        ("interception.after-record", 3),
        ("durability.before-sync", 1),
        ("durability.after-syncfs", 1),
        ("durability.after-sync", 2),
        ("trimming.before-trim", 1),
        ("trimming.after-trim", 1),
    ],
)
def test_mount_killed_at_a_step(mirror: MirrorUnderTest, steps: StepFile, step: str, number: int) -> None:
    mirror.mount()
    steps.arm(step, number)
    _work_until_it_fails(mirror)
    mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    assert [name for name, _ in steps.fired] == [step], f"the work has no {step} number {number}"
    mirror.mount()
    for owner in mirror.datastore.glob("*/*/owner"):
        # PBS died between making the file and writing it; it refuses the group until somebody has mended that.
        if owner.stat().st_size == 0:
            owner.unlink()
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=6, default_plan=TINY) as writer:
        work(writer)


def _work_until_it_fails(mirror: MirrorUnderTest) -> None:
    """Work in another process: a mapped index whose mount has died ends whoever touches it by SIGBUS."""
    process = multiprocessing.get_context("spawn").Process(target=_work_on, args=(mirror.datastore,))
    process.start()
    process.join(60)
    process.kill()
    process.join()


def _work_on(datastore: Path) -> None:
    faulthandler.disable()
    with suppress(OSError), DatastoreWriter(datastore, seed=5, default_plan=TINY) as writer:
        work(writer)


class _Killed(BaseException):
    """Ends the imitation of PBS where the mount was killed."""


@pytest.mark.parametrize(
    "step",
    [
        "chunk.rename",
        "chunk.close",
        "image-index.rename",
        "manifest-upload.rename",
        "manifest-finish.rename",
        "datastore.syncfs",
    ],
)
def test_mount_killed_during_a_backup(mirror: MirrorUnderTest, step: str) -> None:
    reached = 0

    def kill_at_first(name: str) -> None:
        nonlocal reached
        reached += name == step
        if name == step and reached == 1:
            mirror.kill_mount()
            raise _Killed

    mirror.mount()
    with DatastoreWriter(mirror.datastore, seed=5, default_plan=TINY) as writer:
        before = writer.backup("vm/1")
    doomed = DatastoreWriter(mirror.datastore, seed=6, default_plan=TINY, on_step=kill_at_first)
    # Closing its files on the dead mount fails, which may hide the first exception.
    with pytest.raises((_Killed, OSError)):
        doomed.backup("vm/1")
    assert reached
    mirror.mount()
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=7, default_plan=TINY) as writer:
        after = writer.backup("vm/2")
    assert {before.path, after.path} <= set(mirror.published())


def test_both_killed_then_mounted_again(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with DatastoreWriter(mirror.datastore, seed=5, default_plan=TINY) as writer:
        made = [writer.backup("vm/1") for _ in range(3)]
    mirror.kill_uploader()
    mirror.kill_mount()
    mirror.mount()
    with audited(mirror):
        pass
    assert mirror.published() == sorted(snapshot.path for snapshot in made)


def test_the_mount_goes_on_while_the_uploader_dies_again_and_again(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=5, default_plan=TINY) as writer:
        for _ in range(3):
            writer.backup("vm/1")
            mirror.kill_uploader()
            writer.backup("vm/2")
            # The next round shall meet an uploader that is at work.
            mirror.wait()
    assert len(mirror.published()) == 6
