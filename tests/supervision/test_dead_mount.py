"""Below a dead mount nobody can see whether the datastore's disk is there: it is looked at when that was taken away."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.filesystem.condition import Condition
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.supervision import mount
from mirrorfs.supervision.mount import MountRefused
from mirrorfs.supervision.registry import RunningMount
from mirrorfs.supervision.settings import MountSettings
from mirrorfs.supervision.sole_mirror import root_id


@pytest.fixture
def datastore(tmp_path: Path) -> Path:
    """A directory that stands for the one below a dead mount."""
    return tmp_path


@pytest.fixture
def root(datastore: Path) -> Iterator[str]:
    """What tells that directory from others."""
    descriptor = os.open(datastore, os.O_RDONLY | os.O_DIRECTORY)
    yield root_id(descriptor)
    os.close(descriptor)


def _open(datastore: Path, root: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    path, detached = str(datastore), list[str]()
    dead = None if root is None else RunningMount(path, path, "/state", 1, root=root)
    monkeypatch.setattr(mount, "find", lambda _: dead)
    monkeypatch.setattr(mount, "detach", detached.append)
    monkeypatch.setattr(mount, "condition_of", lambda _: Condition.ABSENT if detached else Condition.DEAD)
    os.close(mount._open_datastore(MountSettings(path, UploaderSettings(path, "/state", -1, "b", "n"))))
    assert detached == [path]


@pytest.mark.parametrize("known", ["0:0:1", None])
def test_an_empty_directory_in_place_of_the_disk_is_refused(
    datastore: Path, known: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MountRefused, match="is its disk missing"):
        _open(datastore, known, monkeypatch)


def test_the_directory_that_was_mirrored_is_mounted_again(
    datastore: Path, root: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _open(datastore, root, monkeypatch)


def test_a_datastore_is_one_also_where_its_disk_has_another_number(
    datastore: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (datastore / ".chunks").mkdir()
    _open(datastore, "0:0:1", monkeypatch)
