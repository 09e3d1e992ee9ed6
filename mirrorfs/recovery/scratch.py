"""The directory that a drill restores into: made for it alone, and gone after it; also that of one that was killed.

A drill holds a lock on its directory as long as it lives. So whoever comes later knows an abandoned one by its name,
its owner, its mark and by nobody having locked it.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mirrorfs import own_files
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.steps import reach

_NAME = re.compile(r"mirrorfs-drill-[0-9a-f]{16}")
_MARK = ".mirrorfs-drill"
_CONTENT = "datastore"
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 5


@dataclass(frozen=True, slots=True)
class Room:
    """What a file system has left, in bytes and in files (None where it does not count these).

    `directory` is what an empty directory takes there, `block` the unit in which files take space, both in bytes.
    """

    bytes: int
    files: int | None
    directory: int
    block: int


class Scratch:
    """A scratch directory that is open and locked."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.datastore = path / _CONTENT
        """Where to restore: not there yet."""
        self._descriptor = descriptor

    def room(self) -> Room:
        """Tell what there is room for."""
        status = os.fstatvfs(self._descriptor)
        # Ours is as good as empty.
        directory = os.fstat(self._descriptor).st_blocks * 512
        files = status.f_favail if status.f_files else None
        return Room(status.f_bavail * status.f_frsize, files, directory, status.f_frsize)


@contextmanager
def scratch_directory(base: Path, abandoned_removed: Callable[[Path], None]) -> Iterator[Scratch]:
    """Make a scratch directory in `base`, and remove it at the end with all that is in it, whatever ends it.

    Before that, what killed drills have left in `base` is removed, and told of. Raises RestoreError.
    """
    try:
        parent = own_files.open_directory(str(base))
    except OSError as error:
        raise RestoreError(f"Cannot drill in {base}: {_reason(error)}. Give another --scratch DIR.") from error
    try:
        _remove_abandoned(parent, base, abandoned_removed)
        name, descriptor = _make(parent, base)
        try:
            reach("drill.scratch-made")
            yield Scratch(base / name, descriptor)
        finally:
            _remove(parent, name, descriptor, base)
            os.close(descriptor)
    finally:
        os.close(parent)


def _make(parent: int, base: Path) -> tuple[str, int]:
    for _ in range(_TRIES):
        name = f"mirrorfs-drill-{secrets.token_hex(8)}"
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        except FileNotFoundError:
            # Another drill has taken it for an abandoned one.
            continue
        except OSError as error:
            raise RestoreError(f"Cannot drill in {base}: {_reason(error)}. Give another --scratch DIR.") from error
        if _lock(descriptor) and _is_there(parent, name, descriptor):
            os.close(os.open(_MARK, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=descriptor))
            return name, descriptor
        os.close(descriptor)
    raise RestoreError(f"Cannot drill in {base}: somebody removes what is made there. Give another --scratch DIR.")


def _is_there(parent: int, name: str, descriptor: int) -> bool:
    try:
        status = os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(status, os.fstat(descriptor))


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_abandoned(parent: int, base: Path, removed: Callable[[Path], None]) -> None:
    for name in sorted(os.listdir(parent)):
        if _NAME.fullmatch(name) is None:
            continue
        try:
            descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
        except OSError:
            # A link or file of that name, or somebody else's: not ours to remove.
            continue
        try:
            if _is_ours(descriptor) and _lock(descriptor):
                _remove(parent, name, descriptor, base)
                removed(base / name)
        finally:
            os.close(descriptor)


def _is_ours(descriptor: int) -> bool:
    status = os.fstat(descriptor)
    names = set(os.listdir(descriptor)) if status.st_uid == os.geteuid() else {""}
    # The mark is the first that is made, and the last that goes.
    return stat.S_IMODE(status.st_mode) == 0o700 and (not names or _MARK in names)


def _remove(parent: int, name: str, descriptor: int, base: Path) -> None:
    try:
        if _CONTENT in os.listdir(descriptor):
            shutil.rmtree(_CONTENT, dir_fd=descriptor)
        reach("drill.scratch-emptied")
        if _MARK in os.listdir(descriptor):
            os.unlink(_MARK, dir_fd=descriptor)
        os.rmdir(name, dir_fd=parent)
    except OSError as error:
        raise RestoreError(f"Cannot remove {base / name}: {_reason(error)}. Remove it by hand.") from error


def _reason(error: OSError) -> str:
    return str(error) if isinstance(error, own_files.NotOwn) else error.strerror or str(error)
