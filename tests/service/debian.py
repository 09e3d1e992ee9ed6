"""A fresh Debian in a directory, entered by chroot(8), with the package as only thing of mirrorfs."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mirrorfs.filesystem.mount_table import mount_at
from mirrorfs.service import units
from tests.service_manager import ServiceManager, Unit, clean_environment, environment_of

ROOT = Path(__file__).parents[2]
_NOTIFY = "/run/notify"
# apt asks nobody, and installs what is named and what that depends on.
_ANSWERS = 'APT::Get::Assume-Yes "true";\nAPT::Install-Recommends "false";\n'
# What newer_than() says that it was built from.
NEWER_COMMIT = "f" * 40
Packages = Callable[[str], Path]


def run(*command: str | Path, **environment: str) -> str:
    """Run a command that must succeed, and return its output."""
    done = subprocess.run(
        command,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


def release_of_this_machine() -> str:
    """The name of the Debian that the tests run on."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)["VERSION_CODENAME"].strip('"')


class Debian:
    """A system below a directory: its processes and mounts are this machine's."""

    def __init__(self, root: Path, release: str) -> None:
        self.root, self.release = root, release
        self.log = root / "var/log/units"

    # -- commands ----------------------------------------------------------------------------------------

    def run(self, *command: str) -> str:
        """Run a command in it that must succeed, and return its output."""
        return run("chroot", self.root, *command, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8")

    def get(self, *packages: str) -> None:
        """Install packages as documented: without what they only recommend."""
        self.run("apt-get", "install", "-y", "-q", "--no-install-recommends", *packages)

    def install(self, package: Path) -> None:
        """Install a package that lies outside, with what it depends on."""
        shutil.copy(package, self.root / "new.deb")
        self.get("/new.deb")

    def path(self, path: str) -> Path:
        """A path in it, as others reach it."""
        return self.root / path.lstrip("/")

    def text(self, path: str) -> str:
        """What stands in a file."""
        return (self.root / path).read_text()

    def traces(self) -> set[str]:
        """What has the name of mirrorfs, or stands in the configuration of the system."""
        found = self.run("find", "/etc", "/usr", "/var/lib", "/run", "-xdev", "-name", "*mirrorfs*")
        return {path for path in found.splitlines() if not path.startswith("/var/lib/dpkg/info/")}

    def leave(self) -> None:
        """Take away what chroot(8) needs and what systemd-nspawn(1) would take for its own."""
        for path in ("proc", "dev/pts", "run"):
            if mount_at(str(self.root / path)) is not None:
                run("umount", "--lazy", self.root / path)

    # -- what systemd would do ---------------------------------------------------------------------------

    @contextmanager
    def service(self, name: str) -> Iterator[ServiceManager]:
        """Start the unit of a mirror with its drop-ins, as a boot does; it is killed at the end if it still runs."""
        (self.root / _NOTIFY.lstrip("/")).unlink(missing_ok=True)
        manager = ServiceManager(self.root / _NOTIFY.lstrip("/"))
        try:
            self.start(manager, name)
            yield manager
        finally:
            manager.close()

    def start(self, manager: ServiceManager, name: str) -> None:
        """Start the unit of a mirror, and return when it is ready."""
        drop_ins = sorted((self.root / units.SYSTEM / f"{units.instance(units.MOUNT, name)}.d").iterdir())
        texts = [path.read_text() for path in (self.root / units.PACKAGED / units.MOUNT, *drop_ins)]
        unit = Unit("\n".join(texts), name)
        (defaults,) = unit.values("EnvironmentFile")
        given = environment_of(self.text(defaults.removeprefix("-").lstrip("/")))
        with self.log.open("ab") as log:
            manager.start(unit, {**clean_environment(), **given, "NOTIFY_SOCKET": _NOTIFY}, log, root=self.root)
        manager.hear_that_it_is_ready()

    # -- accidents ---------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """The processes that have it as their root."""
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _root_of(path) == str(self.root)]

    def kill_everything(self) -> None:
        """SIGKILL for each process in it, until there is none."""
        while processes := self.processes():
            for pid in processes:
                _kill(pid)

    def lose_its_mounts(self) -> None:
        """Take away what is mounted in it by others than `fresh_debian`, and empty /run, as the end of a machine."""
        for line in Path("/proc/self/mounts").read_text().splitlines()[::-1]:
            _, path, kind = line.split()[:3]
            if kind == "fuse.mirrorfs" and path.startswith(f"{self.root}/"):
                run("umount", "--lazy", path)
        run("umount", "--lazy", self.root / "run")
        run("mount", "-t", "tmpfs", "tmpfs", self.root / "run")


def _root_of(process: Path) -> str:
    try:
        return os.readlink(process / "root")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        signal.pidfd_send_signal(process, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        os.close(process)


@contextmanager
def directory_for(release: str) -> Iterator[Path]:
    """A directory for a Debian that is gone at the end, in memory: its many files would take a busy disk minutes."""
    directory = Path(tempfile.mkdtemp(prefix=f"mirrorfs-{release}-", dir="/var/tmp"))
    try:
        run("mount", "-t", "tmpfs", "-o", "size=3G,mode=755", "tmpfs", directory)
        yield directory / "root"
    finally:
        # With all that is mounted below.
        run("umount", "--lazy", directory)
        directory.rmdir()


@contextmanager
def fresh_debian(release: str, made: Path) -> Iterator[Debian]:
    """Copy one that is made, and give it /proc, terminals, FUSE and an empty /run; it is gone at the end."""
    with directory_for(release) as root:
        run("cp", "--archive", made, root)
        debian = Debian(root, release)
        try:
            # Its own mount, so that programs in it see a mount on /, which is nobody else's.
            run("mount", "--bind", "--make-private", root, root)
            run("mount", "-t", "proc", "proc", root / "proc")
            run("mount", "-t", "devpts", "devpts", root / "dev/pts")
            run("mount", "-t", "tmpfs", "tmpfs", root / "run")
            run("mknod", root / "dev/fuse", "c", "10", "229")
            (root / "etc/apt/apt.conf.d/answers").write_text(_ANSWERS)
            yield debian
        finally:
            debian.kill_everything()


def newer_than(package: Path, directory: Path) -> Path:
    """Make the same package with a higher version, which names a commit of its own."""
    tree = directory / "newer"
    run("dpkg-deb", "--raw-extract", package, tree)
    control = (tree / "DEBIAN/control").read_text()
    (tree / "DEBIAN/control").write_text(re.sub(r"^Version: (.*)$", r"Version: \1+1", control, flags=re.MULTILINE))
    (commit,) = tree.glob("usr/lib/mirrorfs/lib/python3.*/site-packages/mirrorfs/commit")
    commit.write_text(NEWER_COMMIT)
    run("dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, directory / "newer.deb")
    return directory / "newer.deb"
