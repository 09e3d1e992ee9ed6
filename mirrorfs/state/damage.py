"""A damaged state: set aside under a dated name and begun anew, because the backups must go on being mirrored.

All that a state knows can be learned again from the datastore and the bucket. So a state is given up only for damage,
never because a disk is full or cannot be read: then it is the disk that has to be mended, and the state is good.
"""

from __future__ import annotations

import logging
import os
import shutil
from datetime import UTC, datetime

from mirrorfs import own_files
from mirrorfs.database.directory import StateDirectory
from mirrorfs.database.environment import examine
from mirrorfs.database.errors import DatabaseCorrupt, DatabaseError, UnfinishedDatabase
from mirrorfs.state.identity import Identity
from mirrorfs.state.state import State

log = logging.getLogger(__name__)

_KEPT = 3
_READ_SIZE = 1024 * 1024


def open_state(directory: StateDirectory, *, doubtful: bool) -> State:
    """Open the state for writing; a damaged one is set aside first, and a new one takes its place.

    `doubtful` has all of it read beforehand, in another process: whoever used it last ended in an unknown way, and
    perhaps because of damage, which can end a process without a word.

    Raises:
        DatabaseError and its kinds, but not DatabaseCorrupt unless a new state is damaged at once.
    """
    try:
        return _opened(directory, doubtful=doubtful)
    except DatabaseCorrupt as error:
        set_state_aside(directory, str(error))
    return State(directory.state)


def _opened(directory: StateDirectory, *, doubtful: bool) -> State:
    if doubtful and _has_content(directory.state):
        examine(directory.state)
    state = State(directory.state)
    try:
        # What an uploader reads before it runs, and can hand its damage to nobody.
        state.view(
            lambda transaction: (
                transaction.identity.get(),
                transaction.identity.epochs(),
                transaction.progress.position(),
            )
        )
    except DatabaseError:
        state.close()
        raise
    return state


def stored_identity(directory: StateDirectory) -> Identity | None:
    """Tell what a state that nobody writes is about, None if there is none or if it is new.

    Raises:
        DatabaseCorrupt: it is damaged. DatabaseError: it cannot be read.
    """
    path = directory.state
    if not os.path.lexists(path) or (os.path.isdir(path) and not _has_content(path)):
        return None
    if os.path.isdir(path):
        examine(path, whole=False)
    try:
        state = State(path, read_only=True)
    except UnfinishedDatabase:
        return None
    try:
        return state.view(lambda transaction: transaction.identity.get())
    finally:
        state.close()


def set_state_aside(directory: StateDirectory, why: str) -> str:
    """Rename the damaged state, log it loudly, and return a sentence about it for whoever is there to be told.

    The newest three that were set aside are kept.

    Raises:
        DatabaseError: its file cannot be read or renamed, so that it is the disk that is at fault, not the state.
    """
    _read_through(os.path.join(directory.state, "data.mdb"))
    _forget_the_oldest(directory)
    aside = f"{directory.state}.damaged-{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%fZ}"
    try:
        os.rename(directory.state, aside)
        own_files.synchronize_directory(directory.path)
    except OSError as error:
        raise DatabaseError(f"{why}. It cannot be set aside as {aside}: {error.strerror}") from error
    sentence = (
        f"{why}. It was set aside as {aside}, and a new state is being built from the bucket and the datastore: "
        "nothing that is mirrored is lost or sent again, and the directory set aside may be deleted"
    )
    log.critical("%s", sentence)
    return sentence


def _read_through(path: str) -> None:
    try:
        with os.fdopen(own_files.open_file(path), "rb", buffering=0) as file:
            while file.read(_READ_SIZE):
                continue
    except OSError as error:
        raise DatabaseError(
            f"cannot read {path}: {error.strerror}. Check the disk of the state directory; the state is not given up"
        ) from error


def _forget_the_oldest(directory: StateDirectory) -> None:
    # Damage that comes again and again must not fill the disk.
    base = f"{os.path.basename(directory.state)}.damaged-"
    aside = sorted(name for name in os.listdir(directory.path) if name.startswith(base))
    for name in aside[: max(0, len(aside) - _KEPT + 1)]:
        shutil.rmtree(os.path.join(directory.path, name), ignore_errors=True)


def _has_content(path: str) -> bool:
    try:
        return os.path.getsize(os.path.join(path, "data.mdb")) > 0
    except OSError:
        return False
