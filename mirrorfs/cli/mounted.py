"""What commands about a mounted datastore begin with: where it is mounted, and whether the mount answers."""

from __future__ import annotations

from pathlib import Path

from mirrorfs.cli.errors import Failure
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.supervision import asking
from mirrorfs.supervision.registry import mountpoint_of


def locate(datastore: str) -> str:
    """Return where a datastore, as it was given on the command line, is mounted; its own path if it is not."""
    return mountpoint_of(real_path(datastore))


def require_serving(path: str, *, if_absent: str = "'mirrorfs status' lists what is mounted") -> None:
    """Raise Failure unless a mirrorfs is mounted at `path` and answers; see `asking.require_serving`."""
    try:
        asking.require_serving(path, if_absent=if_absent)
    except asking.NoAnswer as error:
        raise Failure(str(error)) from error


def writable_datastore(given: str, aim: str) -> Path:
    """Return where to write into a datastore: in its mount, if it has one.

    Raises Failure, with what is the `aim`, unless it can be written to there.
    """
    path = locate(given)
    match condition_of(path):
        case Condition.DEAD:
            raise Failure(f"the filesystem process of {path} was killed: mount it again, or unmount it, then {aim}")
        case Condition.SILENT:
            raise Failure(asking.describe_silence(path))
    return Path(path)
