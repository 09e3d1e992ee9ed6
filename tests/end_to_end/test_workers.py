"""Chunks sent by worker processes: one that is killed loses nothing, and an outage is what it is without them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY, audited, work
from tests.harness.content import LARGEST_FIXED_CHUNK, MEBIBYTE, BackupPlan, Encoder, ImagePlan
from tests.harness.mirror import Mirror
from tests.harness.steps import StepFile
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy

_STARTED = re.compile(r"worker \d runs \(process (\d+)\)")
_DOWN = "The object store is not usable."
_UP = "The object store is usable again"
_LARGEST_CHUNK = 16 * MEBIBYTE
_WITHOUT_CHUNKS = 100 * MEBIBYTE


def _until(is_so: Callable[[], bool], mirror: Mirror) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, mirror.log[-4000:]
        time.sleep(0.05)


def mount_with_workers(mirror: MirrorUnderTest, *options: str) -> set[int]:
    """Mount with two workers, and return their process ids when they take chunks."""
    mirror.mount("--workers", "2", *options)
    _until(lambda: len(_STARTED.findall(mirror.log)) == 2, mirror)
    assert mirror.worker_pids() == {int(pid) for pid in _STARTED.findall(mirror.log)}
    return mirror.worker_pids()


def highest_memory(pid: int) -> int:
    """The most memory that a process has had, in bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


@pytest.mark.parametrize("step", ["object.after-put", pytest.param("object.before-put", marks=pytest.mark.long)])
def test_a_worker_that_is_killed_loses_nothing(mirror: MirrorUnderTest, step: str) -> None:
    steps = StepFile(mirror.base / "step")
    mirror.extra_environment.update(steps.environment)
    workers, uploader = mount_with_workers(mirror), mirror.uploader_pid()
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=5, default_plan=TINY) as writer:
        # Nothing but chunks is sent while a backup runs, so it is a worker that reaches it.
        steps.arm(step, 2)
        writer.backup("vm/7")
        _until(lambda: bool(steps.fired), mirror)
        work(writer)
        mirror.wait()
    assert [(name, pid in workers) for name, pid in steps.fired] == [(step, True)]
    assert mirror.uploader_pid() == uploader
    assert re.search(r"worker \d ended unexpectedly \(signal 9\); what it was sending is sent again", mirror.log)
    # It comes back, and the others have gone on meanwhile.
    _until(lambda: len(_STARTED.findall(mirror.log)) == 3, mirror)
    started = {int(pid) for pid in _STARTED.findall(mirror.log)}
    mirror.umount()
    assert not started & mirror.processes_of("mirrorfs.replication.sending")
    assert "Traceback" not in mirror.log


def test_workers_that_die_again_and_again_hold_up_nothing(mirror: MirrorUnderTest) -> None:
    mount_with_workers(mirror)
    uploader = mirror.uploader_pid()
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=6, default_plan=TINY) as writer:
        for number in range(3):
            mirror.kill_workers()
            writer.backup(f"vm/{number}")
            mirror.wait()
        _kill_until_it_is_told(mirror)
        writer.backup("vm/9")
        mirror.wait()
    assert mirror.uploader_pid() == uploader
    assert "it is started again in 2 s" in mirror.log


def _kill_until_it_is_told(mirror: MirrorUnderTest) -> None:
    failing: list[dict[str, object]] = []

    def is_told() -> bool:
        mirror.kill_workers()
        failing[:] = mirror.status()["failing_processes"]
        return bool(failing)

    _until(is_told, mirror)
    assert str(failing[0]["process"]).startswith("worker ")
    assert failing[0]["last"] == "ended unexpectedly (signal 9)"
    told = mirror.run("status", str(mirror.datastore))
    assert told.returncode == 1
    assert told.stdout.startswith("broken: The worker ")


def test_workers_that_die_with_all_hands_full_are_sent_chunks_again(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror = proxied_mirror
    mount_with_workers(mirror, "--parallel", "2")
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=11, default_plan=TINY) as writer:
        for number in range(2):
            fault_proxy.hold("PUT", "*/.chunks/*")
            writer.backup(f"vm/{number}")
            assert fault_proxy.wait_until_waiting(2, "PUT", "*/.chunks/*")
            mirror.kill_workers()
            fault_proxy.clear()
            mirror.wait()
            _until(lambda: len(_STARTED.findall(mirror.log)) == 2 * (number + 2), mirror)  # noqa: B023
        work(writer)


def test_workers_end_with_an_uploader_that_is_killed(mirror: MirrorUnderTest) -> None:
    workers = mount_with_workers(mirror)
    mirror.kill_uploader()
    _until(lambda: not workers & mirror.processes_of("mirrorfs.replication.sending"), mirror)
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=7, default_plan=TINY) as writer:
        work(writer)


def test_an_outage_is_told_and_waited_for_in_one_place(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror = proxied_mirror
    mount_with_workers(mirror)
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=8, default_plan=TINY) as writer:
        work(writer)
        mirror.wait()
        fault_proxy.refuse_connections()
        writer.backup("vm/8")
        _until(lambda: _DOWN in mirror.log, mirror)
        writer.backup("vm/9")
        fault_proxy.accept_connections()
        mirror.wait()
        # The first to be tried again are not the workers, which now take part once more.
        work(writer)
    assert mirror.log.count(_DOWN) == 1
    assert mirror.log.count(_UP) == 1
    assert mirror.status()["problems"] == []


def test_all_workers_together_keep_the_limits(mirror: MirrorUnderTest) -> None:
    """A limit that each of them kept for itself would be twice as much."""
    rate, chunks = 2_000_000, 5
    mount_with_workers(mirror, "--bandwidth-up", f"{rate} B/s")
    image = ImagePlan("drive-scsi0.img", chunks * LARGEST_FIXED_CHUNK)
    plan = BackupPlan(images=(image,), compressible_fraction=0.0, zero_fraction=0.0)
    with audited(mirror), DatastoreWriter(mirror.datastore, seed=9, default_plan=plan) as writer:
        began = time.monotonic()
        writer.backup("vm/1", compress=False)
        mirror.wait(300)
        elapsed = time.monotonic() - began
    assert chunks * LARGEST_FIXED_CHUNK / elapsed <= 1.05 * rate


def test_a_worker_holds_no_more_than_its_share_of_large_chunks(mirror: MirrorUnderTest) -> None:
    workers = mount_with_workers(mirror, "--parallel", "8")
    source, encoder = random.Random(10), Encoder(compress=False)
    with DatastoreWriter(mirror.datastore) as writer:
        for _ in range(24):
            chunk = encoder.encode_chunk(source.randbytes(_LARGEST_CHUNK))
            writer.insert_chunk(chunk.digest, chunk.raw)
    mirror.wait(300)
    assert mirror.worker_pids() == workers
    # Each is there as it is read, decompressed, and sent.
    bound = _WITHOUT_CHUNKS + 8 // len(workers) * 3 * _LARGEST_CHUNK
    assert {pid: highest_memory(pid) for pid in workers if highest_memory(pid) > bound} == {}
