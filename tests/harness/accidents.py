"""What can happen to a mirror: kills, a sick store, sick disks, a wrong clock, a power cut; each while PBS works."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass

from tests.harness.names import chunk_path
from tests.harness.operations import any_operation, rot_a_chunk, run_backup
from tests.harness.steps import MOUNT_STEPS as STEPS
from tests.harness.world import WORKERS, World

Happening = Callable[[World, random.Random], None]
_HOUR = 3600.0
# Of 250 bytes each: what a small journal holds in pages that it has already does not do.
FILES_BEYOND_FREE_PAGES = 2500
_FOREIGN = "foreign-"
_PATIENCE_WITH_FOREIGN_FILES = 400.0


@dataclass(frozen=True, slots=True)
class Accident:
    """Something that goes wrong: `run` lets it happen once, as the random choices say."""

    name: str
    weight: int
    run: Happening
    needs: str | None = None


ACCIDENTS: dict[str, Accident] = {}


def accident(weight: int, needs: str | None = None) -> Callable[[Happening], Happening]:
    """Enter a function of any module into ACCIDENTS, under its name in words; `needs` is one of what World.offers."""

    def enter(run: Happening) -> Happening:
        name = run.__name__.replace("_", " ")
        ACCIDENTS[name] = Accident(name, weight, run, needs)
        return run

    return enter


def any_accident(world: World, choice: random.Random) -> None:
    """Let one thing go wrong."""
    accidents = [found for found in ACCIDENTS.values() if found.needs is None or found.needs in world.offers]
    (chosen,) = choice.choices(accidents, [accident.weight for accident in accidents])
    chosen.run(world, choice)


def some_operations(world: World, choice: random.Random, most: int = 3) -> None:
    for _ in range(choice.randint(1, most)):
        any_operation(world, choice)


def _during_operations(world: World, choice: random.Random, strike: Callable[[], None], longest: float = 0.8) -> None:
    """Let it strike at a random time while PBS works."""
    timer = threading.Timer(choice.uniform(0, longest), strike)
    timer.start()
    some_operations(world, choice)
    timer.join()


# -- kills -------------------------------------------------------------------------------------------------


@accident(weight=6)
def kill_uploader(world: World, choice: random.Random) -> None:
    """PBS must not notice."""
    _during_operations(world, choice, world.mirror.kill_uploader)
    world.statistics.count_fault("kill -9 of the uploader")


@accident(weight=5, needs=WORKERS)
def kill_workers(world: World, choice: random.Random) -> None:
    """The uploader goes on, by itself until they are back."""
    _during_operations(world, choice, world.mirror.kill_workers)
    world.statistics.count_fault("kill -9 of the workers")


@accident(weight=5)
def kill_filesystem_process(world: World, choice: random.Random) -> None:
    """What was answered is kept; PBS goes on without a mirror for a while, or not."""
    _during_operations(world, choice, world.kill_mount)
    world.statistics.count_fault("kill -9 of the filesystem process")
    _come_back(world, choice)


@accident(weight=4)
def kill_both_processes(world: World, choice: random.Random) -> None:
    """As the kernel does when memory is short."""

    def strike() -> None:
        world.kill_mount()
        world.mirror.kill_uploader()

    _during_operations(world, choice, strike)
    world.statistics.count_fault("kill -9 of both processes")
    _come_back(world, choice)


def _come_back(world: World, choice: random.Random) -> None:
    if choice.random() < 0.3:
        with world.without_mirror():
            some_operations(world, choice)
    world.mount()


@accident(weight=4, needs="store process")
def kill_store(world: World, choice: random.Random) -> None:
    """The store dies, and comes back with all that it has acknowledged."""

    def strike() -> None:
        world.store.kill()

    _during_operations(world, choice, strike)
    some_operations(world, choice)
    world.store.restart()
    world.statistics.count_fault("kill -9 of the store")


@accident(weight=16)
def kill_at_a_step(world: World, choice: random.Random) -> None:
    """A process dies at a named step; the step may come now, later or never."""
    world.disarm_step()
    world.steps.arm(choice.choice(STEPS), choice.choice((1, 1, 1, 2, 3, 7)))
    how = choice.random()
    if how < 0.15:
        world.mirror.kill_uploader()
    elif how < 0.4:
        mount_again(world)
    elif how < 0.5:
        lose_the_state(world, choice.choice(("state", "journal")), choice.choice(("deleted", "damaged")), choice)
    some_operations(world, choice)
    world.mount()


# -- ordinary life -----------------------------------------------------------------------------------------


@accident(weight=3)
def unmounted_for_a_while(world: World, choice: random.Random) -> None:
    """PBS works on the plain directory; the next mount finds what has changed."""
    with world.without_mirror():
        some_operations(world, choice)
    world.statistics.count_fault("changes while not mounted")


def mount_again(world: World) -> None:
    """Unmount in good order and mount."""
    with world.without_mirror():
        pass


@accident(weight=3)
def state_lost(world: World, choice: random.Random) -> None:
    """State or journal are deleted, or are not what they were; they are rebuilt from datastore and bucket."""
    lose_the_state(world, choice.choice(("state", "journal")), choice.choice(("deleted", "damaged")), choice)
    some_operations(world, choice)


def lose_the_state(world: World, part: str, how: str, choice: random.Random) -> None:
    """Delete or overwrite one of the two databases while nothing is mounted, and mount again."""
    with world.without_mirror():
        world.let_late_requests_end()
        directory = world.mirror.state / part
        if how == "deleted":
            shutil.rmtree(directory, ignore_errors=True)
        elif (directory / "data.mdb").exists():
            with open(directory / "data.mdb", "r+b") as file:
                file.write(choice.randbytes(64 * 1024))
        world.administrator.forget()
    world.statistics.count_fault(f"{part} {how}")


@accident(weight=2)
def older_state(world: World, choice: random.Random) -> None:
    """The state directory is an old copy, as after the system disk was restored from its own backup."""
    put_an_older_state_back(world, choice)
    some_operations(world, choice)
    world.settle()
    put_an_older_state_back(world, choice)


def put_an_older_state_back(world: World, choice: random.Random) -> None:
    """Copy the state directory away, or if that has been done, put the copy back; and mount again."""
    with world.without_mirror():
        if world.older_state.exists():
            world.let_late_requests_end()
            shutil.rmtree(world.mirror.state)
            shutil.copytree(world.older_state, world.mirror.state)
            shutil.rmtree(world.older_state)
            world.administrator.forget()
            world.statistics.count_fault("state directory put back from an old copy")
        else:
            shutil.copytree(world.mirror.state, world.older_state, ignore=shutil.ignore_patterns("*.socket", "*.sock"))
        if choice.random() < 0.3:
            some_operations(world, choice)


# -- the store ---------------------------------------------------------------------------------------------


@accident(weight=14, needs="proxy")
def storm_in_the_store(world: World, choice: random.Random) -> None:
    """Every request may meet any fault; a storm lasts until the next quiet."""
    world.proxy.storm(choice.randrange(2**31), probability=choice.choice((0.05, 0.2, 0.5)), longest_delay=1.5)
    some_operations(world, choice, 5)


@accident(weight=2, needs="proxy")
def quiet_again(world: World, choice: random.Random) -> None:
    """Storms end."""
    world.quieten_store()
    some_operations(world, choice)


@accident(weight=1, needs="proxy")
def long_latency(world: World, choice: random.Random) -> None:
    """A few requests take up to half a minute."""
    world.proxy.delay(choice.uniform(10, 30), times=choice.randint(1, 3))
    some_operations(world, choice)
    world.statistics.count_fault("store: latency of up to 30 s")


@accident(weight=2, needs="proxy")
def forbidden_for_an_hour(world: World, choice: random.Random) -> None:
    """The keys are refused; by the mirror's clock for an hour."""
    rule = world.proxy.answer(403, "AccessDenied")
    some_operations(world, choice)
    world.clock.jump_to(_HOUR)
    some_operations(world, choice)
    rule.release()
    world.clock.set_right()
    world.statistics.count_fault("store: 403 for an hour")


# -- disks -------------------------------------------------------------------------------------------------


@accident(weight=3)
def datastore_disk_full(world: World, choice: random.Random) -> None:
    """Backups fail with ENOSPC, as they do without a mirror; then there is room again."""
    with world.trouble("the datastore's disk is full"):
        world.data_disk.fill(leave=choice.choice((0, 0, 100_000)))
        some_operations(world, choice)
        world.data_disk.free()
    world.statistics.count_fault("datastore's disk full")
    world.resolve()


@accident(weight=3)
def state_disk_full(world: World, choice: random.Random) -> None:
    """PBS must not notice that the mirror cannot write its journal."""
    world.state_disk.fill()
    some_operations(world, choice, 2)
    with world.uploader_stopped():
        make_foreign_files(world, FILES_BEYOND_FREE_PAGES)
    some_operations(world, choice)
    world.state_disk.free()
    world.statistics.count_fault("state directory's disk full")
    some_operations(world, choice)
    remove_foreign_files(world)


def make_foreign_files(world: World, count: int) -> None:
    """Files with long names that PBS would not make; each is a record of the journal, since none lies in another."""

    def make() -> None:
        for number in range(count):
            (world.datastore / f"{_FOREIGN}{number:0240}").touch()

    world.perform("foreign files", [], make, patience=_PATIENCE_WITH_FOREIGN_FILES)


def remove_foreign_files(world: World) -> None:
    """Take them away while nothing is mounted: behind a mount's back nothing may change."""
    with world.without_mirror():
        for path in world.backing.glob(f"{_FOREIGN}*"):
            path.unlink()


@accident(weight=3)
def unreadable_chunk(world: World, choice: random.Random) -> None:
    """EIO for one chunk that is just to be sent; the rest goes on."""
    with world.trouble("a chunk cannot be read"):
        with world.uploader_stopped():
            before = set(_chunks(world))
            run_backup(world, choice)
            chunks = sorted(set(_chunks(world)) - before)
            if not chunks:
                return
            world.data_disk.fail_reads_of(world.backing / chunk_path(choice.choice(chunks)))
        some_operations(world, choice)
        if choice.random() < 0.5:
            world.mirror.kill_uploader()
        some_operations(world, choice)
        world.data_disk.heal_reads()
    world.statistics.count_fault("EIO from a chunk file")


def _chunks(world: World) -> list[str]:
    return sorted({digest for found in world.look().finished.values() for digest in found.chunks})


@accident(weight=2)
def slow_disk(world: World, choice: random.Random) -> None:
    """Each request to the datastore's disk takes its time."""
    world.data_disk.slow_down(choice.uniform(0.01, 0.1))
    some_operations(world, choice)
    world.data_disk.speed_up()
    world.statistics.count_fault("slow datastore's disk")


@accident(weight=3)
def bit_rot(world: World, choice: random.Random) -> None:
    """A chunk changes on the disk and nobody has noticed."""
    snapshots = sorted(world.model.snapshots)
    if snapshots:
        rot_a_chunk(world, choice, choice.choice(snapshots))
    some_operations(world, choice)


# -- clock and power ---------------------------------------------------------------------------------------


@accident(weight=3)
def clock_jump(world: World, choice: random.Random) -> None:
    """The clock of the mirror's machine is wrong, by seconds or by years."""
    world.clock.jump_to(choice.choice((-1, 1)) * choice.choice((3.0, 400.0, 7200.0, 86400.0 * 400)))
    some_operations(world, choice)
    if choice.random() < 0.5:
        mount_again(world)
        some_operations(world, choice)
    world.clock.set_right()
    world.statistics.count_fault("clock jump")


@accident(weight=8)
def power_cut(world: World, choice: random.Random) -> None:
    """Power goes right after a backup has been answered, or at any time."""
    some_operations(world, choice)
    if choice.random() < 0.5:
        run_backup(world, choice, on_answer=world.lose_power)
    else:
        _during_operations(world, choice, world.lose_power)
    if not world.has_power:
        world.restore_power(choice)
