"""What a mirror has kept on the machine, beside its files of configuration: journal, state and log."""

from __future__ import annotations

import fnmatch
import os
import shutil

from mirrorfs import own_files
from mirrorfs.database.directory import DirectoryLock, StateDirectory

_KNOWN = ("journal", "journal.*", "state", "state.*", "control.sock", "reload.sock", "*.lock", "mirrorfs.log*")


def take_state_away(directory: StateDirectory) -> bool:
    """Remove what mirrorfs has in a state directory, and the directory if nothing else is in it.

    Tells whether there was one. Raises StateDirectoryBusy if a mount works in it, NotOwn, OSError.
    """
    try:
        own_files.check_way(directory.path)
    except FileNotFoundError:
        return False
    locks = [DirectoryLock(directory, name) for name in ("mount", "uploader")]
    for lock in locks:
        lock.acquire()
    try:
        for entry in os.scandir(directory.path):
            if any(fnmatch.fnmatch(entry.name, known) for known in _KNOWN):
                _remove(entry)
    finally:
        for lock in locks:
            lock.release()
    if not os.listdir(directory.path):
        os.rmdir(directory.path)
    return True


def _remove(entry: os.DirEntry[str]) -> None:
    if entry.is_dir(follow_symlinks=False):
        shutil.rmtree(entry.path)
    else:
        os.unlink(entry.path)
