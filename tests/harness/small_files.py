"""The small files beside the backups, with something in them that PBS never writes: what the bucket has stays good."""

from __future__ import annotations

import os
import random
from pathlib import Path

from tests.harness.accidents import accident, mount_again, some_operations
from tests.harness.operations import any_snapshot
from tests.harness.world import World

_BAD = {
    "owner": (b"", b"\0" * 12, b"nobody\n", b"\xff@pam\n"),
    "notes": (b"\xff\xfe\0", b"\xc3\x28"),
}
_MARKER = ".protected"
_WAIT_SECONDS = 60.0


@accident(weight=2)
def small_file_of_anything(world: World, choice: random.Random) -> None:
    """A group's owner or notes, or the mark of a protected snapshot, become nonsense for a while."""
    world.settle()
    snapshot = any_snapshot(world, choice)
    if snapshot is None:
        return
    kind = choice.choice((*_BAD, _MARKER))
    path = f"{snapshot if kind == _MARKER else snapshot.rpartition('/')[0]}/{kind}"
    file = world.datastore / path
    good = file.read_bytes() if file.exists() else None
    before = world.read_object(f".cnt/{path}")

    def spoil() -> None:
        file.unlink(missing_ok=True)
        if kind == _MARKER:
            file.mkdir()
        else:
            file.write_bytes(choice.choice(_BAD[kind]))

    def mend() -> None:
        file.rmdir() if kind == _MARKER else file.unlink()
        if good is not None:
            file.write_bytes(good)
        for changed in (file.parent, *([] if good is None else [file])):
            _sync(changed)

    if not world.perform(f"a bad {kind}", [], spoil):
        return
    if choice.random() < 0.5:
        mount_again(world)
    # It says that not everything is mirrored, or that all is settled but this; both are true.
    world.mirror.wait(_WAIT_SECONDS)
    if world.read_object(f".cnt/{path}") != before:
        world.statistics.violate([f"P2 .cnt/{path}: a bad file has taken the place of what was there"])
    problems = {problem["name"] for problem in world.mirror.status().get("problems", ())}
    if not problems & {path, path.rpartition("/")[0]}:
        world.statistics.violate([f"P2 {path} is bad, and status does not name it"])
    world.perform(f"{kind} put right", [], mend)
    world.statistics.count_fault(f"a bad {kind}")
    some_operations(world, choice)


def _sync(path: Path) -> None:
    """So that no power cut brings the bad one back."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
