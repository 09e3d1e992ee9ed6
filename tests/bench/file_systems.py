"""File systems of a bench's own, each in a file on the disk that is meant, which are gone at once with it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.processes import BenchFailed, unmount

# Files with holes: they take what is written.
_SIZE_FOR_SMALL_FILES = 4 * 1024**3
_USUAL_SIZE = 64 * 1024**3
# Chunk directories, and a few files beside them.
_OTHER_FILES = 70_000


@contextmanager
def file_system_for_small_files(image: Path, mountpoint: Path, *, files: int) -> Iterator[None]:
    """Make an ext4 for that many small files in the file `image`, mount it, and take both away at the end.

    It keeps no journal of its own, and small files in their inodes. Raises BenchFailed.
    """
    features = ("-O", "^has_journal,inline_data", "-N", str(files + _OTHER_FILES))
    with _mounted(image, mountpoint, _SIZE_FOR_SMALL_FILES, "-E", "lazy_itable_init=1,nodiscard", *features):
        yield


@contextmanager
def new_file_system(image: Path, mountpoint: Path) -> Iterator[None]:
    """Make an ext4 as mkfs does by itself in the file `image`, mount it, and take both away at the end.

    For whatever makes many directories: ext4 uses none again in the five minutes after its removal, and looks at all
    that were removed for each that it makes, which costs a multiple of making them. Raises BenchFailed.
    """
    with _mounted(image, mountpoint, _USUAL_SIZE, "-E", "assume_storage_prezeroed=1,nodiscard"):
        yield


@contextmanager
def _mounted(image: Path, mountpoint: Path, size: int, *options: str) -> Iterator[None]:
    with open(image, "xb") as file:
        file.truncate(size)
    try:
        _run("mkfs.ext4", "-q", "-F", "-m", "0", *options, str(image))
        # As a disk: what is written to one does not stay in memory a second time, and is not copied twice.
        device = _run("losetup", "--direct-io=on", "--show", "--find", str(image)).strip()
        try:
            _run("mount", device, str(mountpoint))
        finally:
            # The kernel lets go of it when it is unmounted.
            _run("losetup", "--detach", device)
        try:
            os.rmdir(mountpoint / "lost+found")
            yield
        finally:
            unmount(mountpoint)
    finally:
        image.unlink()


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise BenchFailed(f"cannot run {command[0]}: {error}") from error
    if done.returncode != 0:
        raise BenchFailed(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
