"""What commands about a mounted datastore begin with: where it is mounted, and whether the mount answers."""

from __future__ import annotations

from pathlib import Path

from mirrorfs.cli.errors import Failure
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.filesystem.mount_table import is_mounted, real_path
from mirrorfs.supervision.registry import RunningMount, find, is_served, mountpoint_of, state_directory_of


def locate(datastore: str) -> str:
    """Return where a datastore, as it was given on the command line, is mounted; its own path if it is not."""
    return mountpoint_of(real_path(datastore))


def require_serving(path: str, *, if_absent: str = "'mirrorfs status' lists what is mounted") -> None:
    """Raise Failure unless a mirrorfs is mounted at `path` and answers.

    When it returns, everything that was closed before has been recorded: the filesystem answers in order.
    """
    match condition_of(path):
        case Condition.ABSENT:
            lingering = lingering_at(path)
            if lingering is not None:
                raise Failure(describe_lingering(lingering))
            raise Failure(f"no mirrorfs is mounted on {path}: {if_absent}")
        case Condition.DEAD:
            raise Failure(f"the filesystem process of {path} was killed: mount it again, nothing is lost")
        case Condition.SILENT:
            raise Failure(describe_silence(path))


def writable_datastore(given: str, aim: str) -> Path:
    """Return where to write into a datastore: in its mount, if it has one.

    Raises Failure, with what is the `aim`, unless it can be written to there.
    """
    path = locate(given)
    match condition_of(path):
        case Condition.DEAD:
            raise Failure(f"the filesystem process of {path} was killed: mount it again, or unmount it, then {aim}")
        case Condition.SILENT:
            raise Failure(describe_silence(path))
    return Path(path)


def describe_silence(path: str) -> str:
    """Say that a mount does not answer, why that may be, and where to look."""
    mount = find(path)
    process = "its process" if mount is None else f"its process {mount.pid}"
    return (
        f"the mount on {path} does not answer: {process} is stopped, or the disk of the datastore hangs. Nothing is "
        f"lost. See the kernel's log, and {state_directory_of(path).log_file}"
    )


def lingering_at(path: str) -> RunningMount | None:
    """Return the mount that was at `path`, is not to be seen there any more, and whose process lives."""
    mount = find(path)
    return mount if mount is not None and not is_mounted(mount.mountpoint) and is_served(mount) else None


def describe_lingering(mount: RunningMount) -> str:
    """Say that a mount is not to be seen, but lives, and how it is ended."""
    return (
        f"{mount.mountpoint} was unmounted, but its process {mount.pid} still runs, because a copy of the mount or an "
        f"open file keeps it: 'mirrorfs umount {mount.datastore}' ends it"
    )
