"""Ordinary acts on a machine that must not cost a last copy: it is cloned, an older copy of its disk is put back, its
datastore is mirrored under a second path."""

from __future__ import annotations

import random
import shutil
import subprocess
from pathlib import Path

from tests.harness.accidents import accident, put_an_older_state_back, some_operations
from tests.harness.elsewhere import HOST, run_elsewhere
from tests.harness.formats import MANIFEST_NAME
from tests.harness.machine import QUESTIONS
from tests.harness.mirror import Mirror
from tests.harness.operations import run_backup
from tests.harness.world import World

_FEWEST_FOR_A_LOSS = 4
_WAIT_SECONDS = 60.0
_CONTENT = ".cnt/"


@accident(weight=2)
def clone_of_the_host(world: World, choice: random.Random) -> None:
    """A copy of the machine, renamed, mounts with the copied state: it is refused, and says why."""
    world.quieten_store()
    world.disarm_step()
    world.settle()
    with world.without_mirror():
        done = run_elsewhere(world.mirror, *world.mirror.mount_arguments())
        if done.returncode != 1 or f"on {HOST}" not in done.stderr:
            world.statistics.violate([f"P5 a clone was not refused by name: {done.returncode} {done.stderr.strip()}"])
            world.mirror.umount()
            world.mirror.detach_dead()
    world.statistics.count_fault("clone of the host")
    some_operations(world, choice)


@accident(weight=2)
def second_mirror_over_one_directory(world: World, choice: random.Random) -> None:
    """The datastore's own directory, under another path: it is refused."""
    base = world.older_state.parent / "second"
    alias = base / "datastore"
    alias.mkdir(parents=True, exist_ok=True)
    world.mount()
    subprocess.run(["mount", "--bind", str(world.backing), str(alias)], check=True, capture_output=True)
    try:
        mirror = world.mirror
        second = Mirror(alias, base / "state", f"{mirror.url}-second", mirror.endpoint_url, mirror.extra_environment)
        sentence = second.mount()
        if mirror.is_alive() and (sentence is None or "mirrored already" not in sentence):
            world.statistics.violate([f"P5 a second mirror over one directory was not refused: {sentence}"])
        if sentence is None:
            second.umount()
    finally:
        subprocess.run(["umount", "--lazy", str(alias)], check=True, capture_output=True)
        shutil.rmtree(base, ignore_errors=True)
    world.statistics.count_fault("second mirror over one directory")
    some_operations(world, choice)


@accident(weight=3)
def newest_snapshots_lost(world: World, choice: random.Random) -> None:
    """An older copy of the datastore, and perhaps of the state, is put back: what it lacks stays in the bucket."""
    world.settle()
    newest = {path.rpartition("/")[0]: path for path in sorted(world.model.snapshots)}
    published = [path for path in newest.values() if world.read_object(f".cnt/{path}/{MANIFEST_NAME}") is not None]
    if len(world.model.snapshots) < _FEWEST_FOR_A_LOSS or not published:
        return
    lost = choice.choice(published)
    with world.without_mirror():
        shutil.rmtree(world.backing / lost)
        world.model.removed_below(lost)
    if choice.random() < 0.5:
        put_an_older_state_back(world, choice)
    # What fails here fails for other reasons, and is seen when all is settled.
    world.mirror.wait(_WAIT_SECONDS)
    # By a clock that was wrong meanwhile, the record of its coming may be younger than what came of it.
    if world.clock.jumps == 0 and world.read_object(f".cnt/{lost}/{MANIFEST_NAME}") is None:
        world.statistics.violate([f"P5 .cnt/{lost}: it was not seen to go, nobody has approved, and it is gone"])
    world.statistics.count_fault("newest snapshot of a group lost")


@accident(weight=3)
def rollback(world: World, choice: random.Random) -> None:
    """The datastore, the state, or both are put back as they were a while ago, as by a snapshot of their disks."""
    world.settle()
    parts = choice.choice((("datastore",), ("state",), ("datastore", "state")))
    places = {"datastore": world.backing, "state": world.mirror.state}
    base = world.older_state.parent / "rollback"
    base.mkdir()
    with world.without_mirror():
        for part in parts:
            _copy(places[part], base / part)
        before = world.model.copied()
    some_operations(world, choice)
    run_backup(world, choice)
    world.settle()
    asked = world.statistics.checks[QUESTIONS]
    with world.without_mirror():
        world.let_late_requests_end()
        published = _published(world)
        for part in parts:
            _put_back(base / part, places[part])
        if "datastore" in parts:
            world.model.put_back(before)
        if "state" in parts:
            world.administrator.forget()
    shutil.rmtree(base)
    world.mirror.wait(_WAIT_SECONDS)
    # Where the mount asked, and was told that all of it was meant, nothing is held.
    if world.clock.jumps == 0 and world.statistics.checks[QUESTIONS] == asked:
        world.statistics.violate(
            f"P5 .cnt/{path}: the datastore was put back to before it, nobody has approved, and it is gone"
            for path in sorted(published - _published(world))
        )
    world.statistics.count_fault(f"rollback of {' and '.join(parts)}")
    some_operations(world, choice)


def _published(world: World) -> set[str]:
    suffix = f"/{MANIFEST_NAME}"
    keys = world.route.bucket().list(_CONTENT)
    return {key[len(_CONTENT) : -len(suffix)] for key in keys if key.endswith(suffix)}


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--archive", str(source), str(target)], check=True, capture_output=True)


def _put_back(copied: Path, target: Path) -> None:
    for entry in target.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    subprocess.run(["cp", "--archive", f"{copied}/.", str(target)], check=True, capture_output=True)
