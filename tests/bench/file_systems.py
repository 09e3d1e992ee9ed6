"""A file system for many small files, which is gone at once with the file that it is in."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.processes import BenchFailed, unmount

# A file with holes: it takes what is written.
_SIZE = 4 * 1024**3
# Chunk directories, and a few files beside them.
_OTHER_FILES = 70_000


@contextmanager
def file_system_in_a_file(image: Path, mountpoint: Path, *, files: int) -> Iterator[None]:
    """Make an ext4 for that many small files in the file `image`, mount it, and take both away at the end.

    It keeps no journal of its own, and small files in their inodes. Raises BenchFailed.
    """
    with open(image, "xb") as file:
        file.truncate(_SIZE)
    try:
        features = ("-O", "^has_journal,inline_data", "-N", str(files + _OTHER_FILES))
        _run("mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=1,nodiscard", *features, str(image))
        _run("mount", "-o", "loop", str(image), str(mountpoint))
        try:
            os.rmdir(mountpoint / "lost+found")
            yield
        finally:
            unmount(mountpoint)
    finally:
        image.unlink()


def _run(*command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchFailed(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        raise BenchFailed(f"{' '.join(command)}: {done.stderr.strip()}")
