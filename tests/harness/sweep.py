"""A kill at every named step, one after the other: for each, what makes a process reach it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from tests.harness.accidents import (
    FILES_BEYOND_FREE_PAGES,
    lose_the_state,
    make_foreign_files,
    mount_again,
    put_an_older_state_back,
    remove_foreign_files,
    unreadable_chunk,
)
from tests.harness.names import parse_snapshot_path
from tests.harness.native_chunks import is_native, remove_a_chunk_directory
from tests.harness.operations import OPERATIONS, any_operation, run_backup
from tests.harness.retention import RetentionSettings
from tests.harness.retention_scenes import remove_group
from tests.harness.steps import MOUNT_STEPS as STEPS
from tests.harness.world import World

_TRIES = 4
# Files with names of 250 bytes: they make the journal outgrow the map of 16 MiB that it begins with.
_RECORDS_BEYOND_THE_MAP = 32_000
_MORE_THAN_A_LOCK = 2 * 86400.0
_UNTIL_IT_LOOKS_AGAIN = 40.0

Provocation = Callable[[World, random.Random], None]


def sweep_steps(world: World, choice: random.Random, steps: Sequence[str] = STEPS) -> list[str]:
    """Kill a process at each step, in an order by choice; gives the steps that nothing here has reached."""
    unreached = []
    for step in choice.sample(steps, len(steps)):
        if not _kill_at(world, step, choice):
            unreached.append(step)
        if world.violations():
            break
    return unreached


def _kill_at(world: World, step: str, choice: random.Random) -> bool:
    before = len(world.steps.fired)
    world.steps.arm(step)
    provoke = next((provoke for prefix, provoke in _PROVOCATIONS.items() if step.startswith(prefix)), _daily_work)
    for _ in range(_TRIES):
        provoke(world, choice)
        world.mount()
        if len(world.steps.fired) > before:
            break
    world.disarm_step()
    world.mount()
    return len(world.steps.fired) > before


def _daily_work(world: World, choice: random.Random) -> None:
    """A bit of everything that PBS does, and the time to carry it over."""
    for name in ("make namespace", "group notes or owner", "notes", "protection", "client log"):
        OPERATIONS[name].run(world, choice)
    run_backup(world, choice)
    for name in ("forget", "forget group", "remove namespace", "garbage collection"):
        if choice.random() < 0.7:
            OPERATIONS[name].run(world, choice)
    any_operation(world, choice)
    _carry_over(world)


def _carry_over(world: World) -> None:
    """Have everything done that is to be done, also what an administrator has to approve."""
    world.mount()
    world.mirror.wait(20)
    world.statistics.violate(world.administrator.look())
    if world.administrator.held:
        world.administrator.approve()
        world.mount()
        world.mirror.wait(20)


def _mount_again(world: World, choice: random.Random) -> None:
    mount_again(world)
    world.mirror.wait(20)


def _lose_state(world: World, choice: random.Random) -> None:
    run_backup(world, choice)
    world.mount()
    world.mirror.wait(20)
    lose_the_state(world, "state", choice.choice(("deleted", "damaged")), choice)
    world.mirror.wait(20)


def _damage_journal(world: World, choice: random.Random) -> None:
    lose_the_state(world, "journal", "damaged", choice)


def _older_state(world: World, choice: random.Random) -> None:
    put_an_older_state_back(world, choice)
    run_backup(world, choice)
    put_an_older_state_back(world, choice)
    world.mirror.wait(20)


def _full_state_disk(world: World, choice: random.Random) -> None:
    """Full until the journal has failed, and free until it is repaired."""
    # One that has grown has pages to spare, and needs no disk for a long time.
    lose_the_state(world, "journal", "deleted", choice)
    with world.trouble("the state disk is full"):
        world.state_disk.fill()
        with world.uploader_stopped():
            make_foreign_files(world, FILES_BEYOND_FREE_PAGES)
        _wait_until(world, lambda: world.mirror.status().get("journal_broken_since") is not None)
        world.state_disk.free()
        _wait_until(world, lambda: world.mirror.status().get("journal_broken_since", 0) is None)
    world.mount()
    remove_foreign_files(world)


def _wait_until(world: World, is_so: Callable[[], bool]) -> None:
    """Or until an armed step has killed, or for as long as anybody has patience."""
    before, deadline = len(world.steps.fired), time.monotonic() + _UNTIL_IT_LOOKS_AGAIN
    while len(world.steps.fired) == before and not is_so() and time.monotonic() < deadline:
        time.sleep(0.2)


def _unmount_from_outside(world: World, choice: random.Random) -> None:
    world.mirror.umount()


def _destroy_and_mount_again(world: World, choice: random.Random) -> None:
    remove_a_chunk_directory(world, choice)
    _wait_until(world, lambda: not is_native(world))
    mount_again(world)


def _sick_object(world: World, choice: random.Random) -> None:
    unreadable_chunk(world, choice)
    world.mount()
    world.mirror.reconcile()
    world.mirror.wait(20)


def _foreign_file(world: World, choice: random.Random) -> None:
    """A name that PBS would not make; it is passed through and never sent."""
    path = world.datastore / f"foreign-{choice.randrange(1000)}"

    def work() -> None:
        path.write_bytes(b"nothing of PBS")
        path.unlink()

    world.perform("foreign file", [], work)
    world.mount()
    world.mirror.wait(20)


def _many_records(world: World, choice: random.Random) -> None:
    """More and longer names change than the journal's first map holds, while nobody can carry them over."""
    with world.uploader_stopped():
        make_foreign_files(world, _RECORDS_BEYOND_THE_MAP)
    world.mount()
    remove_foreign_files(world)


def _forget_and_collect(world: World, choice: random.Random) -> None:
    """A snapshot is published and leaves, and its chunks after it."""
    run_backup(world, choice)
    _carry_over(world)
    # One that is in the bucket for sure, and none of whose chunks another has.
    for name in ("forget group", "garbage collection"):
        OPERATIONS[name].run(world, choice)
    _carry_over(world)


@contextmanager
def _mounted_with(world: World, retention: RetentionSettings) -> Iterator[None]:
    """Another retention than the world's own while this lasts."""
    own = world.mirror.mount_options
    with world.without_mirror():
        world.mirror.mount_options = retention.mount_options
    try:
        yield
    finally:
        with world.without_mirror():
            world.mirror.mount_options = own


def _forget_and_keep_nothing(world: World, choice: random.Random) -> None:
    """A snapshot that leaves goes at once, without a copy that takes over what it references."""
    with _mounted_with(world, replace(world.retention, delete_after=0)):
        _forget_and_collect(world, choice)


def _hold_every_removal(world: World, choice: random.Random) -> None:
    with _mounted_with(world, replace(world.retention, max_delete_fraction=0.01)):
        _forget_and_collect(world, choice)


def _keep_until_it_is_over(world: World, choice: random.Random) -> None:
    """A snapshot leaves, is kept, and is not any more."""
    _forget_and_collect(world, choice)
    _wait_until_nothing_is_kept(world)


def _wait_until_nothing_is_kept(world: World) -> None:
    _wait_until(world, lambda: not world.auditor.deleted_snapshots())
    world.mount()


def _adopt_what_is_kept(world: World, choice: random.Random) -> None:
    _forget_and_collect(world, choice)
    lose_the_state(world, "state", choice.choice(("deleted", "damaged")), choice)
    _carry_over(world)


def _remove_everything(world: World, choice: random.Random) -> None:
    """More than may go in a day, approved later."""
    for _ in range(2):
        run_backup(world, choice)
    _carry_over(world)
    with world.uploader_stopped():
        for group in sorted({parse_snapshot_path(path).group for path in world.model.snapshots}):
            if not any(world.model.snapshots[path].is_protected for path in world.model.below(group.path)):
                remove_group(world, group)
    _carry_over(world)


def _refuse_deletions(world: World, choice: random.Random) -> None:
    with world.refusing.refusing("*/qemu-server.conf.blob"), world.refusing.refusing("*/root.pxar.didx"):
        _forget_and_collect(world, choice)


def _refuse_deletions_for_a_while(world: World, choice: random.Random) -> None:
    _refuse_deletions(world, choice)
    _wait_until_locks_are_over(world)


def _refuse_chunks_for_a_while(world: World, choice: random.Random) -> None:
    """Some chunks of many are refused, and when their locks are over the mirror looks whether to ask again."""
    run_backup(world, choice)
    _carry_over(world)
    OPERATIONS["forget group"].run(world, choice)
    _carry_over(world)
    _wait_until_nothing_is_kept(world)
    with world.refusing.refusing("*/.chunks/[0-7]*"):
        # All at once: what is refused alone is taken for a store that refuses everything.
        with world.uploader_stopped():
            OPERATIONS["garbage collection"].run(world, choice)
        world.mirror.wait(20)
    _wait_until_locks_are_over(world)


def _wait_until_locks_are_over(world: World) -> None:
    """A mirror that has just been started soon looks again at what was refused."""
    world.mirror.kill_uploader()
    world.mirror.wait(20)
    world.clock.jump_to(_MORE_THAN_A_LOCK)
    _wait_until(world, lambda: False)
    world.clock.set_right()


def _replace_a_chunk(world: World, choice: random.Random) -> None:
    run_backup(world, choice)
    _carry_over(world)
    for _ in range(3):
        OPERATIONS["chunk compressed otherwise"].run(world, choice)
    _carry_over(world)


def _quarantine(world: World, choice: random.Random) -> None:
    run_backup(world, choice)
    OPERATIONS["rot and verify"].run(world, choice)
    _carry_over(world)


_PROVOCATIONS: dict[str, Provocation] = {
    "chunkstore.before-detach": _destroy_and_mount_again,
    "chunkstore.detached": _destroy_and_mount_again,
    "chunkstore.events": _daily_work,
    "chunkstore.": _mount_again,
    "reconcile.chunk-names": _forget_and_collect,
    "mount.unmounted": _unmount_from_outside,
    "mount.": _mount_again,
    "database.before-growth": _many_records,
    "database.after-growth": _many_records,
    "database.": _lose_state,
    "journal.before-set-aside": _damage_journal,
    "journal.file-set-aside": _damage_journal,
    "journal.": _mount_again,
    "session.": _mount_again,
    "repair.": _full_state_disk,
    "uploader.": _mount_again,
    "claim.bucket-forgotten": _older_state,
    "claim.": _mount_again,
    "probe.": _mount_again,
    "adoption.": _lose_state,
    "reconcile.": _mount_again,
    "problem.": _sick_object,
    "foreign.": _foreign_file,
    "grace.adopted": _adopt_what_is_kept,
    "grace.": _keep_until_it_is_over,
    "wave.approved": _hold_every_removal,
    "wave.": _remove_everything,
    "retention.refusal-over": _refuse_deletions_for_a_while,
    "retention.": _refuse_deletions,
    "references.": _forget_and_collect,
    "removal.": _forget_and_keep_nothing,
    "chunk-removal.refusals-over": _refuse_chunks_for_a_while,
    "chunk-removal.": _forget_and_collect,
    "chunk.staged": _replace_a_chunk,
    "chunk.doubted": _replace_a_chunk,
    "chunk.replaced": _replace_a_chunk,
    "chunk.unstaged": _replace_a_chunk,
    "chunk.quarantine-recorded": _quarantine,
    "locks.": _forget_and_collect,
}
