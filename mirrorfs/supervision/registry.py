"""Which mounts are up on this machine, and where their state is: one small file each below /run/mirrorfs."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import asdict, dataclass, replace

from mirrorfs import own_files
from mirrorfs.chunkstore.place import InUse
from mirrorfs.database.directory import (
    RUNTIME_BASE,
    DirectoryLock,
    StateDirectory,
    default_state_directory,
    escaped_name,
)
from mirrorfs.filesystem.mount_table import is_mounted
from mirrorfs.restarts import Failing

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningMount:
    """A mount that was up when it was last heard of.

    `journal_broken_since` is the time (seconds since the epoch) since which changes are missing in its journal; None if
    none are. It stands here because the state directory's disk is full when it is needed. `chunks_are_native` tells
    whether `.chunks` was attached in the mount, else `chunks_reason` why not.
    """

    datastore: str
    mountpoint: str
    state_directory: str
    pid: int
    journal_broken_since: float | None = None
    device: str | None = None
    """major:minor of the mount's file system, by which it is known in every namespace."""
    chunks_are_native: bool = False
    chunks_reason: str = ""
    root: str | None = None
    """major:minor:inode of the datastore's own directory, by which it is known whatever its path is."""
    arguments: tuple[str, ...] = ()
    """Those of the `mirrorfs mount` that made it."""
    directory: str = ""
    """The working directory by which paths in the arguments are meant."""
    event_overflows: int = 0
    """How often the kernel could not keep all events of changed chunks."""
    event_queue: int = 0
    """How many events of changed chunks the kernel held when it was looked at last."""
    uploader_failing: Failing | None = None
    """How it was with the uploader when it died last, if it had died again and again."""


class Registration:
    """The note of the mount that this process serves."""

    def __init__(self, mount: RunningMount) -> None:
        self._mount = mount
        self._is_up = False

    def begin(self, device: str | None = None) -> None:
        """Note that the mount is up, and which device its file system has. Raises OSError."""
        self._mount = replace(self._mount, device=device)
        register(self._mount)
        self._is_up = True

    def set_journal_broken_since(self, since: float | None) -> None:
        """Note how it is with the journal; raises nothing."""
        self._note(replace(self._mount, journal_broken_since=since), "with the journal")

    def set_chunk_store(self, in_use: InUse, overflows: int = 0) -> None:
        """Note how chunks are reached, and how often not all their changes could be heard of; raises nothing."""
        now = replace(
            self._mount,
            chunks_are_native=in_use.is_native,
            chunks_reason=in_use.reason,
            event_overflows=overflows,
        )
        self._note(now, "with the chunk store")

    def set_event_queue(self, events: int) -> None:
        """Note how many events of changed chunks wait; raises nothing."""
        if events != self._mount.event_queue:
            self._note(replace(self._mount, event_queue=events), "with the events of changed chunks")

    def set_uploader_failing(self, failing: Failing | None) -> None:
        """Note whether the uploader dies again and again; raises nothing."""
        if failing != self._mount.uploader_failing:
            self._note(replace(self._mount, uploader_failing=failing), "with the uploader")

    def _note(self, mount: RunningMount, subject: str) -> None:
        self._mount = mount
        if not self._is_up:
            return
        try:
            register(mount)
        except OSError as error:
            log.critical("cannot note in %s how it is %s: %s", RUNTIME_BASE, subject, error)

    def end(self) -> None:
        """Note that the mount is down."""
        self._is_up = False
        unregister(self._mount)


def register(mount: RunningMount) -> None:
    """Note that a mount is up, so that other commands find its state directory."""
    own_files.make_directory(RUNTIME_BASE)
    path = _entry_path(mount.mountpoint)
    with os.fdopen(own_files.new_file(f"{path}.tmp"), "w", encoding="utf-8") as file:
        json.dump(asdict(mount), file)
    os.replace(f"{path}.tmp", path)


def unregister(mount: RunningMount) -> None:
    """Note that a mount is down."""
    entry = _read(_entry_path(mount.mountpoint))
    if entry is not None and entry.pid == mount.pid:
        os.unlink(_entry_path(mount.mountpoint))


def find(path: str) -> RunningMount | None:
    """Return what is noted of the mount at `path`, or of the datastore `path`; None if nothing is."""
    entry = _read(_entry_path(path))
    return mount_of(path) if entry is None else entry


def mount_of(datastore: str) -> RunningMount | None:
    """Return the mount of a datastore, wherever it is mounted; None if it is not."""
    return next((entry for entry in running_mounts() if entry.datastore == datastore), None)


def mountpoint_of(path: str) -> str:
    """Return where the datastore `path` is mounted; `path` itself if that is a mount point, or if nothing is."""
    entry = None if is_mounted(path) else mount_of(path)
    return path if entry is None else entry.mountpoint


def is_served(mount: RunningMount) -> bool:
    """Tell whether the process of a mount lives, whether or not the mount is to be seen here."""
    lock = DirectoryLock.path_of(StateDirectory(mount.state_directory), "mount")
    try:
        descriptors = os.listdir(f"/proc/{mount.pid}/fd")
    except OSError:
        return False
    return any(_link_target(f"/proc/{mount.pid}/fd/{descriptor}") == lock for descriptor in descriptors)


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def running_mounts() -> list[RunningMount]:
    """Return all mounts that are up.

    Among them are those whose process was killed but which still stand, and those which are not to be seen here any
    more but whose process lives, because a copy of the mount does.
    """
    try:
        names = sorted(os.listdir(RUNTIME_BASE))
    except FileNotFoundError:
        return []
    entries = (_read(os.path.join(RUNTIME_BASE, name)) for name in names if name.endswith(".json"))
    return [entry for entry in entries if entry is not None and (is_mounted(entry.mountpoint) or is_served(entry))]


def state_directory_of(path: str) -> StateDirectory:
    """Return the state directory of a datastore or mount point, mounted or not."""
    entry = find(path)
    return default_state_directory(path) if entry is None else StateDirectory(entry.state_directory)


def _entry_path(mountpoint: str) -> str:
    return os.path.join(RUNTIME_BASE, escaped_name(mountpoint) + ".json")


def _read(path: str) -> RunningMount | None:
    try:
        value = json.loads(own_files.read_file(path))
        # A newer version may have noted more; an entry that is none of ours is as good as none.
        noted = {name: value[name] for name in value if name in RunningMount.__dataclass_fields__}
        failing = noted.get("uploader_failing")
        noted["uploader_failing"] = None if failing is None else Failing(**failing)
        return RunningMount(**{**noted, "arguments": tuple(noted.get("arguments", ()))})
    except (FileNotFoundError, ValueError, TypeError):
        return None
