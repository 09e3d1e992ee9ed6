"""What a mirror has kept on the machine, beside its files of configuration: journal, state and log."""

from __future__ import annotations

import fnmatch
import os
import shutil
import stat

from mirrorfs import own_files
from mirrorfs.database.directory import DirectoryLock, StateDirectory

_LOCKS = ("mount", "uploader", "notifier")
# The databases, and what they are called while they are made, copied or set aside.
_DATABASES = ("journal", "journal.import", "state", "state.copy", "state.damaged-*")
# A journal that is not trusted any more is set aside in its own directory.
_IN_DATABASES = frozenset(
    {"data.mdb", "lock.mdb", "session.json", "session.json.tmp", "data.mdb.distrusted", "lock.mdb.distrusted"}
)
_SOCKETS = ("control.sock", "reload.sock")
_FILES = ("mirrorfs.log*", "mirrorfs.events*", "mirrorfs.told*")


def take_state_away(directory: StateDirectory) -> bool:
    """Remove what mirrorfs has in a state directory, and the directory if nothing else is in it.

    An administrator may have named a directory that others use too: what only has a name like one of ours stays.

    Tells whether there was one. Raises StateDirectoryBusy if a mount works in it, NotOwn, OSError.
    """
    try:
        own_files.check_way(directory.path)
    except FileNotFoundError:
        return False
    locks = [DirectoryLock(directory, name) for name in _LOCKS]
    for lock in locks:
        lock.acquire()
    try:
        for entry in list(os.scandir(directory.path)):
            if _is_ours(entry, directory):
                _remove(entry)
    finally:
        for lock in locks:
            lock.release()
    if not os.listdir(directory.path):
        os.rmdir(directory.path)
    return True


def _is_ours(entry: os.DirEntry[str], directory: StateDirectory) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return _is_any_of(entry, _DATABASES) and _is_database(entry.path)
    if entry.is_file(follow_symlinks=False):
        return _is_any_of(entry, _FILES) or entry.path in {DirectoryLock.path_of(directory, name) for name in _LOCKS}
    return _is_any_of(entry, _SOCKETS) and stat.S_ISSOCK(entry.stat(follow_symlinks=False).st_mode)


def _is_any_of(entry: os.DirEntry[str], patterns: tuple[str, ...]) -> bool:
    return any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in patterns)


def _is_database(path: str) -> bool:
    names = set(os.listdir(path))
    return bool(names) and names <= _IN_DATABASES


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        os.unlink(entry.path)
