"""The package of the commit that is checked out, built once, and fresh Debians to install it in."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path

import pytest

from tests.service.debian import ROOT, Debian, Packages, directory_for, fresh_debian, release_of_this_machine, run
from tests.service.typed import Typist

# Debian 12 and 13. Each gets a package of its own, as each has another version of Python.
_RELEASES = ("bookworm", "trixie")


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/package makes in a clone of the commit that is checked out."""
    clone = tmp_path_factory.mktemp("clone") / "mirrorfs"
    run("git", "clone", "--quiet", ROOT, clone)
    Typist(run, directory=str(clone)).literally("scripts/package")
    return clone / "dist"


@pytest.fixture(scope="session")
def package(dist: Path) -> Path:
    (found,) = dist.glob("mirrorfs_*.deb")
    return found


@pytest.fixture(scope="session")
def package_for(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Packages:
    """The package for a Debian: that of this machine is built here, another one in a chroot."""

    @cache
    def build(release: str) -> Path:
        if release == release_of_this_machine():
            here: Path = request.getfixturevalue("package")
            return here
        directory = tmp_path_factory.mktemp(release)
        run(ROOT / "scripts" / "package", "--release", release, directory)
        (found,) = directory.iterdir()
        return found

    return build


@pytest.fixture(scope="session")
def made_for() -> Iterator[Callable[[str], Path]]:
    """A Debian of each release that is asked for, to be copied."""
    if shutil.which("debootstrap") is None:
        pytest.skip("needs debootstrap")
    with ExitStack() as stack:

        @cache
        def make(release: str) -> Path:
            root = stack.enter_context(directory_for(release))
            run(ROOT / "scripts" / "fresh-debian", release, root)
            return root

        yield make


@pytest.fixture(params=_RELEASES)
def debian(request: pytest.FixtureRequest, made_for: Callable[[str], Path]) -> Iterator[Debian]:
    """A fresh Debian of each release."""
    with fresh_debian(request.param, made_for(request.param)) as made:
        yield made
