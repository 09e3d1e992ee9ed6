"""What the package's scripts do when it is removed, on a system below a directory."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="services are root's")

_PBS = ("etc/systemd/system/proxmox-backup.service.d", "etc/systemd/system/proxmox-backup-proxy.service.d")
_PROGRAM = f"{shlex.quote(sys.executable)} -c 'from mirrorfs.cli.main import main; main()'"


class System:
    """A system with a program `mirrorfs` that is about it."""

    def __init__(self, base: Path) -> None:
        self.root, self._programs = base / "root", base / "programs"
        for path in ("etc/mirrorfs", "etc/default", "usr/lib/systemd/system", "var/lib/mirrorfs", "proc/self"):
            (self.root / path).mkdir(parents=True, mode=0o755)
        (self.root / "usr/lib/systemd/system/mirrorfs@.service").write_text("the package's")
        (self.root / "proc/self/mounts").write_text("/dev/sda1 / ext4 rw 0 0\n")
        self._programs.mkdir()
        for name, text in (
            ("mirrorfs", f'exec {_PROGRAM} "$@" --root {shlex.quote(str(self.root))}'),
            ("systemctl", ""),
        ):
            (self._programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (self._programs / name).chmod(0o755)

    def install(self, name: str) -> None:
        (self.root / f"etc/mirrorfs/{name}.toml").write_text(f'datastore = "/mnt/{name}"\n')
        files = {
            f"multi-user.target.wants/mirrorfs@{name}.service": "",
            **{f"{unit}.service.d/mirrorfs-{name}.conf": "" for unit in ("proxmox-backup", "proxmox-backup-proxy")},
        }
        for path in files:
            whole = self.root / "etc/systemd/system" / path
            whole.parent.mkdir(parents=True, exist_ok=True)
            if path.startswith("multi"):
                whole.symlink_to("/usr/lib/systemd/system/mirrorfs@.service")
            else:
                whole.write_text(f"[Unit]\nRequires=mirrorfs@{name}.service\nAfter=mirrorfs@{name}.service\n")

    def run(self, script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        text = (resources.files("mirrorfs.service") / "debian" / script).read_text()
        for path in ("/etc/", "/proc/", "/var/lib/", "/usr/lib/", "/run/"):
            text = text.replace(path, f"{self.root}{path}")
        return subprocess.run(
            ["/bin/sh", "-c", text, script, *arguments],
            env={**os.environ, "PATH": f"{self._programs}:{os.environ['PATH']}"},
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def drop_ins(self) -> list[str]:
        return [path.name for directory in _PBS for path in (self.root / directory).glob("*")]


@pytest.fixture
def system(tmp_path: Path) -> System:
    return System(tmp_path)


def test_nothing_is_left_that_pbs_would_wait_for(system: System) -> None:
    for name in ("store1", "store2", "store3"):
        system.install(name)
    (system.root / "etc/systemd/system/multi-user.target.wants/mirrorfs@store2.service").unlink()
    (system.root / "etc/mirrorfs/store3.toml").write_text("datastore = ")
    done = system.run("prerm", "remove")
    assert done.returncode == 0, done.stderr
    assert system.drop_ins() == []


def test_what_somebody_else_has_pbs_wait_for_is_told(system: System) -> None:
    system.install("store1")
    own = system.root / _PBS[0] / "own.conf"
    own.write_text("[Unit]\nRequires=mirrorfs@store1.service\n")
    limits = own.with_name("mirrorfs-limits.conf")
    limits.write_text("[Service]\nNice=1\n")
    done = system.run("prerm", "remove")
    assert done.returncode == 1
    assert str(own) in done.stderr
    own.unlink()
    assert system.run("prerm", "remove").returncode == 0
    assert system.drop_ins() == [limits.name]


def test_a_mounted_datastore_is_not_taken_away(system: System) -> None:
    system.install("store1")
    (system.root / "proc/self/mounts").write_text("/mnt/store1 /mnt/store1 fuse.mirrorfs rw 0 0\n")
    before = system.drop_ins()
    assert system.run("prerm", "remove").returncode == 1
    assert system.drop_ins() == before


def test_reports_outlive_the_package(system: System) -> None:
    base = system.root / "var/lib/mirrorfs"
    for path in ("reports/store1", "mnt-store1/journal"):
        (base / path).mkdir(parents=True)
    (base / "reports/store1/drill.md").write_text("restored")
    done = system.run("postrm", "purge")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in base.iterdir()] == ["reports"]
    assert (base / "reports/store1/drill.md").read_text() == "restored"
    (base / "reports/store1/drill.md").unlink()
    (base / "reports/store1").rmdir()
    (base / "reports").rmdir()
    assert system.run("postrm", "purge").returncode == 0
    assert not base.exists()
    assert system.run("postrm", "purge").returncode == 0


@pytest.mark.parametrize("name", ["var/lib/mirrorfs", "etc/mirrorfs"])
def test_a_directory_that_somebody_has_moved_is_emptied_and_its_link_stays(system: System, name: str) -> None:
    elsewhere = system.root.with_name("elsewhere")
    (system.root / name).rename(elsewhere)
    (system.root / name).symlink_to(elsewhere)
    (elsewhere / "store1.toml").write_text("")
    done = system.run("postrm", "purge")
    assert (done.returncode, done.stderr) == (0, "")
    assert (system.root / name).is_symlink()
    assert list(elsewhere.iterdir()) == []


def test_another_file_system_is_not_emptied(system: System) -> None:
    base = system.root / "var/lib/mirrorfs"
    (base / "mnt-store1").mkdir()
    other = base / "other"
    other.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", other], check=True)
    try:
        (other / "precious").write_text("mine")
        done = system.run("postrm", "purge")
        assert done.returncode == 0, done.stderr
        assert (other / "precious").read_text() == "mine"
        assert [path.name for path in base.iterdir()] == ["other"]
    finally:
        subprocess.run(["umount", other], check=True)


def test_a_unit_that_hides_the_packages_is_told(system: System) -> None:
    hiding = system.root / "etc/systemd/system/mirrorfs@.service"
    hiding.parent.mkdir(parents=True)
    assert system.run("postinst", "configure", "").stdout == ""
    hiding.write_text("an earlier one's")
    assert system.run("postinst", "configure", "").stdout == (
        f"mirrorfs: {hiding} hides the unit of this package. Remove it, unless you want it so.\n"
    )


def test_an_upgrade_hides_the_environment(system: System) -> None:
    defaults = system.root / "etc/default/mirrorfs"
    defaults.write_text("AWS_SECRET_ACCESS_KEY=mine\n")
    defaults.chmod(0o644)
    assert system.run("postinst", "configure", "1").returncode == 0
    assert defaults.stat().st_mode & 0o007 == 0


@pytest.mark.parametrize(("script", "argument"), [("postinst", "configure"), ("postrm", "remove")])
def test_a_systemd_that_does_not_answer_leaves_nothing_half_installed(
    system: System, script: str, argument: str
) -> None:
    (system.root / "run/systemd/system").mkdir(parents=True)
    (system.root.with_name("programs") / "systemctl").write_text("#!/bin/sh\nexit 1\n")
    done = system.run(script, argument)
    assert (done.returncode, done.stderr) == (0, "mirrorfs: run 'systemctl daemon-reload'\n")
