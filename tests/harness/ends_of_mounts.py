"""How a mount ends among others: copies of it are kept elsewhere, somebody unmounts it by hand, signals come that are
none of its business."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.ends_of_processes import ends_within
from tests.harness.accidents import accident, some_operations
from tests.harness.machine import WorldEnded
from tests.harness.world import World

_END_SECONDS = 60.0
_STRAY_SIGNALS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGPIPE)
# Keeps none of the mounts of tests that run at the same time, nor the disks of this world: just what is at $0.
_NEIGHBOUR = """
cd /
mounts=$(cat /proc/mounts)
echo "$mounts" | while read -r _ path kind _; do
    case "$kind $path" in
        *" $0") ;;
        fuse* | *" $1/"*) umount --lazy "$path" 2>/dev/null ;;
    esac
done
echo ready
read -r line
"""


@accident(weight=3)
def unmounted_while_a_copy_is_kept(world: World, choice: random.Random) -> None:
    """A bind mount or a namespace of mounts has a copy: the mount ends in order all the same, and says who has it."""
    some_operations(world, choice)
    world.disarm_step()
    world.mount()
    kept: Callable[[World], AbstractContextManager[str]] = choice.choice((_bind_mount, _namespace_of_mounts))
    with kept(world) as holder:
        pid = world.mirror.mount_pid()
        done = world.mirror.run("umount", str(world.datastore))
        if done.returncode != 0 or holder not in done.stderr:
            world.statistics.violate([f"P4 umount does not name {holder}: {done.returncode} {done.stderr.strip()}"])
        _expect_the_end(world, pid)
        with world.without_mirror():
            some_operations(world, choice)
    world.statistics.count_fault(f"unmounted while a copy is kept: {kept.__name__.strip('_').replace('_', ' ')}")


@contextmanager
def _bind_mount(world: World) -> Iterator[str]:
    copy = world.older_state.parent / "copy"
    copy.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(world.datastore), str(copy)], check=True, capture_output=True)
    try:
        yield str(copy)
    finally:
        subprocess.run(["umount", "--lazy", str(copy)], check=True, capture_output=True)


@contextmanager
def _namespace_of_mounts(world: World) -> Iterator[str]:
    here = (str(world.datastore), str(world.datastore.parent))
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", _NEIGHBOUR, *here]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            if process.stdout.readline() != b"ready\n":
                raise RuntimeError("no namespace of mounts to be had")
            yield f"process {process.pid}"
        finally:
            process.kill()


@accident(weight=3)
def unmounted_by_hand(world: World, choice: random.Random) -> None:
    """With umount(8), past mirrorfs; what lies under the mount stays, also when the process is told to end then."""
    some_operations(world, choice)
    world.disarm_step()
    world.mount()
    pid = world.mirror.mount_pid()
    disk = os.stat(world.backing).st_dev
    if choice.random() < 0.5:
        # A file that is open keeps the process, so that it can be told to end.
        with (world.datastore / ".lock").open("rb"):
            _umount(world)
            if pid is not None:
                os.kill(pid, choice.choice((signal.SIGTERM, signal.SIGINT)))
            _expect_the_end(world, pid)
    else:
        _umount(world)
    if os.stat(world.datastore).st_dev != disk:
        world.statistics.violate(["P4 the datastore's own disk was unmounted with the mount that was over it"])
        raise WorldEnded
    # The process may live on for a while, where somebody has a copy; it is asked to end then.
    with world.without_mirror():
        some_operations(world, choice)
    world.statistics.count_fault("unmounted by hand")


def _umount(world: World) -> None:
    subprocess.run(["umount", "--lazy", str(world.datastore)], check=True, capture_output=True)


@accident(weight=2)
def stray_signals(world: World, choice: random.Random) -> None:
    """Signals that others use for this and that: PBS must not notice."""
    world.disarm_step()
    world.mount()
    pid = world.mirror.mount_pid()
    for number in choice.sample(_STRAY_SIGNALS, choice.randint(1, len(_STRAY_SIGNALS))):
        if pid is not None and world.mirror.is_alive():
            os.kill(pid, number)
        some_operations(world, choice, 1)
    if not world.mirror.is_alive() or world.mirror.mount_pid() != pid:
        world.statistics.violate([f"P4 the mount (process {pid}) has not outlived a signal that means nothing to it"])
    world.statistics.count_fault("stray signals")


def _expect_the_end(world: World, pid: int | None) -> None:
    if pid is not None and not ends_within(pid, _END_SECONDS):
        world.statistics.violate([f"P4 process {pid} lives on without its mount"])
        world.kill_mount()
