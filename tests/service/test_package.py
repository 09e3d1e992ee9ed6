"""The Debian package: what is in it, and that a fresh Debian takes it, has it upgraded, and gets rid of it."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from mirrorfs.cli.main import main
from mirrorfs.service import units
from tests.service.debian import NEWER_COMMIT, ROOT, Debian, Packages, newer_than, run
from tests.service.typed import Typist

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(os.geteuid() != 0, reason="packages are installed by root"),
    pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="needs Debian"),
]


@pytest.fixture(scope="session")
def tree(package: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the package."""
    directory = tmp_path_factory.mktemp("tree")
    run("dpkg-deb", "--raw-extract", package, directory)
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
        run("/usr/bin/python3", "-m", "venv", "--without-pip", directory)
        (python,) = directory.glob("bin/python3")
        run(ROOT / ".venv/bin/python", "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", built)
        (site,) = directory.glob("lib/python3.*/site-packages")
        assert {path.name for path in (site / "mirrorfs/service/templates").iterdir()} >= set(units.TEMPLATES)
        assert (site / "mirrorfs/commit").read_text() == run("git", "-C", ROOT, "rev-parse", "HEAD")
        assert {"mirrorfs", "mount.mirrorfs"} <= {path.name for path in (directory / "bin").iterdir()}


def test_a_fresh_debian_takes_it_and_gets_rid_of_it(debian: Debian, package_for: Packages, tmp_path: Path) -> None:
    before = debian.traces()
    package = package_for(debian.release)
    debian.install(package)
    commit = run("git", "-C", ROOT, "rev-parse", "HEAD").strip()
    assert f"commit {commit}" in debian.run("mirrorfs", "--version")
    assert not (debian.root / "etc/systemd/system/multi-user.target.wants/mirrorfs@store1.service").is_symlink()
    assert debian.processes() == [], "the package starts nothing"

    (debian.root / "etc/mirrorfs/store1.toml").write_text('datastore = "/srv/store1"\nto = "s3://backups/store1"\n')
    debian.run("mirrorfs", "install", "store1")
    (debian.root / "etc/default/mirrorfs").write_text("AWS_PROFILE=mine\n")
    (debian.root / "var/lib/mirrorfs/srv-store1/journal").mkdir(parents=True)
    enabled = debian.traces()
    assert (
        os.readlink(debian.root / "etc/systemd/system/multi-user.target.wants/mirrorfs@store1.service")
        == f"/{units.PACKAGED}/{units.MOUNT}"
    )

    debian.install(newer_than(package, tmp_path))
    assert f"commit {NEWER_COMMIT}" in debian.run("mirrorfs", "--version")
    assert debian.traces() == enabled
    assert debian.text("etc/default/mirrorfs") == "AWS_PROFILE=mine\n"

    shell = Typist(debian.run)
    shell.literally("apt remove mirrorfs")
    left = debian.traces() - before
    assert left == {"/etc/mirrorfs", "/etc/default/mirrorfs", "/var/lib/mirrorfs"}, "PBS would wait for what is gone"
    assert (debian.root / "var/lib/mirrorfs/srv-store1/journal").is_dir()
    shell.literally("apt purge mirrorfs")
    assert debian.traces() == before


def test_shells_complete_and_man_shows(debian: Debian, package_for: Packages) -> None:
    debian.install(package_for(debian.release))
    debian.get("bash-completion", "fish", "zsh", "man-db")
    script = """
        . /usr/share/bash-completion/bash_completion
        _completion_loader mirrorfs
        COMP_WORDS=(mirrorfs uni) COMP_CWORD=1
        $(complete -p mirrorfs | sed 's/.*-F \\([^ ]*\\).*/\\1/') mirrorfs
        echo "${COMPREPLY[@]}"
    """
    assert debian.run("bash", "-c", script).split() == ["uninstall"]
    assert debian.run("fish", "-c", "complete -C 'mirrorfs uni'").split("\t")[0].strip() == "uninstall"
    script = """
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "autoload -Uz compinit; compinit -u; PROMPT=; zle_bracketed_paste=()"
        zpty -n -w shell $'mirrorfs uni\\t'
        zpty -r -m shell shown '*mirrorfs uninstall*' && echo completed
    """
    assert "completed" in debian.run("timeout", "60", "zsh", "-f", "-c", script)
    assert "--into" in Typist(debian.run).literally("man mirrorfs-restore")


def test_pipx_takes_the_wheel_and_the_sources(debian: Debian, dist: Path) -> None:
    debian.path("/root/dist").mkdir()
    (wheel,), (sources,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    for built in (wheel, sources):
        shutil.copy(built, debian.path("/root/dist"))
    shell = Typist(debian.run)
    shell.literally("apt install pipx fuse3 libfuse3-dev pkg-config gcc python3-dev")
    shell.literally(
        "PIPX_HOME=/opt/pipx PIPX_BIN_DIR=/usr/local/bin pipx install ./dist/mirrorfs-0.1.0-py3-none-any.whl"
    )
    others = ("env", "PIPX_HOME=/opt/pipx1", "PIPX_BIN_DIR=/usr/local/bin1")
    debian.run(*others, "pipx", "install", f"/root/dist/{sources.name}")
    commit = run("git", "-C", ROOT, "rev-parse", "HEAD").strip()
    for programs in ("/usr/local/bin", "/usr/local/bin1"):
        assert f"commit {commit}" in debian.run(f"{programs}/mirrorfs", "--version")
        assert "DATASTORE" in debian.run(f"{programs}/mount.mirrorfs", "--help")
