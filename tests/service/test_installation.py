"""A service is installed whole or not at all, below the root that was named, and is taken away without a trace."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from mirrorfs import interpreter
from mirrorfs.cli import uninstall
from mirrorfs.cli.main import main
from mirrorfs.cli.settings_file import SettingsFile
from mirrorfs.database.directory import DirectoryLock, StateDirectory
from mirrorfs.service import installation, units

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="services are root's")

_SYSTEM = "etc/systemd/system"
_PBS = ("proxmox-backup.service.d", "proxmox-backup-proxy.service.d")


@pytest.fixture(autouse=True)
def _usual_umask() -> Iterator[None]:
    previous = os.umask(0o022)
    yield
    os.umask(previous)


class System:
    """A system below a directory, with the settings of two datastores."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("store1", "store2"):
            self.settings(name, f'datastore = "/mnt/datastore/{name}"\nto = "s3://backups/{name}"\n')

    def settings(self, name: str, text: str) -> None:
        path = self.root / "etc" / "mirrorfs" / f"{name}.toml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(main, [*arguments, "--root", str(self.root)])

    def succeed(self, *arguments: str) -> str:
        done = self.run(*arguments)
        assert done.exit_code == 0, done.output
        return done.output

    def tree(self) -> dict[str, str]:
        """All that is there: mode and content of files, targets of links."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            content = os.readlink(path) if path.is_symlink() else path.read_text() if path.is_file() else ""
            found[str(path.relative_to(self.root))] = f"{path.lstat().st_mode:o} {content}"
        return found

    def text(self, path: str) -> str:
        return (self.root / path).read_text()


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> System:
    programs = tmp_path / "opt"
    programs.mkdir()
    for name in ("mirrorfs", "mount.mirrorfs"):
        (programs / name).touch(0o755)
    monkeypatch.setattr(interpreter, "program", lambda name: str(programs / name))
    return System(tmp_path / "system")


def test_what_is_installed(system: System) -> None:
    system.succeed("install", "store1")
    mount = system.text(f"{_SYSTEM}/mirrorfs@.service")
    assert f"ExecStart={interpreter.program('mirrorfs')} mount --foreground %i\n" in mount
    assert f"Wants={' '.join(units.PBS_UNITS)}\n" in mount, "PBS would stay down if the mount failed at first"
    own = system.text(f"{_SYSTEM}/mirrorfs@store1.service.d/datastore.conf")
    assert 'RequiresMountsFor="/mnt/datastore/store1" /var/lib/mirrorfs\n' in own
    assert "Assert" not in own, "it would keep a dead mount from being taken away"
    for directory in _PBS:
        drop_in = system.text(f"{_SYSTEM}/{directory}/mirrorfs-store1.conf")
        assert drop_in.endswith("[Unit]\nRequires=mirrorfs@store1.service\nAfter=mirrorfs@store1.service\n")
    for link, unit in (
        ("multi-user.target.wants/mirrorfs@store1.service", "mirrorfs@.service"),
        ("timers.target.wants/mirrorfs-drill@store1.timer", "mirrorfs-drill@.timer"),
        ("timers.target.wants/mirrorfs-verify@store1.timer", "mirrorfs-verify@.timer"),
    ):
        target = os.readlink(system.root / _SYSTEM / link)
        assert target == f"/{_SYSTEM}/{unit}"
        assert (system.root / target.lstrip("/")).is_file()
    assert os.readlink(system.root / "usr/sbin/mount.mirrorfs") == interpreter.program("mount.mirrorfs")
    assert not list(system.root.rglob("*.tmp"))


def test_the_page_is_a_service_when_it_is_set(system: System) -> None:
    before = 'datastore = "/mnt/datastore/store1"\nto = "s3://backups/store1"\n'
    link = system.root / _SYSTEM / "multi-user.target.wants/mirrorfs-web@store1.service"
    system.succeed("install", "store1")
    without = system.tree()
    assert not link.is_symlink()
    system.settings("store1", f'{before}[web]\nlisten = "127.0.0.1:9861"\n')
    assert f"/{_SYSTEM}/multi-user.target.wants/{link.name}\n" in system.succeed("install", "store1")
    assert os.readlink(link) == f"/{_SYSTEM}/mirrorfs-web@.service"
    assert f"ExecStart={interpreter.program('mirrorfs')} web %i\n" in system.text(f"{_SYSTEM}/mirrorfs-web@.service")
    for wrong in ('"9861"', "9861", '"localhost:0"', "true"):
        system.settings("store1", f"{before}web-listen = {wrong}\n")
        refused = system.run("install", "store1")
        assert refused.exit_code == 2
        assert "wrong value of 'web.listen'" in refused.output
        assert link.is_symlink()
    system.settings("store1", before)
    system.succeed("install", "store1")
    assert {path: text for path, text in system.tree().items() if "toml" not in path} == {
        path: text for path, text in without.items() if "toml" not in path
    }


def test_nothing_is_left_of_it(system: System) -> None:
    before = system.tree()
    system.succeed("install", "store1")
    with_one = system.tree()
    system.succeed("install", "store2")
    system.succeed("install", "store2")
    system.succeed("uninstall", "store2")
    assert system.tree() == with_one
    system.succeed("uninstall", "store1")
    # The directories of a system are there on each of them.
    system_directories = {"etc", _SYSTEM, "etc/systemd", "etc/default", "usr", "usr/sbin"}
    assert {name: value for name, value in system.tree().items() if name not in system_directories} == {
        name: value for name, value in before.items() if name not in system_directories
    }
    assert system.run("uninstall", "store1").exit_code == 0
    system.succeed("uninstall", "store1", "--purge")
    assert not (system.root / "etc/mirrorfs/store1.toml").exists()
    again = system.run("uninstall", "store1")
    assert again.exit_code == 1
    assert "there is no service store1" in again.output


def test_when_a_timer_was_up_is_forgotten(system: System) -> None:
    system.succeed("install", "store1")
    stamps = system.root / "var/lib/systemd/timers"
    stamps.mkdir(parents=True)
    for name in ("drill@store1", "verify@store1", "verify@store2"):
        (stamps / f"stamp-mirrorfs-{name}.timer").touch()
    system.succeed("uninstall", "store1")
    assert [path.name for path in stamps.iterdir()] == ["stamp-mirrorfs-verify@store2.timer"]


def test_what_somebody_has_added_or_changed_stays(system: System) -> None:
    system.succeed("install", "store1")
    override = system.root / _SYSTEM / "mirrorfs@store1.service.d" / "override.conf"
    override.write_text("[Service]\nNice=1\n")
    defaults = system.root / "etc/default/mirrorfs"
    defaults.write_text("AWS_PROFILE=mine\n")
    system.succeed("install", "store1")
    assert defaults.read_text() == "AWS_PROFILE=mine\n"
    (system.root / _SYSTEM / units.MOUNT).write_text("changed in place")
    assert "override.conf stays" in system.succeed("uninstall", "store1")
    assert override.exists()
    assert not (system.root / _SYSTEM / units.MOUNT).exists(), "as the help says"
    assert defaults.exists()


def test_a_mirror_that_pbs_waits_for_keeps_the_units_although_it_is_disabled(system: System) -> None:
    for name in ("store1", "store2"):
        system.succeed("install", name)
    (system.root / _SYSTEM / "multi-user.target.wants/mirrorfs@store2.service").unlink()
    system.succeed("uninstall", "store1")
    assert system.text(f"{_SYSTEM}/proxmox-backup.service.d/mirrorfs-store2.conf")
    assert (system.root / _SYSTEM / units.MOUNT).is_file(), "PBS would not start"
    system.succeed("uninstall", "store2")
    assert not (system.root / _SYSTEM / units.MOUNT).exists()


def test_the_environment_is_for_root_alone(system: System) -> None:
    system.succeed("install", "store1")
    defaults = system.root / units.DEFAULTS
    assert stat.S_IMODE(defaults.stat().st_mode) == 0o600
    defaults.write_text("AWS_SECRET_ACCESS_KEY=mine\n")
    defaults.chmod(0o644)
    system.succeed("install", "store1")
    assert stat.S_IMODE(defaults.stat().st_mode) & stat.S_IRWXO == 0
    assert defaults.read_text() == "AWS_SECRET_ACCESS_KEY=mine\n"
    elsewhere = defaults.rename(defaults.with_name("elsewhere"))
    elsewhere.chmod(0o644)
    defaults.symlink_to(elsewhere)
    system.succeed("install", "store1")
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o644


def test_what_is_written_is_on_stable_storage_before_it_has_its_name(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    synchronized: set[str] = set()
    fsync, replace = os.fsync, os.replace

    def note(descriptor: int) -> None:
        fsync(descriptor)
        synchronized.add(os.readlink(f"/proc/self/fd/{descriptor}"))

    def check(source: str, target: str) -> None:
        assert os.path.islink(source) or source in synchronized
        synchronized.discard(os.path.dirname(target))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note)
    monkeypatch.setattr(os, "replace", check)
    printed = system.succeed("install", "store1").splitlines()
    for path in (line for line in printed if line.startswith("/")):
        assert str((system.root / path.lstrip("/")).parent) in synchronized
    assert str(system.root / "etc") in synchronized
    synchronized.clear()
    system.succeed("uninstall", "store1")
    assert synchronized >= {str(system.root / _SYSTEM / directory) for directory in _PBS}


def test_wrong_settings_are_not_needed_where_the_state_stays(system: System) -> None:
    system.succeed("install", "store1")
    for text in ("datastore = ", 'to = "s3://a/b"', "datastore = 7"):
        system.settings("store1", text)
        before = system.tree()
        refused = system.run("uninstall", "store1")
        assert refused.exit_code in (1, 2)
        assert system.tree() == before
        assert "not needed" in system.succeed("uninstall", "store1", "--keep-state")
        assert not (system.root / _SYSTEM / units.MOUNT).exists()
        system.settings("store1", 'datastore = "/mnt/datastore/store1"')
        system.succeed("install", "store1")
    assert system.run("uninstall", "../store1", "--keep-state").exit_code == 1


@pytest.mark.parametrize("known", ["settings", "service", "nothing"])
def test_what_is_mounted_is_found_without_settings(known: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounted, changed = str(tmp_path / "store1"), list[str]()
    settings = SettingsFile("store1.toml", mounted, {})
    monkeypatch.setattr(uninstall, "settings_of", lambda _root, _name: settings if known == "settings" else None)
    monkeypatch.setattr(installation, "is_installed", lambda _root, _name: True)
    monkeypatch.setattr(installation, "datastore_of", lambda _root, _name: mounted if known == "service" else None)
    monkeypatch.setattr(uninstall, "is_mounted", lambda path: path == mounted)
    monkeypatch.setattr(uninstall, "mountpoints", lambda: {mounted})
    monkeypatch.setattr(uninstall, "_take_away", lambda _root, name: changed.append(name))
    done = CliRunner().invoke(main, ["uninstall", "store1", "--keep-state"])
    assert (done.exit_code, changed) == (1, [])
    assert f"{mounted} is mounted: unmount it first" in done.output


def test_the_datastore_is_known_from_what_was_installed(system: System) -> None:
    assert installation.datastore_of(str(system.root), "store1") is None
    system.succeed("install", "store1")
    assert installation.datastore_of(str(system.root), "store1") == "/mnt/datastore/store1"


def test_units_of_a_package_are_used_and_left_alone(system: System) -> None:
    packaged = system.root / units.PACKAGED
    packaged.mkdir(parents=True)
    (packaged / units.MOUNT).write_text("the package's")
    system.succeed("install", "store1")
    assert not (system.root / _SYSTEM / units.MOUNT).exists()
    assert not (system.root / "usr/sbin/mount.mirrorfs").is_symlink()
    link = system.root / _SYSTEM / "multi-user.target.wants" / "mirrorfs@store1.service"
    assert os.readlink(link) == f"/{units.PACKAGED}/{units.MOUNT}"
    # What was installed by hand before the package was: systemd would go on with that program.
    hiding = system.root / _SYSTEM / units.MOUNT
    hiding.write_text("an earlier one's")
    assert f"/{_SYSTEM}/{units.MOUNT} hides the unit of the package." in system.succeed("install", "store1")
    hiding.unlink()
    hiding.symlink_to("/dev/null")
    assert "hides" not in system.succeed("install", "store1")
    system.succeed("uninstall", "store1")
    assert (packaged / units.MOUNT).read_text() == "the package's"


def _state(system: System) -> StateDirectory:
    directory = StateDirectory(str(system.root / "var/lib/mirrorfs/mnt-datastore-store1"))
    directory.create()
    for name in ("journal", "state", "state.damaged-20261127"):
        (Path(directory.path) / name).mkdir()
        (Path(directory.path) / name / "data.mdb").write_bytes(b"x")
    # What a power cut leaves.
    (Path(directory.path) / "journal" / "data.mdb.distrusted").write_bytes(b"x")
    Path(directory.log_file).write_text("log")
    for name in ("mirrorfs.told", "mirrorfs.events", "mirrorfs.events.1", "notifier.lock"):
        (Path(directory.path) / name).write_text("")
    return directory


def test_journal_state_and_log_are_taken_away_unless_they_are_to_stay(system: System) -> None:
    directory = _state(system)
    system.succeed("uninstall", "store1", "--keep-state")
    assert len(os.listdir(directory.path)) == 8
    (Path(directory.path) / "precious").write_text("mine")
    assert "something else is in it" in system.succeed("uninstall", "store1")
    assert os.listdir(directory.path) == ["precious"]
    (Path(directory.path) / "precious").unlink()
    system.succeed("uninstall", "store1")
    assert not os.path.exists(directory.path)


def test_what_only_has_a_name_like_ours_stays(system: System) -> None:
    directory = _state(system)
    path = Path(directory.path)
    (path / "reload.sock").write_text("no socket")
    (path / "state.old").mkdir()
    (path / "journal.import").mkdir()
    (path / "journal.import" / "notes.txt").write_text("somebody's")
    (path / "dnf.lock").write_text("somebody's")
    (path / "state.copy").symlink_to("/etc")
    assert "something else is in it" in system.succeed("uninstall", "store1")
    left = {str(found.relative_to(path)) for found in path.rglob("*")}
    assert left == {"reload.sock", "state.old", "journal.import", "journal.import/notes.txt", "dnf.lock", "state.copy"}


def test_the_state_of_a_mirror_that_runs_is_not_touched(system: System) -> None:
    directory = _state(system)
    lock = DirectoryLock(directory, "mount")
    lock.acquire()
    before = sorted(os.listdir(directory.path))
    done = system.run("uninstall", "store1")
    assert done.exit_code == 1
    assert "mirrorfs umount" in done.output
    assert sorted(set(os.listdir(directory.path)) - {"uploader.lock"}) == before
    lock.release()


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("none", None, "there is no settings file"),
        ("../x", None, "is no name"),
        ("a%b", 'datastore = "/mnt/a"', "is no name"),
        ("s", 'to = "s3://a/b"', "does not say which datastore"),
        ("s", 'datastore = "relative"', "must be the absolute path"),
        ("s", "datastore = 7", "must be the absolute path"),
        ("s", "datastore = ", "cannot read the settings file"),
        ("s", 'datastore = "/mnt/with blank"', "cannot stand in a unit"),
        ("s", 'datastore = "/mnt/%n"', "cannot stand in a unit"),
        ("s", 'datastore = "/mnt/$HOME"', "cannot stand in a unit"),
    ],
)
def test_what_cannot_be_installed_changes_nothing(system: System, name: str, settings: str | None, said: str) -> None:
    if settings is not None:
        system.settings(name, settings)
    before = system.tree()
    done = system.run("install", name)
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert system.tree() == before


@pytest.mark.parametrize("failing", range(1, 10))
def test_an_installation_that_fails_leaves_nothing(
    system: System, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    before, replace, count = system.tree(), os.replace, 0

    def fail(source: str, target: str) -> None:
        nonlocal count
        count += 1
        if count == failing:
            raise OSError(errno.ENOSPC, "no space", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    done = system.run("install", "store1")
    assert done.exit_code == 1
    assert "nothing was installed" in done.output
    assert system.tree() == before


def test_a_file_where_a_link_is_to_be_is_nobody_elses_business(system: System) -> None:
    helper = system.root / units.MOUNT_HELPER
    helper.parent.mkdir(parents=True)
    helper.write_text("somebody's")
    before = system.tree()
    done = system.run("install", "store1")
    assert done.exit_code == 1
    assert "it is no link" in done.output
    assert system.tree() == before


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="Debian's package systemd has it")
def test_systemd_understands_the_units(system: System) -> None:
    system.succeed("install", "store1")
    for path in _PBS:
        unit = system.root / _SYSTEM / path.removesuffix(".d")
        unit.write_text("[Service]\nExecStart=/bin/true\n")
    program = system.root / interpreter.program("mirrorfs").lstrip("/")
    for executable in (program, *(system.root / "bin" / name for name in ("sh", "true"))):
        executable.parent.mkdir(parents=True, exist_ok=True)
        executable.write_text("#!/bin/sh\n")
        executable.chmod(0o755)
    for name in ("network-online.target", "time-sync.target", "multi-user.target", "timers.target", "sysinit.target"):
        (system.root / _SYSTEM / name).write_text("[Unit]\nDescription=here\n")
    for name in ("basic.target", "shutdown.target", "umount.target", "-.mount", "system.slice"):
        (system.root / _SYSTEM / name).touch()
    names = [units.instance(unit, "store1") for unit in units.TEMPLATES]
    done = subprocess.run(
        ["systemd-analyze", f"--root={system.root}", "--man=no", "verify", *names, *units.PBS_UNITS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "mirrorfs" not in done.stderr
    unknown = installation.leftovers(str(system.root), "store1")
    assert unknown == [f"/{_SYSTEM}/mirrorfs@store1.service.d/datastore.conf"]
