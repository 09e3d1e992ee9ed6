"""The units under a real systemd, in a Debian that is booted: rights, order, PBS's drop-ins, restarts, an upgrade.

Then the power is cut, and at last everything is taken away again. The store is outside of it, on loopback; so is who
writes backups. PBS's units are there, and do nothing. Mails go by Debian's postfix, as on a PBS.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mirrorfs.service import units
from tests.service.debian import NEWER_COMMIT, Debian, Packages, newer_than
from tests.service.server import PBS, STATE, backing_up
from tests.service.systemd import System, booted, can_boot
from tests.stores.seaweedfs import StoreServer

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not can_boot(), reason="needs root and Debian's package systemd-container"),
]

_MIRROR = "mirrorfs@store1.service"
PBS_UNIT = """
[Service]
ExecStart=/bin/sleep infinity
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""


_MAILER = r"postfix postfix/main_mailer_type select Local only\npostfix postfix/mailname string pbs.test\n"


@pytest.fixture
def pbs(debian: Debian, package_for: Packages, own_store: StoreServer) -> PBS:
    """A Debian with systemd and the units of PBS, in which a mirror is set up."""
    debian.run("sh", "-c", f"printf '{_MAILER}' | debconf-set-selections")
    debian.get("systemd", "systemd-sysv", "dbus", "postfix")
    # It has the network of this machine: no port of that is postfix's.
    debian.run("postconf", "-e", "master_service_disable = inet")
    debian.install(package_for(debian.release))
    for unit in units.PBS_UNITS:
        debian.path(f"/etc/systemd/system/{unit}").write_text(PBS_UNIT)
        debian.run("systemctl", "enable", unit)
    made = PBS(debian, own_store)
    # Told at once, so that nothing has to be so for minutes.
    made.set_up("--notify-mail", "root", "--notify-after", "0s")
    return made


def _state(system: System, unit: str) -> str:
    return system.show(unit, "ActiveState")


def _began(system: System, unit: str) -> int:
    """When a unit became active, in microseconds since the boot."""
    assert system.show(unit, "ActiveState") == "active"
    return int(system.show(unit, "ActiveEnterTimestampMonotonic"))


def _assert_that_pbs_came_after(system: System) -> None:
    mounted = _began(system, _MIRROR)
    assert [unit for unit in units.PBS_UNITS if _began(system, unit) < mounted] == []


def _mails(system: System) -> list[str]:
    """The subjects of the mails that root has got."""
    found = system.run("sh", "-c", "cat /var/mail/* /var/spool/mail/root 2>/dev/null || true")
    return [line.partition(": ")[2] for line in found.splitlines() if line.startswith("Subject: ")]


def _wait_for_mail(system: System, what: str) -> None:
    """Return when root has got one that ends so; what could not be delivered is shown at the end of the test's time."""
    while not any(subject.endswith(what) for subject in _mails(system)):
        continue


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
        # The unit has had it told, free of its limits; and the mount that has come up, within these.
        _wait_for_mail(system, "store1 is broken")
        _wait_for_mail(system, "store1 is well again")

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

        # What is written now may not be sent when the power goes.
        pbs.backup("vm/103")
        system.lose_power()
    with booted(debian) as system:
        pbs.machine = system
        system.go_on(*units.PBS_UNITS)
        _assert_that_pbs_came_after(system)
        pbs.backup("vm/104")
        pbs.assert_that_nothing_is_lost("vm/103", "vm/104")

        # Whoever stops the mount stops PBS with it; a start of the mount starts it again.
        system.run("systemctl", "stop", _MIRROR)
        assert [_state(system, unit) for unit in (_MIRROR, *units.PBS_UNITS)] == ["inactive"] * 3
        system.run("systemctl", "start", _MIRROR)
        system.go_on(*units.PBS_UNITS)
        pbs.assert_that_nothing_is_lost("vm/104")

        # All of it is taken away while PBS runs: the datastore is a plain one then, and PBS starts without the mount.
        pbs.command("umount", "--drain", "store1")
        assert [_state(system, unit) for unit in units.PBS_UNITS] == ["active"] * 2, "PBS goes on"
        pbs.command("uninstall", "--purge", "store1")
        assert [path for path in debian.traces() if "store1" in path] == []
        assert not system.path(STATE).exists()
        system.run("systemctl", "restart", *units.PBS_UNITS)
        assert [_state(system, unit) for unit in (_MIRROR, *units.PBS_UNITS)] == ["inactive", "active", "active"]
        assert "fuse.mirrorfs" not in system.run("cat", "/proc/self/mounts")
        assert {".chunks", "vm", "host"} <= {path.name for path in pbs.datastore.iterdir()}
        pbs.assert_that_it_comes_back()
