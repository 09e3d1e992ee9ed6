"""A run of everything against everything: rounds of operations and accidents, each round made from one integer."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.harness import (  # noqa: F401 - what is imported can be drawn
    ends_of_mounts,
    hostile_bucket,
    hostile_user,
    identity_accidents,
    prefix_accidents,
    rotten_bucket,
    small_files,
)
from tests.harness.accidents import any_accident
from tests.harness.machine import WorldEnded
from tests.harness.mutation import COUNT_IN_SMALL_PARTS, environment_of
from tests.harness.operations import any_operation
from tests.harness.retention import FOR_A_SWEEP, choose_retention, chooses_versions
from tests.harness.statistics import Statistics
from tests.harness.steps import MOUNT_STEPS as STEPS
from tests.harness.sweep import sweep_steps
from tests.harness.world import World, WorldSettings
from tests.mount_notes import drop_notes_of_ended_mounts
from tests.stores.fault_rules import Fault
from tests.stores.server import AnyStore

_ACCIDENT_FRACTION = 0.45
_SHORTEST_ROUND, _LONGEST_ROUND = 8, 40
_ODD_FRACTION = 0.05
_SETTLE_FRACTION = 0.06
_SHORTEST_RUN_WITH_SWEEP = 900.0
_RESTORE_FRACTION = 0.25
# The disks of a world stand in memory where that is possible: how this machine's own disk fares is no matter here.
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class SoakSettings:
    """How long, against which store, and where logs of failed rounds go; `seconds` is looked at between rounds.

    `locking_bucket` keeps versions and can lock them (None: there is none); `bucket` does neither.
    """

    store: AnyStore
    bucket: str
    prefix: str
    seed: int
    seconds: float
    keep: Path
    tell: Callable[[str], None] = print
    extra_environment: Mapping[str, str] = field(default_factory=dict)
    locking_bucket: str | None = None
    chunk_store: str = "auto"


def run_soak(settings: SoakSettings, *, with_sweep: bool | None = None) -> Statistics:
    """Run rounds until the time is over; every round's seed follows from the soak's, and is told.

    `with_sweep` says whether the first one kills at every named step, so that none is left to chance; None: if there is
    time for it.
    """
    sweeps = settings.seconds >= _SHORTEST_RUN_WITH_SWEEP if with_sweep is None else with_sweep
    statistics = Statistics()
    over = time.monotonic() + settings.seconds
    number = 0
    while time.monotonic() < over:
        seed = round_seed(settings.seed, number)
        is_sweep = number == 0 and sweeps
        run_round(settings, statistics, seed, over, is_sweep=is_sweep)
        kind = "--sweep --round" if is_sweep else "--round"
        settings.tell(f"{statistics.line()}  (seed {settings.seed}: round {number} was {kind} {seed})")
        number += 1
    return statistics


def round_seed(seed: int, number: int) -> int:
    """The one integer from which a round is made."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{number}".encode()).digest()[:4], "big")


def run_round(
    settings: SoakSettings,
    statistics: Statistics,
    seed: int,
    over: float | None = None,
    *,
    is_sweep: bool = False,
    steps: Sequence[str] = STEPS,
) -> None:
    """One round in a world of its own; what was violated is in `statistics`, its logs are kept.

    A sweep kills at each of the named `steps` instead of letting anything happen.
    """
    before = len(statistics.violations)
    statistics.rounds += 1
    base = Path(tempfile.mkdtemp(prefix="mirrorfs-soak-", dir=MEMORY if MEMORY.is_dir() else None))
    world_settings = _settings_of_world(settings, seed, base, is_sweep=is_sweep)
    history = [f"{world_settings.retention}{', versions' if world_settings.keeps_versions else ''}"]
    try:
        with World(world_settings, statistics, seed) as world:
            try:
                choice = random.Random(seed)
                if is_sweep:
                    _sweep(world, choice, history, steps)
                    settings.tell(history[-1])
                else:
                    _live(world, choice, history, over)
                world.finish(choice, restore=choice.random() < _RESTORE_FRACTION)
            except WorldEnded:
                history.append("the world could not go on")
            finally:
                if len(statistics.violations) > before or sys.exc_info()[0] is not None:
                    _keep(world, settings, seed, statistics.violations[before:], history)
    except Exception as error:  # noqa: BLE001 - whatever it is, the run goes on and ends with a failure
        statistics.violate([f"the harness itself failed in round {seed}: {error!r}\n{traceback.format_exc()}"])
    finally:
        shutil.rmtree(base, ignore_errors=True)
        drop_notes_of_ended_mounts()
    for violation in statistics.violations[before:]:
        settings.tell(f"VIOLATION {violation}")
    if len(statistics.violations) > before:
        settings.tell(f"repeat this round with: scripts/soak {'--sweep ' if is_sweep else ''}--round {seed}")


def _settings_of_world(settings: SoakSettings, seed: int, base: Path, *, is_sweep: bool) -> WorldSettings:
    keeps_versions = settings.locking_bucket is not None and (is_sweep or chooses_versions(seed))
    return WorldSettings(
        base,
        settings.store,
        settings.locking_bucket if keeps_versions and settings.locking_bucket is not None else settings.bucket,
        f"{settings.prefix}-{seed}-{os.getpid()}",
        {**environment_of(COUNT_IN_SMALL_PARTS), **settings.extra_environment},
        retention=FOR_A_SWEEP if is_sweep else choose_retention(seed),
        keeps_versions=keeps_versions,
        chunk_store=settings.chunk_store,
        workers=random.Random(f"workers {seed}").choice((1, 2)),
    )


def _sweep(world: World, choice: random.Random, history: list[str], steps: Sequence[str]) -> None:
    unreached = sweep_steps(world, choice, steps)
    world.statistics.checks["steps at which a sweep has killed"] += len(steps) - len(unreached)
    world.statistics.checks["steps that a sweep did not reach"] += len(unreached)
    history.append(f"steps that were not reached: {', '.join(unreached) or 'none'}")


def _live(world: World, choice: random.Random, history: list[str], over: float | None) -> None:
    happenings = choice.randint(_SHORTEST_ROUND, _LONGEST_ROUND)
    noted_at = choice.randrange(happenings) if world.keeps_versions else None
    if "proxy" in world.offers:
        # Until the next storm or quiet. Each round has it, and mounts, claims and probes under it.
        world.proxy.storm(choice.randrange(2**31), [Fault.ODD], probability=_ODD_FRACTION)
    for number in range(happenings):
        # Each happening has a source of its own: how much it draws does not change what comes after it.
        own = random.Random(choice.randrange(2**63))
        began = time.monotonic()
        before = world.statistics.operations.copy(), world.statistics.faults.copy()
        if number == noted_at:
            world.note_moment()
        elif choice.random() < _SETTLE_FRACTION:
            world.settle()
        elif choice.random() < _ACCIDENT_FRACTION:
            any_accident(world, own)
        else:
            any_operation(world, own)
        world.mount()
        done = (world.statistics.operations - before[0]) + (world.statistics.faults - before[1])
        history.append(f"{time.monotonic() - began:6.2f} s  {dict(done)}")
        if world.violations():
            return
        if over is not None and time.monotonic() > over:
            return


def _keep(world: World, settings: SoakSettings, seed: int, violations: list[str], history: list[str]) -> None:
    settings.keep.mkdir(parents=True, exist_ok=True)
    (settings.keep / f"{seed}.log").write_text(world.log())
    lines = [*history, "", *violations, *world.violations()]
    (settings.keep / f"{seed}.txt").write_text("\n".join(lines) + "\n")
    settings.tell(f"kept in {settings.keep}: {seed}.log (mount and uploader) and {seed}.txt (what was done)")
