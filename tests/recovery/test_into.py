"""Adding snapshots to a living datastore: whole ones only, of checked chunks, and nothing that stands there changed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mirrorfs.datastore.names import GroupId, SnapshotId
from mirrorfs.objectstore.errors import StoreUnavailable
from mirrorfs.recovery import restore
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.into import STAGING_NAME, LivingDatastore
from mirrorfs.recovery.restore import Manner, RestoreReport
from mirrorfs.recovery.selection import Selection
from tests.datastore.formats import encrypted_blob
from tests.harness.scan import compare_datastores
from tests.recovery.mirror import LONG_AGO, Mirror, Objects, Tampering, breaks_off_after, entries_of
from tests.recovery.test_restore import ALL, ENCRYPTED, FIRST, SECOND, THIRD, WEB, chunks_of

INTO = Manner(into=True)


def forget(root: Path, *snapshots: str, objects: Objects, chunks: bool = True) -> set[str]:
    """Take snapshots out of the datastore, and, as a garbage collection would, chunks that no other needs."""
    for snapshot in snapshots:
        shutil.rmtree(root / snapshot)
        group = (root / snapshot).parent
        if sorted(os.listdir(group)) in (["owner"], ["notes", "owner"]):
            shutil.rmtree(group)
    left = [snapshot for snapshot in ALL if (root / snapshot).exists()]
    gone = set.union(*(chunks_of(snapshot, objects) for snapshot in snapshots))
    gone -= set().union(*(chunks_of(snapshot, objects) for snapshot in left))
    for digest in gone if chunks else ():
        chunk(root, digest).unlink()
    return gone


def chunk(root: Path, digest: str) -> Path:
    return root / ".chunks" / digest[:4] / digest


def add(mirror: Mirror, root: Path, *snapshots: str, tampering: Tampering | None = None) -> RestoreReport:
    selection = Selection(snapshots=tuple(SnapshotId.parse(path) for path in snapshots))
    return mirror.restore(root, selection, manner=INTO, tampering=tampering)


def half_snapshots(root: Path) -> list[Path]:
    """Directories of snapshots in which there is no manifest, where PBS looks."""
    return [
        path
        for path in root.rglob("2026-*")
        if STAGING_NAME not in path.parts and not (path / "index.json.blob").exists()
    ]


def assert_as_it_was(root: Path, datastore: Path) -> None:
    assert entries_of(root) == entries_of(datastore)
    assert not compare_datastores(datastore, root, ownership=True).differences


@contextmanager
def elsewhere_locked(path: Path, kind: str) -> Iterator[None]:
    """Have another process hold the lock of PBS's process ("record") or of a directory ("flock")."""
    call = "lockf(f, fcntl.LOCK_EX)" if kind == "record" else "flock(f, fcntl.LOCK_EX)"
    mode = "os.O_RDWR" if kind == "record" else "os.O_RDONLY"
    program = (
        f"import fcntl, os, sys\nf = os.open({str(path)!r}, {mode})\nfcntl.{call}\n"
        "print('locked', flush=True)\nsys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"locked\n"
        try:
            yield
        finally:
            process.communicate()


def test_what_is_not_there_is_added_and_nothing_else_touched(
    shared_mirror: Mirror, datastore: Path, objects: Objects, living: Path
) -> None:
    gone = forget(living, SECOND, THIRD, WEB, objects=objects)
    assert gone
    before = {path: path.stat() for path in living.rglob("*") if path.is_file()}
    tampering = Tampering(on_get=lambda key, body: body if not half_snapshots(living) else pytest.fail("half a one"))
    report = shared_mirror.restore(living, manner=INTO, tampering=tampering)
    assert report.is_complete
    assert [snapshot.path for snapshot in report.restored] == sorted([SECOND, THIRD, WEB], key=ALL.index)
    assert [snapshot.path for snapshot in report.already_there] == [
        path for path in ALL if path not in (SECOND, THIRD, WEB)
    ]
    assert_as_it_was(living, datastore)
    assert not (living / STAGING_NAME).exists()
    assert {key.rpartition("/")[2] for key in tampering.gets if "/.chunks/" in key} == gone
    for path, status in before.items():
        after = path.stat()
        assert (after.st_ino, after.st_mtime_ns, after.st_size) == (status.st_ino, LONG_AGO, status.st_size), path


def test_all_chunks_of_what_is_added_are_touched(shared_mirror: Mirror, objects: Objects, living: Path) -> None:
    forget(living, SECOND, objects=objects)
    assert add(shared_mirror, living, SECOND).is_complete
    used = chunks_of(SECOND, objects)
    for path in living.glob(".chunks/*/*"):
        assert (path.stat().st_atime_ns > LONG_AGO) == (path.name in used), path


def test_into_a_datastore_without_any(shared_mirror: Mirror, datastore: Path, base: Path) -> None:
    root = base / "new"
    (root / ".chunks").mkdir(parents=True, mode=0o750)
    for path in (root, root / ".chunks"):
        os.chown(path, 12345, 54321)
    report = shared_mirror.restore(root, manner=INTO)
    assert report.is_complete
    assert len(report.restored) == len(ALL)
    entries, expected = entries_of(root), entries_of(datastore)
    assert {(entry.user, entry.group) for entry in entries.values()} == {(12345, 54321)}
    # What has no snapshot is not added; nor is the lock, which is PBS's.
    assert expected.keys() - entries.keys() == {".lock", "ns/empty"}
    for name, entry in entries.items():
        assert (entry.mode, entry.content) == (expected[name].mode, expected[name].content), name


@pytest.mark.parametrize("damage", ["empty", "zeros", "flipped", "other content"])
def test_a_chunk_that_is_there_is_used_only_if_it_is_good(
    shared_mirror: Mirror, datastore: Path, objects: Objects, living: Path, damage: str
) -> None:
    forget(living, SECOND, objects=objects)
    digest, other = sorted(chunks_of(SECOND, objects) & chunks_of(FIRST, objects))[:2]
    good = chunk(living, digest).read_bytes()
    chunk(living, digest).write_bytes(
        {
            "empty": b"",
            "zeros": bytes(len(good)),
            "flipped": good[:50] + bytes([good[50] ^ 1]) + good[51:],
            "other content": chunk(living, other).read_bytes(),
        }[damage]
    )
    assert add(shared_mirror, living, SECOND).is_complete
    assert_as_it_was(living, datastore)


def test_a_chunk_that_is_collected_meanwhile_is_brought_again(
    shared_mirror: Mirror, datastore: Path, objects: Objects, living: Path
) -> None:
    forget(living, THIRD, objects=objects)
    victims = sorted(chunks_of(THIRD, objects) & chunks_of(FIRST, objects))[:3]

    alone = threading.Lock()

    def collect(key: str, body: bytes) -> bytes:
        with alone:
            for digest in list(victims):
                path = chunk(living, digest)
                if path.exists() and path.stat().st_atime_ns > LONG_AGO:
                    path.unlink()
                    victims.remove(digest)
        return body

    assert add(shared_mirror, living, THIRD, tampering=Tampering(on_get=collect)).is_complete
    assert not victims, "nothing was collected after it had been looked at"
    assert_as_it_was(living, datastore)


def test_what_is_collected_each_time_is_given_up(
    shared_mirror: Mirror, objects: Objects, living: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget(living, SECOND, objects=objects)
    always = LivingDatastore.gone

    def gone(self: LivingDatastore, digests: list[bytes]) -> list[bytes]:
        always(self, digests)
        return list(digests)[:1]

    monkeypatch.setattr(LivingDatastore, "gone", gone)
    report = add(shared_mirror, living, SECOND)
    assert "removed from the datastore again and again" in report.problems[0].reason
    assert not (living / SECOND).exists()


def test_what_is_encrypted_never_takes_the_place_of_what_is_not(
    shared_mirror: Mirror, objects: Objects, living: Path
) -> None:
    forget(living, SECOND, objects=objects)
    digest = min(chunks_of(SECOND, objects) & chunks_of(FIRST, objects))
    planted = encrypted_blob(b"somebody's")
    chunk(living, digest).write_bytes(planted)
    report = add(shared_mirror, living, SECOND)
    assert "it is encrypted, and its backup is not" in report.problems[0].reason
    assert chunk(living, digest).read_bytes() == planted
    assert not (living / SECOND).exists()


class TestInterruptions:
    """What was interrupted is finished by the same command, and by no other."""

    @pytest.fixture
    def interrupted(self, shared_mirror: Mirror, objects: Objects, living: Path) -> Path:
        forget(living, THIRD, WEB, ENCRYPTED, objects=objects)
        with pytest.raises(StoreUnavailable):
            add(shared_mirror, living, THIRD, WEB, ENCRYPTED, tampering=Tampering(on_get=breaks_off_after(3)))
        assert (living / STAGING_NAME).is_dir()
        assert not half_snapshots(living)
        return living

    def test_the_same_goes_on(self, shared_mirror: Mirror, datastore: Path, interrupted: Path) -> None:
        tampering = Tampering()
        assert add(shared_mirror, interrupted, THIRD, WEB, ENCRYPTED, tampering=tampering).is_complete
        assert_as_it_was(interrupted, datastore)
        there = {key.rpartition("/.chunks/")[2] for key in tampering.gets if "/.chunks/" in key}
        assert there
        assert len(tampering.gets) == len(set(tampering.gets))

    def test_a_part_of_it_forgets_the_rest(self, shared_mirror: Mirror, interrupted: Path) -> None:
        assert add(shared_mirror, interrupted, THIRD).is_complete
        assert (interrupted / THIRD / "index.json.blob").exists()
        assert not (interrupted / STAGING_NAME).exists()
        assert not (interrupted / WEB).exists()

    def test_another_does_not(self, own_mirror: Mirror, interrupted: Path) -> None:
        with pytest.raises(RestoreError, match=r"holds an interrupted restore: mirrorfs restore s3://\S+ --into"):
            own_mirror.restore(interrupted, manner=INTO)
        assert (interrupted / STAGING_NAME).is_dir()

    def test_what_a_power_cut_leaves_is_not_believed(
        self, shared_mirror: Mirror, datastore: Path, interrupted: Path
    ) -> None:
        staged = interrupted / STAGING_NAME / THIRD
        staged.mkdir(parents=True, exist_ok=True)
        (staged / "index.json.blob").write_bytes(b"half a manifest")
        (staged / "drive-scsi0.img.fidx").write_bytes(b"")
        (staged / "no-longer-listed.blob").write_bytes(b"")
        (staged / ".mirrorfs-0123456789abcdef.tmp").write_bytes(b"half a file")
        assert add(shared_mirror, interrupted, THIRD, WEB, ENCRYPTED).is_complete
        assert_as_it_was(interrupted, datastore)

    def test_a_full_disk(
        self, shared_mirror: Mirror, datastore: Path, interrupted: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        real = os.write

        def full(descriptor: int, data: memoryview) -> int:
            if ".tmp_mirror" in os.readlink(f"/proc/self/fd/{descriptor}"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data)

        with monkeypatch.context() as patched:
            patched.setattr(os, "write", full)
            with pytest.raises(
                RestoreError, match=r"No space left on device\. Make room and run the same command again"
            ):
                add(shared_mirror, interrupted, THIRD, WEB, ENCRYPTED)
        assert not half_snapshots(interrupted)
        assert add(shared_mirror, interrupted, THIRD, WEB, ENCRYPTED).is_complete
        assert_as_it_was(interrupted, datastore)


class TestOthersAtWork:
    """PBS's locks are asked for, and what it has in hand is left alone."""

    def test_a_locked_group_is_waited_for_and_given_up(
        self,
        shared_mirror: Mirror,
        datastore: Path,
        objects: Objects,
        living: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(restore, "_BUSY_SECONDS", 0.5)
        forget(living, SECOND, objects=objects)
        with elsewhere_locked(living / "vm/100", "flock"):
            report = add(shared_mirror, living, SECOND)
        assert "PBS works on the group vm/100" in report.problems[0].reason
        assert not (living / SECOND).exists()
        assert not (living / STAGING_NAME).exists()
        assert add(shared_mirror, living, SECOND).is_complete
        assert_as_it_was(living, datastore)

    def test_it_is_put_in_its_place_when_the_lock_is_given_back(
        self, shared_mirror: Mirror, datastore: Path, objects: Objects, living: Path
    ) -> None:
        forget(living, SECOND, objects=objects)
        released: list[str] = []

        class Observer(restore.RestoreObserver):
            def waiting(self, snapshot: SnapshotId, reason: str) -> None:
                if not released:
                    fcntl.flock(descriptor, fcntl.LOCK_UN)
                released.append(reason)

        descriptor = os.open(living / "vm/100", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            selection = Selection(snapshots=(SnapshotId.parse(SECOND),))
            report = shared_mirror.restore(living, selection, manner=INTO, observer=Observer())
        finally:
            os.close(descriptor)
        assert report.is_complete
        assert released
        assert_as_it_was(living, datastore)

    def test_no_garbage_collection_of_another_process_begins_meanwhile(
        self, shared_mirror: Mirror, objects: Objects, living: Path
    ) -> None:
        forget(living, SECOND, objects=objects)
        answers = set()

        def try_to_collect(key: str, body: bytes) -> bytes:
            if "/.chunks/" in key:
                lock = f"fcntl.lockf(os.open({str(living / '.lock')!r}, os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)"
                program = [sys.executable, "-c", f"import fcntl, os; {lock}"]
                done = subprocess.run(program, check=False, capture_output=True)
                answers.add(b"BlockingIOError" in done.stderr)
            return body

        assert add(shared_mirror, living, SECOND, tampering=Tampering(on_get=try_to_collect)).is_complete
        assert answers == {True}

    def test_a_running_garbage_collection_does_not_hold_it_up(
        self, shared_mirror: Mirror, datastore: Path, objects: Objects, living: Path
    ) -> None:
        forget(living, SECOND, objects=objects)
        with elsewhere_locked(living / ".lock", "record"):
            assert add(shared_mirror, living, SECOND).is_complete
        assert_as_it_was(living, datastore)

    def test_a_group_of_somebody_else(self, shared_mirror: Mirror, objects: Objects, living: Path) -> None:
        forget(living, SECOND, objects=objects)
        (living / "vm/100/owner").write_text("mallory@pbs\n")
        tampering = Tampering()
        report = add(shared_mirror, living, SECOND, tampering=tampering)
        assert "belongs to 'mallory@pbs' in the datastore and to 'backup@pbs!token' in the bucket" in (
            report.problems[0].reason
        )
        assert not (living / SECOND).exists()
        assert not [key for key in tampering.gets if "/.chunks/" in key]

    def test_an_unfinished_backup(self, shared_mirror: Mirror, objects: Objects, living: Path) -> None:
        forget(living, SECOND, objects=objects)
        (living / SECOND).mkdir()
        (living / SECOND / "drive-scsi0.img.tmp_fidx").write_bytes(b"")
        report = add(shared_mirror, living, SECOND)
        assert "an unfinished backup stands in its place" in report.problems[0].reason
        assert os.listdir(living / SECOND) == ["drive-scsi0.img.tmp_fidx"]

    def test_one_that_comes_meanwhile_is_left_as_it_is(
        self, shared_mirror: Mirror, objects: Objects, living: Path
    ) -> None:
        forget(living, SECOND, objects=objects)

        def finish_a_backup(key: str, body: bytes) -> bytes:
            if "/.chunks/" in key and not (living / SECOND).exists():
                (living / SECOND).mkdir()
                (living / SECOND / "index.json.blob").write_bytes(b"another's")
            return body

        report = add(shared_mirror, living, SECOND, tampering=Tampering(on_get=finish_a_backup))
        assert "it has come to stand in the datastore meanwhile" in report.problems[0].reason
        assert (living / SECOND / "index.json.blob").read_bytes() == b"another's"

    def test_another_restore(self, shared_mirror: Mirror, living: Path) -> None:
        descriptor = os.open(living / ".chunks", os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pytest.raises(RestoreError, match="Another mirrorfs is bringing chunks back"):
                shared_mirror.restore(living, manner=INTO)
        finally:
            os.close(descriptor)


class TestUnfit:
    """Refused before anything is changed."""

    def test_no_datastore(self, shared_mirror: Mirror, base: Path) -> None:
        with pytest.raises(RestoreError, match="is no datastore"):
            shared_mirror.restore(base, manner=INTO)
        assert list(base.iterdir()) == []

    def test_others_may_write_to_it(self, shared_mirror: Mirror, living: Path) -> None:
        living.chmod(0o777)
        with pytest.raises(RestoreError, match="others may write to it"):
            shared_mirror.restore(living, manner=INTO)

    @pytest.mark.parametrize("planted", ["link", "directory"])
    def test_a_planted_directory(self, shared_mirror: Mirror, living: Path, base: Path, planted: str) -> None:
        if planted == "link":
            (living / STAGING_NAME).symlink_to(base)
        else:
            (living / STAGING_NAME).mkdir()
            os.chown(living / STAGING_NAME, 12345, 12345)
        with pytest.raises(RestoreError, match="Cannot restore into"):
            shared_mirror.restore(living, manner=INTO)

    def test_a_planted_group(self, shared_mirror: Mirror, objects: Objects, living: Path, base: Path) -> None:
        forget(living, WEB, objects=objects)
        outside = base / "outside"
        outside.mkdir()
        (living / "host/web").symlink_to(outside)
        with pytest.raises(RestoreError, match="symbolic link"):
            add(shared_mirror, living, WEB)
        assert list(outside.iterdir()) == []

    def test_nothing_chosen_leaves_nothing(self, shared_mirror: Mirror, living: Path) -> None:
        with pytest.raises(RestoreError, match="no group vm/999"):
            shared_mirror.restore(living, Selection(groups=(GroupId.parse("vm/999"),)), manner=INTO)
        assert not (living / STAGING_NAME).exists()


def test_metadata_only_uses_the_chunks_that_are_there(
    shared_mirror: Mirror, datastore: Path, objects: Objects, living: Path
) -> None:
    forget(living, SECOND, objects=objects, chunks=False)
    gone = forget(living, ENCRYPTED, objects=objects)
    tampering = Tampering()
    report = shared_mirror.restore(living, manner=Manner(into=True, metadata_only=True), tampering=tampering)
    assert [snapshot.path for snapshot in report.restored] == [SECOND]
    assert [snapshot.path for snapshot in report.incomplete] == [ENCRYPTED]
    assert "is missing or damaged in the datastore" in report.problems[0].reason
    assert not [key for key in tampering.gets if "/.chunks/" in key]
    assert gone
    assert not half_snapshots(living)
