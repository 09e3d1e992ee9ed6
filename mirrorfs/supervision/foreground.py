"""Running a mount in this process: logging, the trio run, and errors as one sentence."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from mirrorfs.database.directory import StateDirectory
from mirrorfs.database.errors import DatabaseError
from mirrorfs.filesystem.mount import MountError
from mirrorfs.output import LogFormat, begin_log
from mirrorfs.supervision.ending import block_signals
from mirrorfs.supervision.mount import MountRefused, run_mount
from mirrorfs.supervision.settings import MountSettings

_EXPECTED = (MountRefused, MountError, DatabaseError, OSError)


def run_in_foreground(settings: MountSettings, ready: Callable[[str], None]) -> str | None:
    """Run a mount to its end; returns None, or the sentence that says why it could not be made or had to end."""
    uploader = settings.uploader
    begin_log(
        "mount",
        verbose=uploader.verbose,
        log_format=LogFormat(uploader.log_format),
        events=StateDirectory(uploader.state_directory).events_file,
        datastore=uploader.datastore,
    )
    block_signals()
    try:
        trio.run(run_mount, settings, ready)
    except _EXPECTED as error:
        return _sentence(error)
    except BaseExceptionGroup as group:
        expected, unexpected = group.split(_EXPECTED)
        if unexpected is not None or expected is None:
            raise
        return _sentence(_first_leaf(expected))
    return None


def _sentence(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        return f"cannot use {os.fsdecode(error.filename)}: {error.strerror}"
    return str(error)


def _first_leaf(group: BaseExceptionGroup[BaseException]) -> BaseException:
    leaf: BaseException = group
    while isinstance(leaf, BaseExceptionGroup):
        leaf = leaf.exceptions[0]
    return leaf
