"""The Debian package: what is in it, and that a fresh Debian takes it, has it upgraded, and gets rid of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mirrorfs.cli.main import main
from mirrorfs.service import units

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="packages are installed by root"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian"),
]

_ROOT = Path(__file__).parents[2]
_MIRROR = "http://deb.debian.org/debian"


def _run(*command: str | Path, **environment: str) -> str:
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


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/package makes of the commit that is checked out."""
    directory = tmp_path_factory.mktemp("dist")
    _run(_ROOT / "scripts" / "package", directory)
    return directory


@pytest.fixture(scope="session")
def package(dist: Path) -> Path:
    (found,) = dist.glob("mirrorfs_*.deb")
    return found


@pytest.fixture(scope="session")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package."""
    directory = tmp_path_factory.mktemp("tree")
    _run("dpkg-deb", "--raw-extract", package, directory)
    return directory


def _commands(group: click.Group, prefix: str) -> Iterator[str]:
    context = click.Context(group)
    for name in group.list_commands(context):
        yield f"{prefix}-{name}"
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from _commands(command, f"{prefix}-{name}")


def test_what_is_in_it(tree: Path) -> None:
    control = (tree / "DEBIAN" / "control").read_text()
    assert re.search(
        r"^Depends: python3 \(>= 3\.\d+\), python3 \(<< 3\.\d+\), fuse3, .*libfuse3-", control, re.MULTILINE
    )
    assert (tree / "DEBIAN" / "conffiles").read_text() == "/etc/default/mirrorfs\n"
    for name in units.TEMPLATES:
        text = (tree / units.PACKAGED / name).read_text()
        assert text == units.template(name, "/usr/bin/mirrorfs")
    for name in ("mirrorfs", *_commands(main, "mirrorfs")):
        assert (tree / "usr/share/man/man1" / f"{name}.1.gz").is_file()
    for name in ("bash-completion/completions/mirrorfs", "zsh/vendor-completions/_mirrorfs"):
        assert "_MIRRORFS_COMPLETE" in (tree / "usr/share" / name).read_text()
    for name in ("usr/bin/mirrorfs", "usr/sbin/mount.mirrorfs"):
        assert (tree / name).resolve() == tree / "usr/lib/mirrorfs/bin" / Path(name).name
        assert (tree / name).read_text().startswith("#!/usr/lib/mirrorfs/bin/python")
    others = [path for path in tree.rglob("*") if path.lstat().st_uid or path.lstat().st_mode & 0o022]
    assert [path for path in others if not path.is_symlink()] == []


def test_the_wheel_and_the_sources_are_whole(dist: Path, tmp_path: Path) -> None:
    for built in (*dist.glob("*.whl"), *dist.glob("*.tar.gz")):
        directory = tmp_path / built.name
        _run("/usr/bin/python3", "-m", "venv", "--without-pip", directory)
        (python,) = directory.glob("bin/python3")
        _run(_ROOT / ".venv/bin/python", "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", built)
        (site,) = directory.glob("lib/python3.*/site-packages")
        assert {path.name for path in (site / "mirrorfs/service/templates").iterdir()} >= set(units.TEMPLATES)
        assert (site / "mirrorfs/commit").read_text() == _run("git", "-C", _ROOT, "rev-parse", "HEAD")
        assert {"mirrorfs", "mount.mirrorfs"} <= {path.name for path in (directory / "bin").iterdir()}


class Debian:
    """A fresh Debian in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(self, *command: str) -> str:
        return _run("chroot", self.root, *command, DEBIAN_FRONTEND="noninteractive", LC_ALL="C.UTF-8")

    def traces(self) -> set[str]:
        """What has the name of mirrorfs, or stands in the configuration of the system."""
        found = self.run("find", "/etc", "/usr", "/var/lib", "/run", "-xdev", "-name", "*mirrorfs*")
        return {path for path in found.splitlines() if not path.startswith("/var/lib/dpkg/info/")}

    def text(self, path: str) -> str:
        return (self.root / path).read_text()


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Debian]:
    """The release that this runs on, which is the one that the package was built for."""
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap")
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    root = tmp_path / "debian"
    _run("debootstrap", "--variant=minbase", release["VERSION_CODENAME"].strip('"'), root, _MIRROR)
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
    _run("mount", "-t", "proc", "proc", root / "proc")
    try:
        yield Debian(root)
    finally:
        _run("umount", "--lazy", root / "proc")


def test_a_fresh_debian_takes_it_and_gets_rid_of_it(debian: Debian, package: Path, tree: Path, tmp_path: Path) -> None:
    before = debian.traces()
    shutil.copy(package, debian.root / "mirrorfs.deb")
    debian.run("apt-get", "update", "-q")
    debian.run("apt-get", "install", "-y", "-q", "--no-install-recommends", "/mirrorfs.deb")
    commit = _run("git", "-C", _ROOT, "rev-parse", "HEAD").strip()
    assert f"commit {commit}" in debian.run("mirrorfs", "--version")
    assert not (debian.root / "etc/systemd/system/multi-user.target.wants/mirrorfs@store1.service").is_symlink()

    (debian.root / "etc/mirrorfs/store1.toml").write_text('datastore = "/srv/store1"\nto = "s3://backups/store1"\n')
    debian.run("mirrorfs", "install", "store1")
    (debian.root / "etc/default/mirrorfs").write_text("AWS_PROFILE=mine\n")
    (debian.root / "var/lib/mirrorfs/srv-store1/journal").mkdir(parents=True)
    enabled = debian.traces()
    assert (
        os.readlink(debian.root / "etc/systemd/system/multi-user.target.wants/mirrorfs@store1.service")
        == f"/{units.PACKAGED}/{units.MOUNT}"
    )

    newer = tmp_path / "newer"
    shutil.copytree(tree, newer, symlinks=True)
    control = (newer / "DEBIAN/control").read_text()
    (newer / "DEBIAN/control").write_text(re.sub(r"^Version: (.*)$", r"Version: \1+1", control, flags=re.MULTILINE))
    _run("dpkg-deb", "--root-owner-group", "-Znone", "--build", newer, debian.root / "newer.deb")
    debian.run("dpkg", "--install", "/newer.deb")
    assert debian.traces() == enabled
    assert debian.text("etc/default/mirrorfs") == "AWS_PROFILE=mine\n"

    debian.run("apt-get", "remove", "-y", "-q", "mirrorfs")
    left = debian.traces() - before
    assert left == {"/etc/mirrorfs", "/etc/default/mirrorfs", "/var/lib/mirrorfs"}, "PBS would wait for what is gone"
    assert (debian.root / "var/lib/mirrorfs/srv-store1/journal").is_dir()
    debian.run("apt-get", "purge", "-y", "-q", "mirrorfs")
    assert debian.traces() == before
