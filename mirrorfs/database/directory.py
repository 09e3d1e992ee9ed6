"""The state directory of one mirror: where things lie in it, who may use it, and how it is found."""

from __future__ import annotations

import fcntl
import os
import stat
from dataclasses import dataclass

from mirrorfs import own_files
from mirrorfs.database.errors import DatabaseError, StateDirectoryBusy

DEFAULT_BASE = "/var/lib/mirrorfs"
RUNTIME_BASE = "/run/mirrorfs"


def escaped_name(path: str) -> str:
    """Make one file name of an absolute path: `/mnt/data-store` becomes `mnt-data\\x2dstore` (as systemd does)."""
    stripped = os.path.abspath(path).strip("/")
    if not stripped:
        return "-"
    return "".join(
        "-"
        if character == "/"
        else character
        if character.isalnum() or character in "._"
        else f"\\x{ord(character):02x}"
        for character in stripped
    )


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """Paths inside a state directory. Everything in it belongs to root, mode 0700 and 0600."""

    path: str

    @property
    def journal(self) -> str:
        """LMDB environment that only the filesystem process writes."""
        return os.path.join(self.path, "journal")

    @property
    def state(self) -> str:
        """LMDB environment that only the uploader writes."""
        return os.path.join(self.path, "state")

    @property
    def control_socket(self) -> str:
        """Unix socket on which the uploader answers `status` and `wait`."""
        return os.path.join(self.path, "control.sock")

    @property
    def reload_socket(self) -> str:
        """Unix socket on which `mirrorfs reload` waits for what the mount says; there only so long."""
        return os.path.join(self.path, "reload.sock")

    @property
    def told_file(self) -> str:
        """What the notifier has told."""
        return os.path.join(self.path, "mirrorfs.told")

    @property
    def events_file(self) -> str:
        """What has happened that matters; see mirrorfs/events.py."""
        return os.path.join(self.path, "mirrorfs.events")

    @property
    def log_file(self) -> str:
        """Log of a mount that runs in the background."""
        return os.path.join(self.path, "mirrorfs.log")

    def create(self) -> None:
        """Make the directory (mode 0700) where it is missing.

        Raises:
            DatabaseError: it cannot be made, is no directory, others than its owner may enter it, or somebody else
                could put another one in its place.
        """
        try:
            own_files.make_directory(self.path)
            own_files.check_socket(self.control_socket)
            # A link on the way is root's, and nobody else can exchange it.
            status = os.stat(self.path)
        except NotADirectoryError as error:
            raise DatabaseError(
                f"the state directory {self.path} is not a directory: give another --state-dir"
            ) from error
        except own_files.NotOwn as error:
            raise DatabaseError(f"{error}. Or give another --state-dir") from error
        except OSError as error:
            raise DatabaseError(f"cannot use the state directory {self.path}: {error.strerror}") from error
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise DatabaseError(
                f"the state directory {self.path} is open to other users: run 'chmod 700 {self.path}', "
                "or give a directory that mirrorfs may own"
            )


def default_state_directory(datastore: str) -> StateDirectory:
    """Tell the state directory of a datastore for which none was named."""
    return StateDirectory(os.path.join(DEFAULT_BASE, escaped_name(datastore)))


class DirectoryLock:
    """An exclusive lock on a file of the state directory, held until `release` or the end of the process.

    `abandoned` tells, once it is held, whether whoever held it before has ended without giving it back.
    """

    def __init__(self, directory: StateDirectory, name: str) -> None:
        self.abandoned = False
        self._path = self.path_of(directory, name)
        self._descriptor: int | None = None

    @staticmethod
    def path_of(directory: StateDirectory, name: str) -> str:
        """Tell the file that is locked; its holder has it open."""
        return os.path.join(directory.path, f"{name}.lock")

    def acquire(self, *, wait: bool = False) -> None:
        """Take the lock; with `wait`, block until its holder is gone.

        Raises:
            StateDirectoryBusy: another process holds it and `wait` is false.
            DatabaseError: its file is not what it should be.
        """
        try:
            descriptor = own_files.open_file(self._path, os.O_RDWR | os.O_CREAT)
        except own_files.NotOwn as error:
            raise DatabaseError(str(error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(descriptor)
            raise StateDirectoryBusy(
                f"the state directory {os.path.dirname(self._path)} is in use by another mirrorfs (process {holder})"
            ) from error
        self.abandoned = os.fstat(descriptor).st_size > 0
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.ftruncate(self._descriptor, 0)
            os.close(self._descriptor)
            self._descriptor = None
