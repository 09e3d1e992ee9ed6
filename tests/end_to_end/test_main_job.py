"""The main job: mount, back up, find it in the bucket, restore it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.harness.steps import StepFile
from tests.harness.writer import DatastoreWriter
from tests.stores.fault_proxy import FaultProxy


@pytest.fixture
def base() -> Iterator[Path]:
    """Instead of the one on the disk: a restored datastore has 65,536 directories, which a disk is long in making."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as path:
        yield Path(path)


def test_backups_arrive_in_the_bucket_and_come_back_byte_for_byte(mirror: MirrorUnderTest, base: Path) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        first = writer.backup("vm/100")
        second = writer.backup("vm/100")
        writer.create_namespace("prod/db")
        secret = writer.backup("host/vault", namespace="prod/db", encrypted=True)
        writer.upload_log(first.name)
        writer.set_protected(second.name)
        writer.set_notes(second.name, "before the upgrade")
        writer.set_group_notes("vm/100", "the database server")
    mirror.wait()
    assert mirror.published() == sorted(made.path for made in (first, second, secret))
    assert mirror.audit() == []
    mirror.restore(base / "restored", "--owner", "root:root")
    assert mirror.compare(base / "restored").differences == ()
    mirror.umount()
    assert mirror.compare(base / "restored").differences == ()


def test_a_chunk_is_sent_once(proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy) -> None:
    mirror = proxied_mirror
    mirror.mount()
    with mirror.writer() as writer:
        made = [writer.backup("vm/100") for _ in range(3)]
        writer.set_notes(made[0].name, "changed")
    mirror.wait()
    mirror.umount()
    mirror.mount()
    mirror.wait()
    puts = [seen.key for seen in fault_proxy.requests("PUT", "*/.chunks/*")]
    assert len(puts) == len(set(puts)) == len({digest for snapshot in made for digest in snapshot.chunks})
    indexes = [seen.key for seen in fault_proxy.requests("PUT", "*idx")]
    assert len(indexes) == len(set(indexes))


def test_what_is_forgotten_goes_and_what_is_needed_stays(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        made = [writer.backup("vm/100") for _ in range(3)]
        other = writer.backup("ct/7")
        mirror.wait()
        writer.forget(made[0].name, "manifest last")
        writer.forget(made[1].name, "manifest first")
        writer.forget_group("ct/7")
        mirror.wait()
        assert mirror.published() == [made[2].path]
        assert mirror.audit() == []
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
        mirror.wait()
    assert mirror.audit() == []
    left = {key.rsplit("/", 1)[1] for key in mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.chunks/")}
    assert left == made[2].chunks
    assert other.chunks - made[2].chunks


def test_an_aborted_backup_leaves_nothing_below_cnt(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        writer.abort_backup("vm/100")
        writer.abort_backup("vm/101", stage="between manifests")
    mirror.wait()
    assert mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.cnt/") == []
    assert mirror.audit() == []


def test_the_first_mount_mirrors_what_was_there_before(mirror: MirrorUnderTest) -> None:
    with mirror.writer() as writer:
        made = [writer.backup(group) for group in ("vm/1", "vm/1", "host/a")]
    mirror.mount()
    mirror.wait()
    assert mirror.published() == sorted(snapshot.path for snapshot in made)
    assert mirror.audit() == []


def test_what_happened_while_not_mounted_is_found(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        gone = writer.backup("vm/1")
        kept = writer.backup("vm/1")
    mirror.wait()
    mirror.umount()
    with mirror.writer() as writer:
        writer.forget(gone.name)
        new = writer.backup("vm/2")
        writer.set_notes(kept.name, "while away")
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.mount()
    mirror.wait()
    assert mirror.published() == sorted([kept.path, new.path])
    assert mirror.audit() == []


def test_moved_groups_and_namespaces_are_published_under_their_new_names(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        writer.create_namespace("old")
        writer.create_namespace("new")
        writer.backup("vm/1", namespace="old")
        mirror.wait()
        writer.move_group("vm/1", "vm/9", namespace="old", target_namespace="new")
        mirror.wait()
    assert [path.rsplit("/", 1)[0] for path in mirror.published()] == ["ns/new/vm/9"]
    assert mirror.audit() == []


def test_a_lost_state_directory_costs_no_second_upload_and_no_chunk(
    proxied_mirror: MirrorUnderTest, fault_proxy: FaultProxy
) -> None:
    mirror = proxied_mirror
    mirror.mount()
    with mirror.writer() as writer:
        first = writer.backup("vm/1")
        writer.backup("vm/1")
    mirror.wait()
    mirror.umount()
    mirror.state.rename(mirror.base / "lost")
    sent = fault_proxy.count("PUT", "*/.chunks/*")
    mirror.mount()
    mirror.wait()
    assert fault_proxy.count("PUT", "*/.chunks/*") == sent
    with mirror.writer() as writer:
        writer.forget(first.name)
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    assert mirror.audit() == []


def test_nothing_of_the_mount_is_readable_by_others_and_no_secret_is_anywhere(mirror: MirrorUnderTest) -> None:
    mirror.mount("--verbose")
    with mirror.writer() as writer:
        writer.backup("vm/1")
    mirror.wait()
    secret = mirror.store.secret_key
    for pid in (mirror.mount_pid(), mirror.uploader_pid()):
        assert secret not in Path(f"/proc/{pid}/cmdline").read_text()
    assert secret not in mirror.log
    assert mirror.state.stat().st_mode & 0o777 == 0o700
    for directory, _, names in os.walk(mirror.state):
        for name in names:
            path = Path(directory, name)
            assert path.stat().st_mode & 0o077 == 0, path
            assert path.is_socket() or secret.encode() not in path.read_bytes()


def test_a_separate_mount_point_leaves_the_datastore_path_free(mirror: MirrorUnderTest, base: Path) -> None:
    (base / "mountpoint").mkdir()
    mirror.succeed(*mirror.mount_arguments("--mountpoint", str(base / "mountpoint")))
    with DatastoreWriter(base / "mountpoint", seed=3) as writer:
        made = writer.backup("vm/1")
    mirror.succeed("wait", str(base / "mountpoint"), "--timeout", "60")
    assert mirror.published() == [made.path]
    assert mirror.audit() == []
    mirror.succeed("umount", str(base / "mountpoint"))


def test_a_datastore_restored_in_part_does_not_empty_the_mirror(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        made = [writer.backup(f"vm/{number}") for number in range(3)]
    mirror.wait()
    mirror.umount()
    shutil.rmtree(mirror.datastore)
    mirror.restore(mirror.datastore, "--group", "vm/1", "--owner", "root:root")
    refused = mirror.run(*mirror.mount_arguments())
    assert refused.returncode == 1
    assert "2 of the 3 snapshots" in refused.stderr
    assert "--allow-removals" in refused.stderr
    assert mirror.published() == sorted(snapshot.path for snapshot in made)
    # The next uploader is not told so again, and removes what was meant.
    steps = StepFile(mirror.base / "step")
    mirror.extra_environment.update(steps.environment)
    steps.arm("reconcile.begun")
    mirror.mount("--allow-removals")
    mirror.wait()
    assert [step for step, _ in steps.fired] == ["reconcile.begun"]
    assert mirror.published() == [made[1].path]
    # Its 65,536 chunk directories are looked through faster past the mount.
    mirror.umount()
    assert mirror.audit() == []


def test_an_older_state_directory_does_not_publish_what_is_gone(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with mirror.writer() as writer:
        first = writer.backup("vm/1")
        kept = writer.backup("vm/1")
    mirror.wait()
    mirror.umount()
    shutil.copytree(mirror.state, mirror.base / "copy", ignore=shutil.ignore_patterns("*.sock"))
    mirror.mount()
    with mirror.writer() as writer:
        writer.forget(first.name)
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
    mirror.wait()
    mirror.umount()
    shutil.rmtree(mirror.state)
    (mirror.base / "copy").rename(mirror.state)
    mirror.mount()
    with mirror.writer() as writer:
        # The same data as the first backup's: its chunks are in the old copy's books, and not in the bucket.
        again = writer.backup("vm/2", data="vm/1", generation=0)
    mirror.wait()
    assert again.chunks & first.chunks
    assert mirror.published() == sorted([kept.path, again.path])
    assert mirror.audit() == []
