"""The bounded part of the soak: a fixed number of examples of the Hypothesis state machine, all faults armed."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.harness.state_machine import machine_for
from tests.stores.seaweedfs import StoreServer

# Of an example; generation begins with one that is nearly empty, so that each test plays one of full length.
_STEPS = 8
_EXAMPLES = 2
# A failing example is not made smaller, which would take hours: its steps are printed, each with its number.
_SETTINGS = settings(
    max_examples=_EXAMPLES,
    stateful_step_count=_STEPS,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("number", [0, *(pytest.param(number, marks=pytest.mark.long) for number in range(1, 6))])
def test_nothing_is_lost_whatever_happens(own_store: StoreServer, number: int) -> None:
    machine = machine_for(own_store, own_store.create_bucket(), chunk_store=("auto", "fuse")[number % 2])
    seed(number)(machine)
    run_state_machine_as_test(machine, settings=_SETTINGS)
