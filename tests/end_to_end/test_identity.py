"""Ordinary acts on a machine: an older copy put back, a clone, a directory mirrored twice. None deletes a last copy."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import PROGRAM, MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.names import chunk_path
from tests.harness.writer import DatastoreWriter


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory in memory: datastores are copied here."""
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as path:
        yield Path(path)


def writer_of(mirror: MirrorUnderTest) -> DatastoreWriter:
    return DatastoreWriter(mirror.datastore, seed=47, default_plan=TINY)


def back_up(mirror: MirrorUnderTest, *groups: str) -> list[str]:
    with writer_of(mirror) as writer:
        return [writer.backup(group).path for group in groups]


def held(mirror: MirrorUnderTest) -> dict[str, str]:
    return {removal["snapshot"]: removal["reason"] for removal in mirror.status()["retention"]["held"]}


def copy(source: Path, target: Path) -> None:
    if target.exists():
        shutil.rmtree(target)
    shutil.copytree(source, target, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))


def put_back(copied: Path, target: Path) -> None:
    """What stands there now is replaced by an older copy, names and all."""
    for entry in target.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(copied, target, symlinks=True, dirs_exist_ok=True)


@pytest.mark.parametrize("with_state", [False, True])
def test_an_older_copy_of_the_datastore_deletes_no_newer_snapshot(mirror: MirrorUnderTest, with_state: bool) -> None:
    mirror.mount()
    older = back_up(mirror, "vm/1", "vm/2", "vm/3", "vm/1", "vm/2", "vm/3")
    mirror.wait()
    mirror.umount()
    copy(mirror.datastore, mirror.base / "older-datastore")
    copy(mirror.state, mirror.base / "older-state")
    mirror.mount()
    newer = back_up(mirror, "vm/1", "vm/2")
    mirror.wait()
    mirror.umount()
    copy(mirror.datastore, mirror.base / "newer-datastore")
    put_back(mirror.base / "older-datastore", mirror.datastore)
    if with_state:
        put_back(mirror.base / "older-state", mirror.state)
    mirror.mount()
    mirror.wait()
    assert mirror.published() == sorted([*older, *newer])
    assert held(mirror) == dict.fromkeys(newer, "unseen")
    assert mirror.auditor().audit_bucket() == []
    shown = mirror.succeed("status", str(mirror.datastore))
    assert "2 snapshots are not in the datastore and were not seen to go" in shown
    assert "the first at the latest until" in shown
    # What comes back is not held any more.
    for chunk in (mirror.base / "newer-datastore" / ".chunks").glob("*/*"):
        target = mirror.datastore / chunk.relative_to(mirror.base / "newer-datastore")
        target.parent.mkdir(exist_ok=True)
        if not target.exists():
            shutil.copy(chunk, target)
    shutil.copytree(mirror.base / "newer-datastore" / newer[0], mirror.datastore / newer[0])
    mirror.wait()
    assert held(mirror) == {newer[1]: "unseen"}
    # Or approved of.
    failed = mirror.run("retention", "approve", str(mirror.datastore), "vm/7")
    assert failed.returncode == 1
    assert "no removal is held below vm/7" in failed.stderr
    assert newer[1] in mirror.succeed("retention", "approve", str(mirror.datastore), "vm/2")
    mirror.wait()
    assert mirror.published() == sorted([*older, newer[0]])
    assert mirror.audit() == []


def test_a_prune_while_not_mounted_is_followed_and_a_loss_goes_with_leave(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    made = back_up(mirror, "vm/1", "vm/1", "vm/1", "vm/2", "vm/2")
    mirror.wait()
    mirror.umount()
    shutil.rmtree(mirror.datastore / made[0])
    mirror.mount()
    mirror.wait()
    assert mirror.published() == sorted(made[1:])
    mirror.umount()
    shutil.rmtree(mirror.datastore / made[4])
    mirror.mount()
    mirror.wait()
    assert held(mirror) == {made[4]: "unseen"}
    mirror.umount()
    mirror.mount("--allow-removals")
    mirror.wait()
    assert held(mirror) == {}
    assert mirror.published() == sorted(made[1:4])
    assert mirror.audit() == []


def test_a_forget_that_waits_in_the_journal_is_seen_by_the_next_mount(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    made = back_up(mirror, "vm/1", "vm/2", "vm/2", "vm/2")
    mirror.wait()
    mirror.kill_uploader()
    shutil.rmtree(mirror.datastore / made[0])
    mirror.umount()
    mirror.mount()
    mirror.wait()
    assert held(mirror) == {}
    assert mirror.published() == sorted(made[1:])


# --- whose the bucket is


def on_another_host(mirror: MirrorUnderTest, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command as if this machine had another host name."""
    script = 'hostname clone && exec "$0" "$@"'
    return subprocess.run(
        ["unshare", "--uts", "sh", "-c", script, *PROGRAM, *arguments],
        env=mirror.environment(),
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def put(mirror: MirrorUnderTest, name: str, body: bytes) -> None:
    mirror.store.access.client().put_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{name}", Body=body)


def delete(mirror: MirrorUnderTest, *names: str) -> None:
    for name in names:
        mirror.store.access.client().delete_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{name}")


def keys(mirror: MirrorUnderTest, below: str = "") -> list[str]:
    start = f"{mirror.name}/"
    return [key.removeprefix(start) for key in mirror.store.access.keys(mirror.bucket, f"{start}{below}")]


def test_a_clone_is_refused_and_a_renamed_host_is_asked_once(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    (made,) = back_up(mirror, "vm/1")
    mirror.wait()
    in_use = json.loads(get(mirror, ".in-use"))["hostname"]
    assert in_use == f"{socket.gethostname()} (mirrorfs of {mirror.datastore})"
    mirror.umount()
    # umount leaves both standing.
    assert {".in-use", ".mirrorfs/claim.json"} <= set(keys(mirror))
    before = get(mirror, ".mirrorfs/claim.json")
    refused = on_another_host(mirror, *mirror.mount_arguments())
    assert refused.returncode == 1
    assert f"of {mirror.datastore} on {socket.gethostname()}" in refused.stderr
    assert f"for {mirror.datastore} on clone" in refused.stderr
    assert "--take-over" in refused.stderr
    assert get(mirror, ".mirrorfs/claim.json") == before
    taken = on_another_host(mirror, *mirror.mount_arguments("--take-over"))
    assert taken.returncode == 0, taken.stderr
    mirror.wait()
    mirror.umount()
    assert on_another_host(mirror, *mirror.mount_arguments()).returncode == 0
    mirror.umount()
    assert mirror.run(*mirror.mount_arguments()).returncode == 1
    assert mirror.published() == [made]


def test_a_take_over_while_it_runs_stops_it(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    (made,) = back_up(mirror, "vm/1")
    mirror.wait()
    claim = json.loads(get(mirror, ".mirrorfs/claim.json"))
    put(mirror, ".mirrorfs/claim.json", json.dumps({**claim, "hostname": "other", "epoch": "other"}).encode())
    with writer_of(mirror) as writer:
        writer.backup("vm/1")
        waited = mirror.run("wait", str(mirror.datastore), "--timeout", "60")
        assert waited.returncode == 1
        assert "taken over: it is the mirror of" in waited.stderr
        writer.forget_group("vm/1")
    shown = mirror.run("status", str(mirror.datastore))
    assert shown.returncode == 1
    assert f"{mirror.datastore} on other" in shown.stdout
    assert "mirrorfs_uploader_refused{" in mirror.succeed("metrics")
    assert "taken over" in mirror.log
    assert mirror.published() == [made]
    assert mirror.run("wait", str(mirror.datastore), "--timeout", "60").returncode == 1
    # It stays so, also for the uploader that comes after this one.
    mirror.kill_uploader()
    assert mirror.run("wait", str(mirror.datastore), "--timeout", "60").returncode == 1
    assert mirror.published() == [made]
    mirror.umount()
    mirror.mount("--take-over")
    mirror.wait()
    assert held(mirror) == {made: "stranger"}
    mirror.approve_removals()
    mirror.wait()
    assert mirror.audit() == []


def test_a_server_that_claims_collects_and_leaves_is_noticed(mirror: MirrorUnderTest) -> None:
    """Seen with PBS 4.2.3: `.in-use` is its own, its garbage collection deletes chunks, `datastore remove` ends it."""
    mirror.mount()
    with writer_of(mirror) as writer:
        first = writer.backup("vm/1", data="same")
        mirror.wait()
        put(mirror, ".in-use", b'{"hostname":"pbs1"}')
        chunks = keys(mirror, ".chunks/")
        delete(mirror, *chunks, ".in-use")
        stranger = "vm/9/2026-01-01T00:00:00Z"
        for name in keys(mirror, f".cnt/{first.path}/"):
            put(mirror, name.replace(first.path, stranger), get(mirror, name))
        second = writer.backup("vm/1", data="same")
        mirror.wait()
    assert "has ended in order to begin again" in mirror.log
    # What it has made there stays until somebody says otherwise; what it has taken away is sent again.
    assert mirror.published() == sorted([first.path, second.path, stranger])
    assert held(mirror) == {stranger: "stranger"}
    assert set(chunks) <= set(keys(mirror, ".chunks/"))
    assert json.loads(get(mirror, ".in-use"))["hostname"].endswith(f"(mirrorfs of {mirror.datastore})")
    assert mirror.auditor().audit_bucket() == []
    mirror.approve_removals()
    mirror.wait()
    assert mirror.audit() == []


def test_a_server_that_is_there_is_refused_and_noticed(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    (made,) = back_up(mirror, "vm/1")
    mirror.wait()
    put(mirror, ".in-use", b'{"hostname":"pbs1"}')
    back_up(mirror, "vm/1")
    assert "in use by pbs1 now" in mirror.run("wait", str(mirror.datastore), "--timeout", "60").stderr
    assert mirror.published() == [made]
    mirror.umount()
    refused = mirror.run(*mirror.mount_arguments())
    assert refused.returncode == 1
    assert "in use by pbs1" in refused.stderr
    # It leaves, and all its chunks go with it.
    delete(mirror, ".in-use", *keys(mirror, ".chunks/"))
    mirror.mount()
    mirror.wait()
    assert len(mirror.published()) == 2
    assert mirror.audit() == []


def test_a_confirmed_object_that_is_gone_has_the_bucket_compared(mirror: MirrorUnderTest) -> None:
    """As with a state that was put back, of which no claim tells."""
    mirror.mount()
    with writer_of(mirror) as writer:
        first = writer.backup("vm/1", data="same")
        mirror.wait()
        delete(mirror, *keys(mirror, ".chunks/"))
        second = writer.backup("vm/2", data="same")
        mirror.wait()
    assert "is not in the bucket, though it was confirmed" in mirror.log
    assert mirror.published() == sorted([first.path, second.path])
    assert mirror.audit() == []


def test_a_state_put_back_alone_publishes_nothing_whose_chunks_are_gone(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    with writer_of(mirror) as writer:
        kept = writer.backup("vm/2")
        gone = writer.backup("vm/1", data="same")
        mirror.wait()
        # A copy of what runs, as a snapshot of the system disk is one.
        copy(mirror.state, mirror.base / "older-state")
        writer.forget(gone.name)
        writer.collect_garbage(age_seconds=0, safety_seconds=0)
        mirror.wait()
        assert not {chunk_path(digest) for digest in gone.chunks - kept.chunks} & set(keys(mirror, ".chunks/"))
    mirror.umount()
    put_back(mirror.base / "older-state", mirror.state)
    mirror.mount()
    assert "this one is an old copy" in mirror.log
    with writer_of(mirror) as writer:
        writer.backup("vm/3", data="same")
    mirror.wait()
    assert mirror.audit() == []


def get(mirror: MirrorUnderTest, name: str) -> bytes:
    return mirror.store.access.client().get_object(Bucket=mirror.bucket, Key=f"{mirror.name}/{name}")["Body"].read()


# --- one directory, one mirror


@pytest.mark.parametrize("bound", ["before the mount", "after the mount"])
def test_one_directory_has_one_mirror_by_whatever_path_it_is_reached(mirror: MirrorUnderTest, bound: str) -> None:
    other = MirrorUnderTest(mirror.base / "other", mirror.store, mirror.bucket, mirror.endpoint_url, f"{mirror.name}-b")
    alias = other.datastore
    if bound == "before the mount":
        bind(mirror.datastore, alias)
        mirror.mount()
    else:
        mirror.mount()
        bind(mirror.datastore, alias)
    try:
        refused = other.run(*other.mount_arguments())
        assert refused.returncode == 1
        assert ("mirrored already" if bound == "before the mount" else "already mounted") in refused.stderr
        assert str(mirror.datastore if bound == "before the mount" else alias) in refused.stderr
        # Not even while the first one dies: the kernel keeps the lock, and gives it back.
        (made,) = back_up(mirror, "vm/1")
        mirror.wait()
        if bound == "before the mount":
            mirror.kill_mount()
            mirror.detach_dead()
            other.mount()
            other.wait()
            assert other.published() == [made]
            again = mirror.run(*mirror.mount_arguments())
            assert again.returncode == 1
            assert f"as {alias}" in again.stderr
            other.umount()
            mirror.mount()
    finally:
        subprocess.run(["umount", "--lazy", str(alias)], check=False, capture_output=True)


def bind(source: Path, target: Path) -> None:
    subprocess.run(["mount", "--bind", str(source), str(target)], check=True, capture_output=True)
