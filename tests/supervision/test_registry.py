"""What is noted of mounts."""

from __future__ import annotations

import json
import stat
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from mirrorfs.supervision import registry
from mirrorfs.supervision.registry import RunningMount

HERE = RunningMount("/mnt/a", "/mnt/a", "/state/a", 100)
ELSEWHERE = RunningMount("/mnt/b-1", "/srv/b", "/state/b", 101)


@pytest.fixture(autouse=True)
def runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of the test's own, in a world in which both mounts stand."""
    path = tmp_path / "run"
    monkeypatch.setattr(registry, "RUNTIME_BASE", str(path))
    monkeypatch.setattr(registry, "is_mounted", lambda mountpoint: mountpoint in ("/mnt/a", "/srv/b"))
    return path


def test_a_mount_is_found_by_mount_point_and_by_datastore(runtime: Path) -> None:
    assert registry.running_mounts() == []
    assert registry.find("/mnt/a") is None
    for mount in (HERE, ELSEWHERE):
        registry.register(mount)
    assert registry.running_mounts() == [HERE, ELSEWHERE]
    assert registry.find("/mnt/a") == HERE
    assert registry.find("/srv/b") == registry.find("/mnt/b-1") == ELSEWHERE
    assert registry.find("/mnt/b") is None
    assert registry.state_directory_of("/mnt/b-1").path == "/state/b"
    assert registry.state_directory_of("/mnt/b").path == "/var/lib/mirrorfs/mnt-b"
    assert registry.mountpoint_of("/mnt/b-1") == "/srv/b"
    assert registry.mountpoint_of("/mnt/a") == registry.mountpoint_of("/mnt/a") == "/mnt/a"
    assert stat.S_IMODE(runtime.stat().st_mode) == 0o700
    assert {oct(stat.S_IMODE(path.stat().st_mode)) for path in runtime.iterdir()} == {"0o600"}


def test_a_mount_that_went_takes_only_its_own_note_away(runtime: Path) -> None:
    registry.register(HERE)
    successor = RunningMount("/mnt/a", "/mnt/a", "/state/a", 200)
    registry.register(successor)
    registry.unregister(HERE)
    assert registry.find("/mnt/a") == successor
    registry.unregister(replace(ELSEWHERE, pid=200))
    assert registry.find("/mnt/a") == successor
    registry.unregister(successor)
    registry.unregister(successor)
    assert registry.find("/mnt/a") is None
    assert list(runtime.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"mountpoint": 1'])
def test_an_entry_that_cannot_be_read_is_no_entry(text: str, runtime: Path) -> None:
    runtime.mkdir()
    (runtime / "mnt-a.json").write_text(text)
    assert registry.find("/mnt/a") is None


def test_an_entry_of_a_newer_version_is_understood(runtime: Path) -> None:
    runtime.mkdir()
    (runtime / "mnt-a.json").write_text(json.dumps({**asdict(HERE), "of_tomorrow": True}))
    assert registry.find("/mnt/a") == HERE
