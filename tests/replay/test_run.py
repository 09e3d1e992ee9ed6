"""What a run, or a repair, is refused for before anything is asked of the store."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mirrorfs.database.directory import StateDirectory
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.replay.run import Replay, ReplayRefused, ReplaySettings
from mirrorfs.replication.engine import Engine
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.state.identity import Identity
from mirrorfs.state.state import State
from mirrorfs.supervision.sole_mirror import sole_mirror

_BUCKET, _PREFIX = "backups", "store1"


@pytest.fixture
def uploader(tmp_path: Path) -> UploaderSettings:
    datastore = tmp_path / "datastore"
    datastore.mkdir()
    return UploaderSettings(
        datastore=str(datastore),
        state_directory="",
        root_descriptor=-1,
        bucket=_BUCKET,
        prefix=_PREFIX,
        store=StoreOptions(endpoint_url="http://127.0.0.1:9"),
    )


@pytest.fixture
def directory(tmp_path: Path, uploader: UploaderSettings) -> StateDirectory:
    directory = StateDirectory(str(tmp_path / "state"))
    directory.create()
    state = State(directory.state)
    state.update(lambda transaction: transaction.identity.set(Identity(uploader.datastore, _BUCKET, _PREFIX)))
    state.close()
    return directory


async def nothing(engine: Engine) -> None:
    raise AssertionError("it was not refused")


def test_a_repair_leaves_it_to_a_mount_to_find_out_what_a_bucket_is_to_hold(
    directory: StateDirectory, uploader: UploaderSettings
) -> None:
    before = sorted(os.listdir(directory.path))
    with (
        pytest.raises(ReplayRefused, match="is found out by a mount"),
        Replay(directory.path, ReplaySettings(uploader, repair=nothing), lambda progress: None),
    ):
        pass
    assert set(os.listdir(directory.path)) - set(before) <= {"mount.lock"}


def test_a_datastore_that_is_mirrored_is_left_to_its_mirror(
    directory: StateDirectory, uploader: UploaderSettings
) -> None:
    root = os.open(uploader.datastore, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with (
            sole_mirror(root, uploader.datastore),
            pytest.raises(ReplayRefused, match="is mirrored already"),
            Replay(directory.path, ReplaySettings(uploader), lambda progress: None),
        ):
            pass
    finally:
        os.close(root)
