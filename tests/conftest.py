"""Options and fixtures of the whole suite."""

from __future__ import annotations

import pytest

pytest_plugins = ["tests.stores.fixtures"]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --ceph, which scripts/test passes on."""
    parser.addoption("--ceph", action="store_true", help="also test against the Ceph that scripts/ceph-up started")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests against Ceph out unless they are asked for."""
    if config.getoption("--ceph"):
        return
    kept = [item for item in items if item.get_closest_marker("ceph") is None]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
