"""The run as a Hypothesis state machine: every operation and every accident is a rule; what is wrong at the end of an
example, or meanwhile, fails it."""

from __future__ import annotations

import random
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from tests.harness.accidents import ACCIDENTS
from tests.harness.machine import WorldEnded
from tests.harness.mutation import COUNT_IN_SMALL_PARTS, environment_of
from tests.harness.operations import OPERATIONS
from tests.harness.retention import choose_retention
from tests.harness.soak import MEMORY
from tests.harness.statistics import Statistics
from tests.harness.world import World, WorldSettings
from tests.stores.server import AnyStore

_NUMBERS = strategies.integers(0, 2**32 - 1)


class MirrorMachine(RuleBasedStateMachine):
    """Needs `store` and `bucket` to be set on a subclass (see `machine_for`). Each rule draws one number, from which
    all its choices follow: so an example is a list of names with numbers, and can be played again."""

    store: ClassVar[AnyStore]
    bucket: ClassVar[str]
    environment: ClassVar[dict[str, str]] = environment_of(COUNT_IN_SMALL_PARTS)
    chunk_store: ClassVar[str] = "auto"

    def __init__(self) -> None:
        super().__init__()
        self.statistics = Statistics()
        self._world: World | None = None
        self._base = Path(tempfile.mkdtemp(prefix="mirrorfs-machine-", dir=MEMORY if MEMORY.is_dir() else None))

    @initialize(seed=_NUMBERS)
    def begin(self, seed: int) -> None:
        """Make a world."""
        name = f"machine-{secrets.token_hex(6)}"
        settings = WorldSettings(
            self._base,
            self.store,
            self.bucket,
            name,
            self.environment,
            retention=choose_retention(seed),
            chunk_store=self.chunk_store,
        )
        self._world = World(settings, self.statistics, seed).__enter__()

    def play(self, run: Callable[[World, random.Random], None], number: int) -> None:
        """Let one thing happen."""
        assert self._world is not None
        try:
            run(self._world, random.Random(number))
            self._world.mount()
        except WorldEnded as error:
            raise AssertionError(self.statistics.violations) from error
        self._fail_if_violated(self._world)

    def teardown(self) -> None:
        """All faults end, and everything must come right."""
        try:
            if self._world is not None:
                try:
                    if not self.statistics.violations:
                        self._world.finish(random.Random(0), restore=False)
                        self._fail_if_violated(self._world)
                finally:
                    self._world.__exit__()
        finally:
            shutil.rmtree(self._base, ignore_errors=True)

    def _fail_if_violated(self, world: World) -> None:
        violations = world.violations()
        assert not violations, "\n".join([*violations, "", world.log()])


def _rule(run: Callable[[World, random.Random], None]) -> Any:  # noqa: ANN401
    def happen(self: MirrorMachine, number: int) -> None:
        self.play(run, number)

    happen.__name__ = run.__name__
    happen.__doc__ = run.__doc__
    return rule(number=_NUMBERS)(happen)


for _operation in OPERATIONS.values():
    setattr(MirrorMachine, _operation.run.__name__, _rule(_operation.run))
for _accident in ACCIDENTS.values():
    setattr(MirrorMachine, _accident.run.__name__, _rule(_accident.run))


def machine_for(
    store: AnyStore, bucket: str, environment: dict[str, str] | None = None, chunk_store: str = "auto"
) -> type[MirrorMachine]:
    """A machine whose worlds mirror to this store, and whose PBS reaches its chunks in this way."""
    members = {"store": store, "bucket": bucket, "environment": environment or {}, "chunk_store": chunk_store}
    return type("MirrorMachineOnStore", (MirrorMachine,), members)
