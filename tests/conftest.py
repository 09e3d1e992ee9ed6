"""Options and fixtures of the whole suite."""

from __future__ import annotations

import functools
import os
import signal
import uuid
from collections.abc import Iterator

import botocore.session
import pytest
from hypothesis import settings

from tests.mount_notes import drop_notes_of_ended_mounts
from tests.watchdog import MARK, killing_mounts_after

# Beyond a test's time limit: by then pytest has failed to end it.
_HUNG_SECONDS = 50.0

os.environ[MARK] = uuid.uuid4().hex

# Whoever starts the suite in the background of a shell has it ignore Ctrl-C, and all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

pytest_plugins = ["tests.stores.fixtures"]

# Each session of botocore parses a megabyte of JSON anew, 50 ms long, and tests make thousands of them.
pytest.MonkeyPatch().setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))

# How long an example takes tells more of the machine than of the product.
settings.register_profile("mirrorfs", deadline=None)
settings.load_profile("mirrorfs")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --ceph and --long, which scripts/test passes on."""
    parser.addoption("--long", action="store_true", help="also run what takes minutes and rarely tells anything new")
    parser.addoption("--ceph", action="store_true", help="also test against the Ceph that scripts/ceph-up started")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests against Ceph, and the long ones, unless they are asked for."""
    left_out = [name for name in ("ceph", "long") if not config.getoption(f"--{name}")]
    kept = [item for item in items if not any(item.get_closest_marker(name) for name in left_out)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_sessionfinish() -> None:
    """Leave nothing behind of the mounts that were killed."""
    drop_notes_of_ended_mounts()


@pytest.fixture(autouse=True)
def stay_here() -> Iterator[None]:
    """Come back to the working directory that a test has left: programs are started from it."""
    here = os.getcwd()
    yield
    os.chdir(here)


@pytest.fixture(autouse=True)
def never_hang(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kill the mounts of a test that hangs in one of them."""
    mark = request.node.get_closest_marker("timeout")
    limit = request.config.getini("timeout") if mark is None else mark.args[0]
    with killing_mounts_after(float(limit) + _HUNG_SECONDS):
        yield
