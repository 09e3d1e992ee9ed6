"""Ordinary acts on a machine: an older copy put back, a clone, a directory mirrored twice. None deletes a last copy."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_crashes import TINY
from tests.harness.writer import DatastoreWriter

pytestmark = pytest.mark.timeout(140)


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
