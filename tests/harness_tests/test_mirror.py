"""The processes of a mirror are told from others that have got their numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.harness.mirror import Mirror

HOLDER = "import sys; files = [open(path) for path in sys.argv[1:]]; print(flush=True); sys.stdin.read()"
LOCKS = {"mount.lock": Mirror.kill_mount, "uploader.lock": Mirror.kill_uploader}


@contextmanager
def process_with(*files: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has these files open; its command line says mirrorfs."""
    command = [sys.executable, "-c", f"{HOLDER}  # mirrorfs", *map(str, files)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(("lock", "kill"), LOCKS.items())
def test_only_who_holds_the_lock_is_killed(tmp_path: Path, lock: str, kill: Callable[[Mirror], None]) -> None:
    mirrors = [Mirror(tmp_path, tmp_path / name, "s3://x/x", "http://127.0.0.1:1", {}) for name in ("one", "other")]
    for mirror in mirrors:
        mirror.state.mkdir()
        (mirror.state / lock).touch()
    with process_with(mirrors[1].state / lock) as process:
        for mirror in mirrors:
            (mirror.state / lock).write_text(f"{process.pid}\n")
        kill(mirrors[0])
        mirrors[0].kill_all()
        assert not mirrors[0].is_alive()
        assert process.poll() is None
        kill(mirrors[1])
        assert process.wait() == -9


def test_a_process_that_is_about_to_end_is_waited_for(tmp_path: Path) -> None:
    mirror = Mirror(tmp_path, tmp_path / "state", "s3://x/x", "http://127.0.0.1:1", {})
    mirror.state.mkdir()
    assert mirror.ends_within(0)
    lock = mirror.state / "mount.lock"
    lock.touch()
    with process_with(lock) as process:
        lock.write_text(f"{process.pid}\n")
        assert not mirror.ends_within(0)
        assert process.stdin is not None
        process.stdin.close()
        assert mirror.ends_within(60)
        assert process.wait() == 0
        assert mirror.ends_within(0)
