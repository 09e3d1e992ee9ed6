"""The native chunk store: attached and taken away, and what changes in it past the mount is mirrored all the same."""

from __future__ import annotations

import hashlib
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mirrorfs.filesystem.mount_table import MountEntry, mount_at
from mirrorfs.journal.journal import JournalReader
from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_bad_input import eventually
from tests.harness.formats import encode_blob
from tests.harness.names import chunk_path
from tests.stores.seaweedfs import StoreServer

NATIVE = {"in_use": "native", "reason": "", "event_overflows": 0}


def through_fuse(reason: str) -> dict[str, Any]:
    """What `status` says of the chunk store where chunks pass through FUSE."""
    return {"in_use": "fuse", "reason": reason, "event_overflows": 0}


# More than the kernel's queue of events holds; of each name two are told.
_BEYOND_THE_QUEUE = 17_000


@pytest.fixture
def native(mirror: MirrorUnderTest) -> MirrorUnderTest:
    """A mirror that refuses to be anything else than native; not yet mounted."""
    mirror.mount_options = ("--chunk-store", "native")
    return mirror


def chunk(label: str) -> tuple[str, bytes]:
    """A chunk: its digest and its file."""
    content = label.encode() * 100
    return hashlib.sha256(content).hexdigest(), encode_blob(content)


def insert(mirror: MirrorUnderTest, *labels: str, chunks: Path | None = None) -> list[str]:
    """Insert chunks as PBS does, by a rename; gives their digests. `chunks` is a way to `.chunks`."""
    digests = []
    for label in labels:
        digest, raw = chunk(label)
        path = (chunks or mirror.datastore / ".chunks") / digest[:4] / digest
        path.parent.mkdir(exist_ok=True)
        with open(f"{path}.tmp_aB3dE6", "wb") as file:
            file.write(raw)
            os.rename(file.name, path)
        digests.append(digest)
    return digests


@contextmanager
def opened_chunks(mirror: MirrorUnderTest) -> Iterator[Path]:
    """A way to `.chunks` that does not lead through the mount: through a descriptor, as a garbage collection has it."""
    descriptor = os.open(mirror.datastore / ".chunks", os.O_PATH | os.O_DIRECTORY)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def in_bucket(mirror: MirrorUnderTest) -> set[str]:
    """The digests of the chunks in the bucket."""
    keys = mirror.store.access.keys(mirror.bucket, f"{mirror.name}/.chunks/")
    return {key.rpartition("/")[2] for key in keys}


def attached(mirror: MirrorUnderTest) -> MountEntry | None:
    """What is mounted at `.chunks` in the mount."""
    return mount_at(str(mirror.datastore / ".chunks"))


def mounts_below(path: Path) -> list[str]:
    """All mount points at or below a path, by /proc."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [point for point in points if point == str(path) or point.startswith(f"{path}/")]


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that gets no processor time."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def holding(path: Path) -> Iterator[int]:
    """A process that has something open; gives its number."""
    program = "import os, sys; os.open(sys.argv[1], os.O_RDONLY); print('open', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd="/"
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"open\n"
        yield process.pid
    finally:
        process.kill()
        process.communicate()


# -- attach ------------------------------------------------------------------------------------------------


def test_it_is_attached_and_what_it_holds_is_mirrored(native: MirrorUnderTest) -> None:
    backing = (native.datastore / ".chunks").stat()
    native.mount()
    assert native.status()["chunk_store"] == NATIVE
    assert "chunk store native" in native.succeed("status", str(native.datastore))
    seen = (native.datastore / ".chunks").stat()
    assert (seen.st_dev, seen.st_ino) == (backing.st_dev, backing.st_ino)
    assert native.datastore.stat().st_dev != seen.st_dev
    options = subprocess.run(
        ["findmnt", "--noheadings", "--output", "OPTIONS", "--mountpoint", str(native.datastore / ".chunks")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {"nosuid", "nodev"} <= set(options.strip().split(","))
    with native.writer() as writer:
        writer.backup("vm/1")
        writer.backup("vm/1")
    native.wait()
    assert len(native.published()) == 2
    assert native.audit() == []
    native.umount()
    assert mounts_below(native.base) == []
    assert native.log.count("chunks are native") == 1


def test_a_read_only_mount_has_read_only_chunks(native: MirrorUnderTest) -> None:
    (digest,) = insert(native, "there")
    native.mount("-o", "ro")
    with pytest.raises(OSError, match="Read-only"):
        os.unlink(native.datastore / chunk_path(digest))
    assert (native.datastore / chunk_path(digest)).read_bytes() == chunk("there")[1]


@pytest.mark.parametrize("choice", ["auto", "native"])
def test_chunks_that_pbs_makes_through_the_mount_are_attached(mirror: MirrorUnderTest, choice: str) -> None:
    (mirror.datastore / ".chunks").rmdir()
    mirror.mount("--chunk-store", choice)
    assert mirror.status()["chunk_store"] == through_fuse("the datastore has no .chunks yet")
    with mirror.writer() as writer:
        writer.create(chunk_directories="when needed")
        eventually(lambda: mirror.status()["chunk_store"] == NATIVE)
        writer.backup("vm/1")
    mirror.wait()
    assert len(mirror.published()) == 1
    assert mirror.audit() == []


def test_chunks_on_a_file_system_of_their_own_are_attached(native: MirrorUnderTest) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "none", str(native.datastore / ".chunks")], check=True)
    try:
        own = (native.datastore / ".chunks").stat().st_dev
        native.mount()
        assert native.status()["chunk_store"] == NATIVE
        assert (native.datastore / ".chunks").stat().st_dev == own
        with native.writer() as writer:
            writer.backup("vm/1")
        native.wait()
        assert native.audit() == []
        native.umount()
        assert mounts_below(native.base) == [str(native.datastore / ".chunks")]
        native.mount("--chunk-store", "fuse")
        assert native.status()["chunk_store"]["in_use"] == "fuse"
        native.umount()
    finally:
        native.tear_down()
        subprocess.run(["umount", str(native.datastore / ".chunks")], check=True)


@pytest.fixture
def native_in_memory(store: StoreServer, shared_bucket: str, prefix: str) -> Iterator[MirrorUnderTest]:
    """A native mirror of a datastore that has all its 65,536 directories, where making them costs little."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as base:
        under_test = MirrorUnderTest(Path(base), store, shared_bucket, store.endpoint_url, prefix)
        under_test.mount_options = ("--chunk-store", "native")
        with under_test.writer() as writer:
            writer.create(chunk_directories="all")
        yield under_test
        under_test.tear_down()


def test_a_datastore_can_be_destroyed_through_the_mount_and_made_again(native_in_memory: MirrorUnderTest) -> None:
    native = native_in_memory
    native.mount()
    with native.writer() as writer:
        snapshot = writer.backup("vm/1").name.path
    native.wait()
    assert native.published() == [snapshot]
    # As PBS does it: one directory after the other, `.chunks` itself at last.
    for name in ("vm", ".chunks", ".lock"):
        done = subprocess.run(["rm", "-r", str(native.datastore / name)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def chunk_store() -> dict[str, Any]:
        # A busy machine may have the queue of events overflow, which is made up for.
        return {**native.status()["chunk_store"], "event_overflows": 0}

    assert chunk_store() == through_fuse("a directory of it was removed")
    native.wait()
    assert native.published() == []
    assert in_bucket(native) == set()
    with native.writer() as writer:
        writer.create(chunk_directories="when needed")
        eventually(lambda: chunk_store() == NATIVE)
        writer.backup("vm/2")
    native.wait()
    assert native.audit() == []


# -- order -------------------------------------------------------------------------------------------------


def test_wait_and_reconcile_do_not_overtake_what_has_just_happened(native: MirrorUnderTest) -> None:
    native.mount()
    for number in range(8):
        inserted = insert(native, f"waited for {number}")
        native.wait()
        assert in_bucket(native) >= set(inserted)
    inserted = insert(native, "reconciled")
    native.reconcile()
    assert in_bucket(native) >= set(inserted)
    drained = insert(native, "drained")
    native.succeed("umount", "--drain", str(native.datastore))
    assert in_bucket(native) >= set(drained)


def test_a_chunk_that_returns_while_it_is_removed_is_there_in_the_end(native: MirrorUnderTest) -> None:
    labels = [f"chunk {number}" for number in range(40)]
    digests = insert(native, *labels)
    native.mount()
    native.wait()
    for _ in range(5):
        for digest in digests:
            os.unlink(native.datastore / chunk_path(digest))
        insert(native, *labels)
        native.wait()
        assert in_bucket(native) == set(digests)


def test_a_chunk_in_quarantine_keeps_its_object(native: MirrorUnderTest) -> None:
    digests = insert(native, "one", "two")
    native.mount()
    native.wait()
    for digest in digests:
        path = native.datastore / chunk_path(digest)
        path.rename(f"{path}.0.bad")
    native.wait()
    assert in_bucket(native) == set(digests)
    assert native.status()["quarantined"]["count"] == 2
    insert(native, "one")
    os.unlink(native.datastore / f"{chunk_path(digests[0])}.0.bad")
    os.unlink(native.datastore / f"{chunk_path(digests[1])}.0.bad")
    native.wait()
    assert in_bucket(native) == {digests[0]}
    assert native.status()["quarantined"]["count"] == 0


def test_other_directories_with_chunks_are_none_of_ours(native: MirrorUnderTest) -> None:
    """Another datastore on the same file system, and a directory that only looks like one of chunks."""
    elsewhere = native.base / "other" / ".chunks" / "abcd"
    elsewhere.mkdir(parents=True)
    native.mount()
    native.wait()
    before = _recorded(native)
    for directory in (elsewhere, native.base):
        for number in range(50):
            (directory / f"abcd{number:060x}").write_bytes(b"")
    native.wait()
    assert _recorded(native) == before


def _recorded(mirror: MirrorUnderTest) -> int:
    journal = JournalReader(str(mirror.state / "journal"))
    try:
        return journal.last_sequence()
    finally:
        journal.close()


# -- what was not told ---------------------------------------------------------------------------------------


def test_what_an_overflow_of_the_queue_swallows_is_found(native: MirrorUnderTest) -> None:
    kept, gone = insert(native, "kept", "gone")
    native.mount()
    native.wait()
    with opened_chunks(native) as chunks, stopped(native.mount_pid()):
        (chunks / "abcd").mkdir(exist_ok=True)
        for number in range(_BEYOND_THE_QUEUE):
            path = chunks / "abcd" / f"abcd{number:060x}"
            path.touch()
            path.unlink()
        new = insert(native, "swallowed", chunks=chunks)
        os.unlink(chunks / gone[:4] / gone)
    native.wait()
    assert "faster than it can be noted" in native.log
    assert in_bucket(native) == {kept, *new}


def test_names_are_compared_after_each_garbage_collection(native: MirrorUnderTest) -> None:
    native.mount()
    native.wait()
    with stopped(native.uploader_pid()):
        with native.writer() as writer:
            writer.collect_garbage()
        journal = JournalReader(str(native.state / "journal"))
        try:
            assert b".chunks" in [record.path for record in journal.read(0, 1000)]
        finally:
            journal.close()
    native.wait()


def test_what_was_not_read_when_it_was_killed_and_what_came_after_is_found(native: MirrorUnderTest) -> None:
    gone, kept = insert(native, "gone", "kept")
    native.mount()
    native.wait()
    with opened_chunks(native) as chunks:
        os.kill(native.mount_pid(), signal.SIGSTOP)
        unread = insert(native, "unread", chunks=chunks)
        native.kill_mount()
        with pytest.raises(OSError, match="not connected"):
            os.listdir(native.datastore)
        # What was reached once goes on being reached.
        dead = insert(native, "inserted while it was dead", chunks=chunks)
        os.unlink(chunks / gone[:4] / gone)
        assert (chunks / dead[0][:4] / dead[0]).read_bytes() == chunk("inserted while it was dead")[1]
    native.mount()
    assert len(mounts_below(native.base)) == 2
    native.wait()
    assert in_bucket(native) == {kept, *unread, *dead}
    assert native.audit() == []


# -- ends ----------------------------------------------------------------------------------------------------


def test_a_mount_in_use_stays_with_its_chunks_and_names_who_uses_them(native: MirrorUnderTest) -> None:
    (digest,) = insert(native, "in use")
    native.mount()
    for used in (native.datastore / chunk_path(digest), native.datastore):
        with holding(used) as pid:
            done = native.run("umount", str(native.datastore))
            assert done.returncode == 1
            assert f"(process {pid})" in done.stderr
            assert "and stays mounted" in done.stderr
            named = done.stderr.count("(process ")
            assert named == 1, done.stderr
            assert native.status()["chunk_store"] == NATIVE
    native.umount()
    assert mounts_below(native.base) == []


def test_what_others_have_mounted_stays(native: MirrorUnderTest) -> None:
    native.mount()
    (native.datastore / "vm").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", str(native.datastore / "vm")], check=True)
    try:
        done = native.run("umount", str(native.datastore))
        assert done.returncode == 1
        assert "another mount inside it" in done.stderr
        assert os.path.ismount(native.datastore / "vm")
        assert native.status()["chunk_store"] == NATIVE
    finally:
        subprocess.run(["umount", str(native.datastore / "vm")], check=True)


def test_a_recursive_unmount_by_hand_leaves_nothing(native: MirrorUnderTest) -> None:
    native.mount()
    process = os.pidfd_open(native.mount_pid())
    try:
        subprocess.run(["umount", "-R", str(native.datastore)], check=True)
        wait_for_end(process)
    finally:
        os.close(process)
    assert mounts_below(native.base) == []
    assert not (native.datastore / ".chunks").is_mount()


@pytest.mark.parametrize("in_use", [False, True])
def test_a_signal_ends_it_with_its_chunks(native: MirrorUnderTest, in_use: bool) -> None:
    (digest,) = insert(native, "there")
    native.mount()
    process = os.pidfd_open(native.mount_pid())
    try:
        with holding(native.datastore / (chunk_path(digest) if in_use else ".lock")) as pid:
            if not in_use:
                os.kill(pid, signal.SIGKILL)
            signal.pidfd_send_signal(process, signal.SIGTERM)
            wait_for_end(process)
    finally:
        os.close(process)
    assert mounts_below(native.base) == []
    native.mount()
    assert native.status()["chunk_store"] == NATIVE


def wait_for_end(process: int) -> None:
    """Wait until a process has ended."""
    assert select.select([process], [], [], 30)[0], "it does not end"


def test_a_dead_mount_is_taken_away_with_its_chunks(native: MirrorUnderTest) -> None:
    native.mount()
    native.kill_mount()
    assert attached(native) is not None
    native.succeed("umount", str(native.datastore))
    assert mounts_below(native.base) == []


def test_chunks_that_somebody_unmounts_pass_through_fuse(native: MirrorUnderTest) -> None:
    """With nothing out of date: what the kernel remembers of them is not kept while they can change past the mount."""
    native.mount()
    subprocess.run(["umount", str(native.datastore / ".chunks")], check=True)
    state = native.status()["chunk_store"]
    assert state == through_fuse("something has unmounted .chunks from it")
    digest, raw = chunk("through FUSE")
    assert not (native.datastore / chunk_path(digest)).exists()
    insert(native, "through FUSE")
    assert (native.datastore / chunk_path(digest)).read_bytes() == raw
    native.wait()
    assert in_bucket(native) == {digest}


# -- choice --------------------------------------------------------------------------------------------------


def test_without_file_handles_it_is_fuse_and_says_why(mirror: MirrorUnderTest) -> None:
    subprocess.run(["mount", "-t", "ramfs", "none", str(mirror.datastore)], check=True)
    try:
        mirror.create()
        refused = mirror.run(*mirror.mount_arguments("--chunk-store", "native"))
        assert refused.returncode == 1
        assert "chunks cannot be native" in refused.stderr
        assert "the file system cannot" in refused.stderr
        mirror.mount("--chunk-store", "auto")
        state = mirror.status()["chunk_store"]
        assert state["in_use"] == "fuse"
        assert "fanotify_mark" in state["reason"]
        assert mirror.log.count("chunks pass through FUSE") == 1
        with mirror.writer() as writer:
            writer.backup("vm/1")
        mirror.wait()
        assert mirror.audit() == []
        mirror.umount()
    finally:
        mirror.tear_down()
        subprocess.run(["umount", "--lazy", str(mirror.datastore)], check=False)


def test_chunks_behind_a_symbolic_link_stay_with_fuse(mirror: MirrorUnderTest) -> None:
    (mirror.datastore / ".chunks").rename(mirror.base / "chunks")
    (mirror.datastore / ".chunks").symlink_to(mirror.base / "chunks")
    mirror.mount("--chunk-store", "auto")
    state = mirror.status()["chunk_store"]
    assert state == through_fuse(".chunks is not a directory (a symbolic link?)")


def test_it_is_fuse_if_that_is_wanted(mirror: MirrorUnderTest) -> None:
    mirror.mount("--chunk-store", "fuse")
    assert mirror.status()["chunk_store"] == through_fuse("--chunk-store fuse")
    assert attached(mirror) is None
    with mirror.writer() as writer:
        writer.backup("vm/1")
    mirror.wait()
    assert mirror.audit() == []
