"""Chunks that a mounted datastore has lost come back from its mirror, which has nothing to do about it in the end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.end_to_end.mirrors import MirrorUnderTest
from tests.end_to_end.test_restore_into import copy, writer_of
from tests.harness.backup import WrittenSnapshot
from tests.harness.names import chunk_path
from tests.harness.scan import compare_datastores
from tests.harness.steps import StepFile


@dataclass(frozen=True, slots=True)
class Damaged:
    """A mounted datastore that has lost chunks, and how it was before."""

    mirror: MirrorUnderTest
    before: Path
    snapshots: tuple[WrittenSnapshot, ...]
    quarantined: str
    missing: str

    def assert_healed(self) -> None:
        mirror = self.mirror
        mirror.wait()
        assert compare_datastores(self.before, mirror.datastore).differences == ()
        assert not list(mirror.datastore.glob(".chunks/*/*.bad"))
        assert not list(mirror.datastore.glob(".chunks/*/*.tmp_*"))
        status = mirror.status()
        assert status["quarantined"]["count"] == 0
        assert status["problems"] == []
        assert status["backlog"]["items"] == 0
        assert mirror.audit() == []
        assert mirror.published() == sorted(snapshot.path for snapshot in self.snapshots)
        with writer_of(mirror) as writer:
            assert [writer.verify(snapshot.name).state for snapshot in self.snapshots] == ["ok", "ok"]


def damage(mirror: MirrorUnderTest, *options: str) -> Damaged:
    """Bit rot in one chunk, found by PBS's verify; another one is taken away."""
    mirror.mount(*options)
    with writer_of(mirror) as writer:
        snapshots = (writer.backup("vm/1"), writer.backup("ct/2", encrypted=True))
    mirror.wait()
    mirror.umount()
    before = mirror.base / "before"
    copy(mirror.datastore, before)
    quarantined, missing = max(snapshots[0].chunks), max(snapshots[1].chunks)
    with writer_of(mirror) as writer:
        writer.corrupt_chunk(quarantined)
    mirror.mount(*options)
    with writer_of(mirror) as writer:
        assert writer.verify(snapshots[0].name).bad == (quarantined,)
        writer.set_verify_state(snapshots[0].name, "ok")
        copy(mirror.datastore / snapshots[0].path / "index.json.blob", before / snapshots[0].path / "index.json.blob")
    (mirror.datastore / chunk_path(missing)).unlink()
    mirror.run("wait", str(mirror.datastore), "--timeout", "60")
    assert mirror.status()["quarantined"]["count"] == 1
    return Damaged(mirror, before, snapshots, quarantined, missing)


@pytest.mark.parametrize("chunk_store", ["native", "fuse"])
def test_under_a_mount_that_knows_the_bucket(mirror: MirrorUnderTest, chunk_store: str) -> None:
    damaged = damage(mirror, "--chunk-store", chunk_store)
    dry = mirror.succeed("heal", str(mirror.datastore), "--dry-run")
    assert "2 could be healed, 0 lost" in dry
    done = mirror.succeed("heal", str(mirror.datastore))
    assert "2 healed, 1 .bad file removed, 0 lost, 0 other files damaged." in done
    damaged.assert_healed()


@pytest.mark.parametrize(
    ("step", "number"),
    [("insertion.before-rename", 1), ("insertion.inserted", 1), ("insertion.before-end-of-quarantine", 1)],
)
def test_killed_and_given_again(mirror: MirrorUnderTest, step: str, number: int) -> None:
    damaged = damage(mirror)
    steps = StepFile(mirror.base / "heal-step")
    mirror.extra_environment.update(steps.environment)
    steps.arm(step, number)
    killed = mirror.run("heal", str(mirror.datastore))
    assert killed.returncode != 0
    assert [name for name, _ in steps.fired] == [step]
    quarantined = mirror.datastore / chunk_path(damaged.quarantined)
    assert quarantined.exists() or quarantined.with_name(f"{quarantined.name}.0.bad").exists()
    mirror.succeed("heal", str(mirror.datastore))
    damaged.assert_healed()


def test_without_a_mount(mirror: MirrorUnderTest) -> None:
    damaged = damage(mirror)
    mirror.umount()
    unknown = mirror.run("heal", str(mirror.datastore))
    assert unknown.returncode == 2
    assert "Give --from" in unknown.stderr
    mirror.succeed("heal", str(mirror.datastore), "--from", mirror.url, *mirror.store_options())
    mirror.mount()
    damaged.assert_healed()


def test_a_dead_mount(mirror: MirrorUnderTest) -> None:
    mirror.mount()
    mirror.kill_mount()
    refused = mirror.run("heal", str(mirror.datastore), "--from", mirror.url, *mirror.store_options())
    assert refused.returncode == 1
    assert "was killed: mount it again, or unmount it, then heal it" in refused.stderr
