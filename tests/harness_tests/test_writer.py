"""The datastore writer on a plain directory: what it leaves behind, and that it leaves it the way a server does."""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import itertools
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import formats
from tests.harness.backup import BackupRefused
from tests.harness.bulk import generate_bulk
from tests.harness.content import ArchivePlan, BackupPlan, BlobPlan, ImagePlan, plan_of_size
from tests.harness.names import chunk_path, parse_snapshot_path
from tests.harness.process_lock import DatastoreBusy
from tests.harness.scan import compare_datastores, damaged_files, scan_datastore
from tests.harness.system_calls import SystemCalls
from tests.harness.writer import DatastoreWriter

TINY = plan_of_size(512 * 1024, chunk_size=64 * 1024)


class Killed(Exception):
    """Raised at a step, in place of a kill."""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[DatastoreWriter]:
    with DatastoreWriter(tmp_path / "store", seed=1, default_plan=TINY) as made:
        made.create("when needed")
        yield made


def manifest_of(writer: DatastoreWriter, path: str) -> dict[str, object]:
    return formats.decode_manifest_document((Path(writer.path) / path / "index.json.blob").read_bytes())


@pytest.fixture
def fast_directory() -> Iterator[Path]:
    """In memory where that is possible, and gone afterwards: 65,536 directories are slow to make and to remove."""
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="harness-", dir=memory) as path:
        yield Path(path)


def test_create_makes_the_lock_and_65536_chunk_directories(fast_directory: Path) -> None:
    with DatastoreWriter(fast_directory / "store") as writer:
        writer.create()
        assert len(os.listdir(f"{writer.path}/.chunks")) == 0x10000
        assert stat.S_IMODE(os.stat(f"{writer.path}/.chunks/ffff").st_mode) == 0o750
        assert os.stat(f"{writer.path}/.lock").st_size == 0
        assert writer.check_access_times()
        # A sweep over every directory: only the all-zero chunk of the check is there.
        assert writer.collect_garbage(age_seconds=0, safety_seconds=0).removed == (
            hashlib.sha256(bytes(4 * 1024 * 1024)).hexdigest(),
        )


def test_backup_leaves_a_finished_snapshot_as_it_says(writer: DatastoreWriter) -> None:
    written = writer.backup("vm/100", owner="tester@pbs")
    found = scan_datastore(writer.path)
    assert list(found.finished) == [written.path] == ["vm/100/2026-01-01T00:00:00Z"]
    assert found.finished[written.path].chunks == written.chunks == written.inserted
    directory = Path(writer.path) / written.path
    assert {file.listed.name for file in written.files} == {
        "drive-scsi0.img.fidx",
        "root.pxar.didx",
        "catalog.pcat1.didx",
        "qemu-server.conf.blob",
    }
    assert {path.name for path in directory.iterdir()} == {
        "index.json.blob",
        *(file.listed.name for file in written.files),
    }
    for file in written.files:
        assert hashlib.sha256((directory / file.listed.name).read_bytes()).hexdigest() == file.sha256
    assert (directory / "index.json.blob").read_bytes() == written.manifest
    assert (directory.parent / "owner").read_text() == "tester@pbs\n"
    document = manifest_of(writer, written.path)
    assert document["signature"] is None
    assert document["unprotected"] == {
        "chunk_upload_stats": {
            "compressed_size": sum(
                (Path(writer.path) / chunk_path(digest)).stat().st_size for digest in written.chunks
            ),
            "count": sum(len(file.digests) for file in written.files),
            "duplicates": sum(len(file.digests) for file in written.files) - len(written.chunks),
            "size": sum(file.listed.size for file in written.files if file.digests),
        }
    }


def test_same_seed_makes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    paths = []
    for number, seed in enumerate((5, 5, 6)):
        with DatastoreWriter(tmp_path / str(number), seed, default_plan=TINY, threads=1 + number) as writer:
            writer.create("when needed")
            writer.backup("vm/1")
            writer.backup("vm/1", encrypted=True)
            paths.append(writer.path)
    equal = compare_datastores(paths[0], paths[1], ownership=True)
    assert equal.differences == ()
    assert (equal.snapshots, equal.files) == (2, 11)
    assert compare_datastores(paths[0], paths[2]).differences


def test_incremental_backup_only_names_what_it_shares_with_the_one_before(writer: DatastoreWriter) -> None:
    plan = BackupPlan(images=(ImagePlan("a.img", 64 * 4096, 4096),), changed_fraction=0.25)
    first = writer.backup("vm/1", plan=plan)
    age_chunks(writer)
    second = writer.backup("vm/1", plan=plan)
    shared = first.chunks & second.chunks
    assert 0.1 < len(second.inserted) / len(second.chunks) < 0.5
    assert second.inserted == second.chunks - first.chunks
    assert not second.touched
    assert {atime(writer, digest) for digest in shared} == {1}


def test_same_data_in_another_group_touches_every_chunk(writer: DatastoreWriter) -> None:
    first = writer.backup("vm/1", data="shared")
    age_chunks(writer)
    second = writer.backup("host/other", data="shared")
    assert second.touched == first.chunks
    assert not second.inserted
    assert all(atime(writer, digest) > 1 for digest in first.chunks)
    assert {mtime(writer, digest) for digest in first.chunks} == {2}


def age_chunks(writer: DatastoreWriter) -> None:
    """Set every chunk's atime to 1 and its mtime to 2."""
    for path in (Path(writer.path) / ".chunks").glob("*/*"):
        os.utime(path, (1, 2))


def atime(writer: DatastoreWriter, digest: str) -> int:
    return int(os.stat(f"{writer.path}/{chunk_path(digest)}").st_atime)


def mtime(writer: DatastoreWriter, digest: str) -> int:
    return int(os.stat(f"{writer.path}/{chunk_path(digest)}").st_mtime)


def test_same_chunks_compressed_otherwise_replace_the_files(writer: DatastoreWriter) -> None:
    plan = BackupPlan(archives=(ArchivePlan("a.pxar", 1 << 20, 1 << 16),), compressible_fraction=1.0)
    first = writer.backup("host/1", plan=plan, data="same")
    sizes = sum(os.stat(f"{writer.path}/{chunk_path(digest)}").st_size for digest in first.chunks)
    second = writer.backup("host/2", plan=plan, data="same", compress=False)
    assert second.chunks == first.chunks == second.inserted
    assert sum(os.stat(f"{writer.path}/{chunk_path(digest)}").st_size for digest in first.chunks) > sizes
    assert len(scan_datastore(writer.path).finished) == 2


def test_encrypted_looking_backup_has_nothing_plain_but_its_manifest(writer: DatastoreWriter) -> None:
    written = writer.backup("vm/1", encrypted=True)
    assert all(file.listed.crypt_mode == "encrypt" for file in written.files)
    for digest in written.chunks:
        raw = (Path(writer.path) / chunk_path(digest)).read_bytes()
        assert formats.decode_blob(raw).is_encrypted
    assert isinstance(manifest_of(writer, written.path)["signature"], str)
    assert list(scan_datastore(writer.path).finished) == [written.path]


@pytest.mark.parametrize("stage", ["indexing", "between manifests"])
def test_aborted_backup_leaves_no_directory_and_its_chunks(writer: DatastoreWriter, stage: str) -> None:
    snapshot = writer.abort_backup("vm/1", stage="indexing" if stage == "indexing" else "between manifests")
    assert not (Path(writer.path) / snapshot.path).exists()
    assert (Path(writer.path) / "vm/1/owner").exists()
    assert os.listdir(f"{writer.path}/.chunks")
    assert writer.collect_garbage(age_seconds=0, safety_seconds=0).kept_chunks == 0


def test_notes_and_verify_state_replace_the_manifest_and_keep_the_rest(writer: DatastoreWriter) -> None:
    written = writer.backup("vm/1")
    before = manifest_of(writer, written.path)
    inode = os.stat(f"{writer.path}/{written.path}/index.json.blob").st_ino
    raw = writer.set_notes(written.name, "before the upgrade")
    assert os.stat(f"{writer.path}/{written.path}/index.json.blob").st_ino != inode
    writer.set_verify_state(written.path, "ok")
    after = manifest_of(writer, written.path)
    unprotected = after.pop("unprotected")
    assert isinstance(unprotected, dict)
    assert unprotected["notes"] == "before the upgrade"
    assert unprotected["verify_state"]["state"] == "ok"
    assert {key: value for key, value in before.items() if key != "unprotected"} == after
    assert formats.decode_manifest_document(raw)["unprotected"] != unprotected


@pytest.mark.parametrize("order", ["as listed", "manifest first", "manifest last", "random"])
def test_forget_unlinks_in_the_order_asked_for(tmp_path: Path, order: str) -> None:
    left_when_manifest_went: list[int] = []
    directory = ""

    def watch(step: str) -> None:
        if directory and step in ("forget.unlink", "forget.rmdir"):
            names = os.listdir(directory)
            if "index.json.blob" not in names and not left_when_manifest_went:
                left_when_manifest_went.append(len(names))

    with DatastoreWriter(tmp_path / "store", default_plan=TINY, on_step=watch) as writer:
        writer.create("when needed")
        written = writer.backup("vm/1")
        directory = f"{writer.path}/{written.path}"
        writer.forget(written.name, order)  # type: ignore[arg-type]
        assert not os.path.exists(directory)
    if order == "manifest first":
        assert left_when_manifest_went == [4]
    elif order == "manifest last":
        assert left_when_manifest_went == [0]
    else:
        assert len(left_when_manifest_went) == 1


def test_a_protected_or_locked_snapshot_is_not_forgotten(writer: DatastoreWriter) -> None:
    written = writer.backup("vm/1")
    writer.set_protected(written.name)
    with pytest.raises(BackupRefused, match="protected"):
        writer.forget(written.name)
    writer.set_protected(written.name, protected=False)
    with open_directory(f"{writer.path}/{written.path}") as descriptor:
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        with pytest.raises(BackupRefused, match="lock"):
            writer.forget(written.name)
    writer.forget(written.name)


class open_directory:
    """A directory's descriptor for a with block."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY)

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def test_garbage_collection_takes_what_nothing_references(writer: DatastoreWriter) -> None:
    first, second = writer.backup("vm/1"), writer.backup("vm/1")
    writer.forget(first.name)
    assert writer.collect_garbage().removed == ()
    done = writer.collect_garbage(age_seconds=0, safety_seconds=0)
    assert set(done.removed) == first.chunks - second.chunks
    assert done.kept_chunks == len(second.chunks)
    assert done.missing == ()
    assert list(scan_datastore(writer.path).finished) == [second.path]


def test_garbage_collection_spares_the_chunks_of_a_running_backup(tmp_path: Path) -> None:
    collected: list[int] = []
    running = threading.Event()

    def collect_meanwhile(step: str) -> None:
        if step == "image-index.munmap" and not running.is_set():
            running.set()
            with DatastoreWriter(tmp_path / "store") as collector:
                done = collector.collect_garbage(age_seconds=0, safety_seconds=0)
            collected.append(done.kept_chunks)

    with DatastoreWriter(tmp_path / "store", default_plan=TINY, on_step=collect_meanwhile) as writer:
        writer.create("when needed")
        written = writer.backup("vm/1")
        assert collected[0] > 1
        assert list(scan_datastore(writer.path).finished) == [written.path]


def test_garbage_collection_is_refused_while_another_process_writes(writer: DatastoreWriter) -> None:
    writer.backup("vm/1")
    locked, done = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        descriptor = os.open(f"{writer.path}/.lock", os.O_RDWR)
        fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        os.write(locked[1], b"x")
        os.read(done[0], 1)
        os._exit(0)
    try:
        os.read(locked[0], 1)
        with pytest.raises(DatastoreBusy):
            writer.collect_garbage()
    finally:
        os.write(done[1], b"x")
        os.waitpid(child, 0)
        for descriptor in (*locked, *done):
            os.close(descriptor)
    writer.collect_garbage()


def test_verify_renames_a_corrupt_chunk_and_the_next_backup_uploads_it_anew(writer: DatastoreWriter) -> None:
    written = writer.backup("vm/1")
    assert writer.verify(written.name).state == "ok"
    digest = min(written.chunks)
    path = Path(writer.path) / chunk_path(digest)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    outcome = writer.verify(written.name)
    assert outcome.bad == (digest,)
    assert not path.exists()
    assert Path(f"{path}.0.bad").exists()
    assert list(scan_datastore(writer.path).damaged) == [written.path]
    again = writer.backup("host/2", data=written.name.group.path, generation=0)
    assert again.inserted == {digest}
    assert writer.collect_garbage(age_seconds=0, safety_seconds=0).removed_bad == (f"{digest}.0.bad",)


def test_bit_rot_is_found_by_verification_whatever_the_chunk(writer: DatastoreWriter) -> None:
    for group, encrypted in (("vm/1", False), ("vm/2", True)):
        written = writer.backup(group, encrypted=encrypted)
        digests = sorted(written.chunks)
        for digest in digests:
            writer.corrupt_chunk(digest)
        assert set(writer.verify(written.name).bad) == set(digests)
        assert manifest_of(writer, written.path)["unprotected"]["verify_state"]["state"] == "failed"  # type: ignore[index]


def test_bit_rot_behind_a_mount_and_in_files(writer: DatastoreWriter, tmp_path: Path) -> None:
    written = writer.backup("vm/1")
    behind = tmp_path / "behind"
    shutil.copytree(writer.path, behind)
    digest = min(written.chunks)
    writer.corrupt_chunk(digest, backing=behind)
    assert list(scan_datastore(behind).lacking_chunks) == [written.path]
    assert damaged_files(behind, written.path) == ()
    for name in ("drive-scsi0.img.fidx", "root.pxar.didx", "qemu-server.conf.blob"):
        writer.corrupt_file(written.name, name, backing=behind)
    assert set(damaged_files(behind, written.path)) == {
        "drive-scsi0.img.fidx",
        "root.pxar.didx",
        "qemu-server.conf.blob",
    }
    writer.corrupt_file(written.name, "index.json.blob", backing=behind)
    assert damaged_files(behind, written.path) == ("index.json.blob",)
    assert list(scan_datastore(writer.path).finished) == [written.path]


def test_a_chunk_inserted_again_with_another_compression_is_the_same_chunk_of_other_bytes(
    writer: DatastoreWriter,
) -> None:
    written = writer.backup("vm/1", compress=False)
    sizes = {digest: os.stat(f"{writer.path}/{chunk_path(digest)}").st_size for digest in written.chunks}
    outcomes = {digest: writer.reinsert_chunk(digest, compress=True) for digest in sorted(written.chunks)}
    changed = {
        digest for digest, size in sizes.items() if os.stat(f"{writer.path}/{chunk_path(digest)}").st_size != size
    }
    assert changed == {digest for digest, outcome in outcomes.items() if outcome == "inserted"}
    assert changed
    assert list(scan_datastore(writer.path).finished) == [written.path]
    encrypted = writer.backup("vm/2", encrypted=True)
    with pytest.raises(ValueError, match="encrypted"):
        writer.reinsert_chunk(min(encrypted.chunks), compress=True)


def test_owner_changes_by_a_replaced_file_and_binds_the_next_backup(tmp_path: Path) -> None:
    steps: list[str] = []
    with DatastoreWriter(tmp_path / "store", default_plan=TINY, on_step=steps.append) as writer:
        writer.create("when needed")
        writer.backup("vm/1")
        steps.clear()
        writer.change_owner("vm/1", "backup@pbs!token")
        assert steps == [f"owner.{call}" for call in ("open", "fchmod", "write", "rename", "close")]
        owner = Path(writer.path) / "vm/1/owner"
        assert owner.read_text() == "backup@pbs!token\n"
        assert stat.S_IMODE(owner.stat().st_mode) == 0o644
        assert os.listdir(owner.parent).count("owner") == 1
        with pytest.raises(BackupRefused, match="belongs to backup@pbs!token"):
            writer.backup("vm/1")
        writer.backup("vm/1", owner="backup@pbs!token")


def test_moved_namespaces_take_everything_with_them(writer: DatastoreWriter) -> None:
    writer.create_namespace("a/b")
    writer.create_namespace("c")
    written = writer.backup("vm/1", namespace="a/b")
    writer.set_group_notes("vm/1", "of the group", namespace="a/b")
    inode = os.stat(f"{writer.path}/{written.path}").st_ino
    writer.move_namespace("a", "c/d")
    found = scan_datastore(writer.path)
    assert found.namespaces == ("c", "c/d", "c/d/b")
    assert list(found.finished) == ["ns/c/ns/d/ns/b/vm/1/2026-01-01T00:00:00Z"]
    assert os.stat(f"{writer.path}/{next(iter(found.finished))}").st_ino == inode
    assert found.group_paths(found.groups[0]) == ("ns/c/ns/d/ns/b/vm/1/owner", "ns/c/ns/d/ns/b/vm/1/notes")
    for source, target, reason in (
        ("c/d", "c", "exists"),
        ("c/d", "nowhere/e", "no namespace nowhere"),
    ):
        with pytest.raises(BackupRefused, match=reason):
            writer.move_namespace(source, target)
    with pytest.raises(ValueError, match="not a namespace"):
        writer.move_namespace("c/d", "-bad")
    with pytest.raises(OSError, match="Invalid argument"):
        writer.move_namespace("c", "c/d/inside")
    writer.move_namespace("c/d", "back")
    assert scan_datastore(writer.path).namespaces == ("back", "back/b", "c")


def test_a_group_does_not_move_onto_another_nor_into_nothing(writer: DatastoreWriter) -> None:
    first, second = writer.backup("vm/1"), writer.backup("vm/2")
    with pytest.raises(BackupRefused, match="vm/2 exists"):
        writer.move_group("vm/1", "vm/2")
    with pytest.raises(BackupRefused, match="no namespace a"):
        writer.move_group("vm/1", "vm/1", target_namespace="a")
    writer.move_group("vm/1", "ct/7")
    assert set(scan_datastore(writer.path).finished) == {first.path.replace("vm/1", "ct/7"), second.path}


def test_namespaces_groups_and_moves(writer: DatastoreWriter) -> None:
    with pytest.raises(BackupRefused, match="no namespace"):
        writer.backup("vm/2", namespace="a/b")
    writer.create_namespace("a/b")
    inner = writer.backup("vm/1", namespace="a/b")
    assert inner.path == "ns/a/ns/b/vm/1/2026-01-01T00:00:00Z"
    assert parse_snapshot_path(inner.path) == inner.name
    writer.move_group("vm/1", "vm/1", namespace="a/b", target_namespace="a")
    writer.set_group_notes("vm/1", "moved", namespace="a")
    found = scan_datastore(writer.path)
    assert found.namespaces == ("a", "a/b")
    assert list(found.finished) == ["ns/a/vm/1/2026-01-01T00:00:00Z"]
    writer.remove_namespace("a")
    assert scan_datastore(writer.path).namespaces == ("a",)
    writer.remove_namespace("a", delete_groups=True)
    assert scan_datastore(writer.path).namespaces == ()
    assert os.listdir(f"{writer.path}/ns") == []


def test_prune_keeps_the_newest_and_the_protected(writer: DatastoreWriter) -> None:
    made = [writer.backup("vm/1") for _ in range(4)]
    writer.set_protected(made[0].name)
    assert writer.prune("vm/1", 1) == (made[1].name, made[2].name)
    assert writer.snapshots("vm/1") == [made[0].name, made[3].name]
    # A time is never used twice, also when its snapshot has gone.
    writer.prune("vm/1", 0)
    assert writer.backup("vm/1").name.time > made[3].name.time


def test_pull_makes_an_equal_snapshot_and_replaces_an_older_one(writer: DatastoreWriter, tmp_path: Path) -> None:
    written = writer.backup("vm/1")
    writer.upload_log(written.name)
    with DatastoreWriter(tmp_path / "target") as target:
        target.create("when needed")
        target.pull(writer.path, written.name)
        assert compare_datastores(writer.path, target.path).differences == ()
        writer.set_notes(written.name, "changed")
        assert compare_datastores(writer.path, target.path).differences
        target.pull(writer.path, written.name)
        assert compare_datastores(writer.path, target.path).differences == ()


def test_a_resync_replaces_what_differs_manifest_last_and_removes_what_is_no_more_listed(tmp_path: Path) -> None:
    steps: list[str] = []
    with (
        DatastoreWriter(tmp_path / "source", seed=1, default_plan=TINY) as source,
        DatastoreWriter(tmp_path / "target", on_step=steps.append) as target,
    ):
        source.create("when needed")
        target.create("when needed")
        old = source.backup("vm/1", generation=0)
        source.upload_log(old.name)
        target.pull(source.path, old.name)
        target.set_protected(old.name)
        source.forget(old.name)
        plan = dataclasses.replace(TINY, archives=TINY.archives[:1], blobs=(BlobPlan("fw.conf", 300),))
        new = source.backup("vm/1", generation=0, data="other", plan=plan)
        assert new.name == old.name
        steps.clear()
        target.pull(source.path, new.name)
        manifest_at = max(at for at, step in enumerate(steps) if step == "pull.rename")
        assert steps.count("pull.rename") == len(new.files) + 1
        assert "chunk.rename" not in steps[manifest_at:]
        assert "pull.unlink" not in steps[:manifest_at]
        expected = {file.listed.name for file in new.files} | {"index.json.blob", "client.log.blob", ".protected"}
        assert set(os.listdir(f"{target.path}/{new.path}")) == expected
        assert scan_datastore(target.path).finished[new.path].chunks == new.chunks
        # A third time nothing differs, and nothing is written.
        steps.clear()
        target.pull(source.path, new.name)
        assert "pull.rename" not in steps


def test_a_resync_killed_before_the_manifest_leaves_the_old_one_and_is_finished_by_the_next(tmp_path: Path) -> None:
    with DatastoreWriter(tmp_path / "source", seed=1, default_plan=TINY) as source:
        source.create("when needed")
        old = source.backup("vm/1", generation=0)
        with DatastoreWriter(tmp_path / "target") as target:
            target.create("when needed")
            target.pull(source.path, old.name)
        source.forget(old.name)
        new = source.backup("vm/1", generation=0, data="other")
        renames = itertools.count(1)

        def kill(step: str) -> None:
            if step == "pull.rename" and next(renames) == 3:
                raise Killed(step)

        with pytest.raises(Killed), DatastoreWriter(tmp_path / "target", on_step=kill) as killed:
            killed.pull(source.path, new.name)
        found = scan_datastore(tmp_path / "target")
        assert set(found.damaged) == {new.path}
        assert len(damaged_files(tmp_path / "target", new.path)) == 2
        with DatastoreWriter(tmp_path / "target") as target:
            target.pull(source.path, new.name)
        assert compare_datastores(source.path, tmp_path / "target", only=frozenset([new.path])).differences == ()


def test_random_unlink_order_follows_from_seed_and_snapshot(tmp_path: Path) -> None:
    orders: list[list[str]] = []
    for seed in (1, 1, 2):
        names: list[str] = []
        store = tmp_path / str(len(orders))
        with DatastoreWriter(store, seed=5, default_plan=TINY) as maker:
            maker.create("when needed")
            written = maker.backup("vm/1")
        with DatastoreWriter(store, seed=seed) as writer:
            watched = Path(writer.path) / written.path
            before = set(os.listdir(watched))

            def note(step: str, names: list[str] = names, watched: Path = watched) -> None:
                if step in ("forget.unlink", "forget.rmdir"):
                    names[:] = [*names, *sorted(before - set(names) - set(os.listdir(watched)))]  # noqa: B023

            writer.calls = SystemCalls(note)
            writer.forget(written.name, "random")
        orders.append(names)
    assert orders[0] == orders[1]
    assert sorted(orders[0]) == sorted(before)
    assert orders[0] != orders[2]


def test_several_processes_at_once(writer: DatastoreWriter) -> None:
    command = [sys.executable, "-m", "tests.harness", "backup", writer.path]
    options = ["--data", "shared", "--size", "512K", "--chunk-size", "64K", "--count", "3", "--threads", "2"]
    processes = [
        subprocess.Popen([*command, f"vm/{number}", *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        for number in range(3)
    ]
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    found = scan_datastore(writer.path)
    assert len(found.finished) == 9
    assert found.damaged == {}
    # What was made follows from the seed, not from who was first.
    chunks = [found.finished[f"vm/{number}/2026-01-01T02:00:00Z"].chunks for number in range(3)]
    assert chunks[0] == chunks[1] == chunks[2]


def test_several_writers_at_once(writer: DatastoreWriter) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            with DatastoreWriter(writer.path, seed=number % 2, default_plan=TINY, threads=2) as mine:
                for _ in range(3):
                    mine.backup(f"vm/{number}", data="the same for all")
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not failures
    assert len(scan_datastore(writer.path).finished) == 12


def test_a_backup_killed_at_any_step_leaves_no_finished_snapshot_before_the_manifest(tmp_path: Path) -> None:
    steps: list[str] = []
    plan = plan_of_size(128 * 1024, chunk_size=64 * 1024)
    with DatastoreWriter(tmp_path / "model", default_plan=plan, on_step=steps.append) as model:
        model.create("when needed")
        steps.clear()
        model.backup("vm/1")
    manifest_at = steps.index("manifest-upload.rename")
    for number in [*range(0, manifest_at, 7), manifest_at, manifest_at + 1, len(steps) - 1]:
        countdown = iter(range(number + 1))

        def kill(step: str, countdown: Iterator[int] = countdown, number: int = number) -> None:
            if next(countdown, number) == number:
                raise Killed(step)

        descriptors = len(os.listdir("/proc/self/fd"))
        with DatastoreWriter(tmp_path / str(number), default_plan=plan) as maker:
            maker.create("when needed")
        writer = DatastoreWriter(tmp_path / str(number), default_plan=plan, on_step=kill)
        with pytest.raises(Killed), writer:
            writer.backup("vm/1")
        assert len(os.listdir("/proc/self/fd")) == descriptors
        finished = scan_datastore(writer.path).finished
        assert len(finished) == (1 if number > manifest_at else 0), steps[number]
        # The next start works on what was left.
        with DatastoreWriter(tmp_path / str(number), default_plan=plan) as successor:
            successor.backup("vm/1")


def test_files_belong_to_user_backup_where_the_datastore_does() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-") as directory:
        base = Path(directory)
        # For user backup, who has no way into pytest's own directories.
        base.chmod(0o755)
        with DatastoreWriter(base / "store", default_plan=TINY, threads=2) as writer:
            writer.create("when needed")
            written = writer.backup("vm/1")
        assert os.stat(base / "store" / written.path / "drive-scsi0.img.fidx").st_uid == 34
        assert {os.stat(base / "store" / chunk_path(digest)).st_gid for digest in written.chunks} == {34}
        (base / "mine").write_text("made by root again")
        assert os.stat(base / "mine").st_uid == 0


def test_bulk_datastore_is_sound(writer: DatastoreWriter) -> None:
    made = generate_bulk(writer.path, snapshots=30, chunks=200, groups=3)
    found = scan_datastore(writer.path)
    assert set(found.finished) == set(made.snapshots)
    assert len({digest for snapshot in found.finished.values() for digest in snapshot.chunks}) == 200
