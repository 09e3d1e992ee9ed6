"""The units under a real systemd, in a Debian that is booted: rights, order, PBS's drop-ins, restarts, an upgrade.

The store is outside of it, on loopback; so is who writes backups. PBS's units are there, and do nothing.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mirrorfs.service import units
from tests.service.debian import NEWER_COMMIT, Debian, Packages, newer_than
from tests.service.server import PBS, backing_up
from tests.service.systemd import System, booted, can_boot
from tests.stores.seaweedfs import StoreServer

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not can_boot(), reason="needs root and Debian's package systemd-container"),
]

_MIRROR = "mirrorfs@store1.service"
_PBS_UNIT = """
[Service]
ExecStart=/bin/sleep infinity
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def pbs(debian: Debian, package_for: Packages, own_store: StoreServer) -> PBS:
    """A Debian with systemd and the units of PBS, in which a mirror is set up."""
    debian.get("systemd", "systemd-sysv", "dbus")
    debian.install(package_for(debian.release))
    for unit in units.PBS_UNITS:
        debian.path(f"/etc/systemd/system/{unit}").write_text(_PBS_UNIT)
        debian.run("systemctl", "enable", unit)
    made = PBS(debian, own_store)
    made.set_up()
    return made


def _began(system: System, unit: str) -> int:
    """When a unit became active, in microseconds since the boot."""
    assert system.show(unit, "ActiveState") == "active"
    return int(system.show(unit, "ActiveEnterTimestampMonotonic"))


def _assert_that_pbs_came_after(system: System) -> None:
    mounted = _began(system, _MIRROR)
    assert [unit for unit in units.PBS_UNITS if _began(system, unit) < mounted] == []


def test_systemd_runs_a_mirror(pbs: PBS, debian: Debian, package_for: Packages, tmp_path: Path) -> None:
    with booted(debian) as system:
        pbs.machine = system
        system.go_on(*units.PBS_UNITS)
        _assert_that_pbs_came_after(system)
        assert "chunk store native" in pbs.command("status", "store1"), "the unit may not do what it has to"
        for timer in units.TIMERS:
            assert system.show(units.instance(timer, "store1"), "ActiveState") == "active"
        pbs.backup("vm/100", "host/web")
        pbs.assert_that_nothing_is_lost("vm/100", "host/web")
        system.run("systemctl", "start", "mirrorfs-verify@store1.service")

        # kill -9 of the mount and all that it has started: systemd brings it back, and PBS with it.
        pbs.backup("vm/101")
        killed = system.show(_MIRROR, "InvocationID")
        system.run("systemctl", "kill", "--signal=KILL", _MIRROR)
        while system.show(_MIRROR, "InvocationID") == killed:
            continue
        system.go_on(_MIRROR, *units.PBS_UNITS)
        _assert_that_pbs_came_after(system)
        pbs.assert_that_nothing_is_lost("vm/101")

        # An upgrade starts and stops nothing; PBS writes on meanwhile.
        process = system.show(_MIRROR, "MainPID")
        shutil.copy(newer_than(package_for(debian.release), tmp_path), debian.path("/newer.deb"))
        with backing_up(pbs) as groups:
            system.run("dpkg", "--install", "/newer.deb")
            assert system.show(_MIRROR, "MainPID") == process
            assert system.show(_MIRROR, "NeedDaemonReload") == "no"
            assert f"commit {NEWER_COMMIT}" in system.run("mirrorfs", "--version")
        system.run("systemctl", "restart", _MIRROR)
        system.go_on(*units.PBS_UNITS)
        _assert_that_pbs_came_after(system)
        pbs.backup("vm/102")
        pbs.assert_that_nothing_is_lost(*groups, "vm/102")
