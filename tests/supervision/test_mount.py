"""What a mount sets up around the filesystem, and how fast it ends."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mirrorfs.database.errors import DatabaseError
from mirrorfs.filesystem.mount_table import detach, is_mounted
from mirrorfs.filesystem.system_calls import unmount
from mirrorfs.journal.journal import JournalWriter
from mirrorfs.replication.settings import UploaderSettings
from mirrorfs.supervision.mount import MountRefused, _closing, _other_file_systems
from mirrorfs.supervision.settings import MountSettings

# An uploader that is heard, and then neither reads nor ends.
_STUCK = """
print('{"event": "store", "state": "ready", "reason": ""}', flush=True)
signal.pause()
"""
_SECONDS = 60.0


@pytest.fixture
def datastore(tmp_path: Path) -> Iterator[Path]:
    """An empty datastore; what is mounted over it or its chunks is taken away at the end."""
    path = tmp_path / "datastore"
    (path / ".chunks").mkdir(parents=True)
    yield path
    while is_mounted(str(path)):
        detach(str(path))
    if os.path.ismount(path / ".chunks"):
        unmount(os.fsencode(path / ".chunks"), lazily=True)


def test_chunks_on_a_file_system_of_their_own_are_opened(datastore: Path) -> None:
    root = os.open(datastore, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _other_file_systems(root) as others:
            assert others == []
        subprocess.run(["mount", "-t", "tmpfs", "none", str(datastore / ".chunks")], check=True)
        before = len(os.listdir("/proc/self/fd"))
        with _other_file_systems(root) as others:
            assert [os.fstat(other).st_dev for other in others] == [(datastore / ".chunks").stat().st_dev]
        assert len(os.listdir("/proc/self/fd")) == before
    finally:
        os.close(root)


def test_without_chunks_there_is_nothing_to_open(tmp_path: Path) -> None:
    root = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with _other_file_systems(root) as others:
            assert others == []
    finally:
        os.close(root)


def test_why_a_mount_failed_is_told_though_its_journal_cannot_be_closed_either(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    journal = JournalWriter(str(tmp_path / "journal"))
    shutil.rmtree(tmp_path / "journal")
    with pytest.raises(MountRefused, match="the first reason"), _closing(journal):
        raise MountRefused("the first reason")
    assert "session.json: No such file" in caplog.text


def test_a_journal_that_cannot_be_closed_is_told_where_nothing_else_is_wrong(tmp_path: Path) -> None:
    journal = JournalWriter(str(tmp_path / "journal"))
    with pytest.raises(DatabaseError, match=r"session\.json"), _closing(journal):
        shutil.rmtree(tmp_path / "journal")


def test_it_speaks_to_the_service_manager_and_ends_though_the_uploader_is_stuck(
    datastore: Path, tmp_path: Path
) -> None:
    stub = tmp_path / "uploader"
    stub.write_text(
        f"#!{sys.executable}\nimport os, signal, sys\nassert 'NOTIFY_SOCKET' not in os.environ\n"
        f"if 'mirrorfs.replication' not in sys.argv:\n"
        f"    os.execv({sys.executable!r}, [{sys.executable!r}, *sys.argv[1:]])\n{_STUCK}"
    )
    stub.chmod(0o755)
    settings = MountSettings(str(datastore), UploaderSettings(str(datastore), str(tmp_path / "state"), -1, "b", "n"))
    program = (
        "import sys\n"
        "from mirrorfs.supervision.foreground import run_in_foreground\n"
        "from mirrorfs.supervision.settings import MountSettings\n"
        "settings = MountSettings.decode(sys.stdin.buffer.read())\n"
        f"sys.executable = {str(stub)!r}\n"
        "sys.exit(run_in_foreground(settings, lambda note: None))\n"
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(tmp_path / "notify"))
        listener.settimeout(_SECONDS)
        process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            env={**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify")},
        )
        try:
            assert process.stdin is not None
            with process.stdin as stdin:
                stdin.write(settings.encode())
            assert listener.recv(100) == b"READY=1"
            assert is_mounted(str(datastore))
            # In use, as by a PBS that was not stopped.
            held = os.open(datastore, os.O_RDONLY | os.O_DIRECTORY)
            process.send_signal(signal.SIGTERM)
            assert listener.recv(100) == b"STOPPING=1"
            assert process.wait(_SECONDS) == 0
            os.close(held)
        finally:
            process.kill()
            process.wait()
    assert not is_mounted(str(datastore))
