"""The state directory: private, found by its name, and used by one mount at a time."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from mirrorfs.database.directory import DirectoryLock, StateDirectory, default_state_directory, escaped_name
from mirrorfs.database.errors import DatabaseError, StateDirectoryBusy

_HOLDER = """
import sys
from mirrorfs.database.directory import DirectoryLock, StateDirectory
DirectoryLock(StateDirectory(sys.argv[1]), "mount").acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_it_is_made_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        directory = StateDirectory(str(tmp_path / "a" / "state"))
        directory.create()
        directory.create()
        DirectoryLock(directory, "mount").acquire()
    finally:
        os.umask(previous)
    assert stat.S_IMODE(os.stat(directory.path).st_mode) == 0o700
    assert stat.S_IMODE(os.stat(tmp_path / "a" / "state" / "mount.lock").st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o755, 0o710, 0o701])
def test_one_that_others_may_enter_is_refused(tmp_path: Path, mode: int) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(mode)
    with pytest.raises(DatabaseError, match="chmod 700"):
        StateDirectory(str(tmp_path / "state")).create()


def test_one_of_somebody_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", 34, 34)
    with pytest.raises(DatabaseError, match="uid 34"):
        StateDirectory(str(tmp_path / "state")).create()


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(DatabaseError, match="is not a directory"):
        StateDirectory(str(tmp_path / "state")).create()


def test_a_second_holder_is_refused_and_told_of_the_first(tmp_path: Path) -> None:
    lock = DirectoryLock(StateDirectory(str(tmp_path)), "mount")
    with subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(
            StateDirectoryBusy, match=rf"{tmp_path} is in use by another mirrorfs \(process {holder.pid}\)"
        ):
            lock.acquire()
        DirectoryLock(StateDirectory(str(tmp_path)), "uploader").acquire()
        holder.kill()
        lock.acquire(wait=True)
    with pytest.raises(StateDirectoryBusy, match=rf"process {os.getpid()}\)"):
        DirectoryLock(StateDirectory(str(tmp_path)), "mount").acquire()
    lock.release()
    DirectoryLock(StateDirectory(str(tmp_path)), "mount").acquire()


def test_no_two_datastores_share_a_state_directory() -> None:
    paths = ["/mnt/a-b", "/mnt/a/b", "/mnt-a/b", "/mnt/a\\x2db", "/mnt/ä", "/", "/-", "/mnt/a b"]
    names = {escaped_name(path) for path in paths}
    assert len(names) == len(paths)
    assert all("/" not in name and name not in ("", ".", "..") for name in names)
    assert escaped_name("/mnt/data-store") == "mnt-data\\x2dstore"
    assert default_state_directory("/mnt/x/").path == "/var/lib/mirrorfs/mnt-x"
