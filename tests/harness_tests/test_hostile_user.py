"""The hostile user of the harness: he does what he is for, is found out where he is not kept out, and costs nobody."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness.hostile_user import HOSTILE_UID, HostileUser, hostile_user, is_clean, what_is_not_clean
from tests.harness.statistics import Statistics
from tests.harness.world import World, WorldSettings
from tests.stores.seaweedfs import StoreServer


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="mirrorfs-test-", dir="/dev/shm") as path:
        place = Path(path) / "datastore" / "everybody"
        place.mkdir(parents=True)
        place.chmod(0o1777)
        for name in ("vm", ".chunks", ".chunks/0000"):
            (place.parent / name).mkdir()
        yield place


def test_he_makes_all_kinds_of_names_and_reaches_nothing(place: Path) -> None:
    with HostileUser(place, 1) as user:
        deeds = user.deeds()
        assert deeds is not None
        assert deeds.reached == ()
        assert deeds.made > 100
        assert deeds.held > 1000
        names = os.listdir(os.fsencode(place))
        assert any(b"\x1b" in name for name in names)
        assert any(b"\n" in name for name in names)
        assert any(path.is_symlink() for path in place.iterdir())
        assert any(path.is_fifo() for path in place.iterdir())
        assert {path.lstat().st_uid for path in place.iterdir()} == {HOSTILE_UID}


def test_the_same_seed_does_the_same(place: Path) -> None:
    found = []
    for _ in range(2):
        with HostileUser(place, 5) as user:
            assert user.deeds() is not None
            found.append(sorted(os.listdir(os.fsencode(place))))
        for path in place.iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    assert found[0] == found[1]


def test_what_he_reaches_is_told(place: Path) -> None:
    (place.parent / "vm").chmod(0o777)
    with HostileUser(place, 1) as user:
        deeds = user.deeds()
    assert deeds is not None
    assert "mkdir ../vm" in deeds.reached


@pytest.mark.parametrize("line", ["a\x1bb", "a\x9bb", "a\u202eb", "a\udcffb", "a\u2028b", "a\rb"])
def test_what_is_not_clean_is_seen(line: str) -> None:
    assert not is_clean(line)
    assert is_clean("2026-01-01 00:00:00,000 mount INFO Grüße \\x1b")


@pytest.fixture
def world(store: StoreServer, shared_bucket: str, prefix: str) -> Iterator[World]:
    base = Path(tempfile.mkdtemp(prefix="mirrorfs-test-", dir="/dev/shm"))
    try:
        settings = WorldSettings(base, store, shared_bucket, prefix, {})
        with World(settings, Statistics(), seed=1) as world:
            yield world
    finally:
        shutil.rmtree(base, ignore_errors=True)


def test_nobody_notices_him(world: World) -> None:
    choice = random.Random(1)
    hostile_user(world, choice)
    world.finish(choice, restore=False)
    assert world.violations() == []
    assert world.statistics.faults["hostile user"] == 1
    assert world.statistics.checks["names made by a hostile user"] > 100


def test_a_log_with_a_forged_line_is_found(world: World) -> None:
    log = world.mirror.state / "mirrorfs.log"
    assert list(what_is_not_clean(world)) == []
    with log.open("a") as file:
        file.write("mount INFO all is well\n\x1b[2J\n")
    assert len(list(what_is_not_clean(world))) == 3


def test_the_program_needs_nothing_but_python(tmp_path: Path) -> None:
    program = Path(sys.modules[HostileUser.__module__].__file__ or "").with_name("hostile_program.py").read_text()
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-I", "-S", "-c", program, "3"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        user=HOSTILE_UID,
    )
    assert json.loads(done.stdout)["made"] >= 0
