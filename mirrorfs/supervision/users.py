"""Who uses a mount, and where else it stands: what keeps it from ending, for the messages that say so.

Everything is judged by the device of the file system, not by paths: a path is only what one namespace calls it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mirrorfs.datastore.server_configuration import name_of_datastore
from mirrorfs.filesystem.mount_table import MountEntry, mount_table
from mirrorfs.filesystem.system_calls import device_of, open_file_system
from mirrorfs.output import printable

_NAMED = 5
# What the kernel keeps of a name, less than PBS's have (TASK_COMM_LEN).
_KEPT_BYTES = 15


@dataclass(frozen=True, slots=True)
class MountUser:
    """A process that has its working directory or root in a mount, or a file of it open or mapped."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


@dataclass(frozen=True, slots=True)
class MountCopy:
    """Another mount of the same file system: a bind mount, or the same in a namespace of its own.

    `user` is a process of that namespace, None in our own.
    """

    path: str
    user: MountUser | None

    def __str__(self) -> str:
        if self.user is None:
            return f"a bind mount on {self.path} (away with it: 'umount {self.path}')"
        return (
            f"a copy on {self.path} in the mount namespace of {self.user} "
            f"(away with it: 'nsenter --mount --target {self.user.pid} umount {self.path}')"
        )


def users_of(device: str) -> list[MountUser]:
    """Find the processes that use the file system of a device (major:minor), as far as /proc shows them."""
    numbers = _numbers(device)
    return [
        user_of(process) for process in processes() if any(_is_on(link, numbers) for link in things_in_use(process))
    ]


def copies_of(device: str, besides: int | None = None) -> list[MountCopy]:
    """Find the mounts of the file system of a device, in every namespace that a process is in, besides one of them."""
    own = os.readlink("/proc/self/ns/mnt")
    looked_into: set[tuple[str, str]] = set()
    seen, copies = {besides}, []
    for process in processes():
        try:
            view = view_of(process)
            if view in looked_into:
                continue
            entries = [entry for entry in mount_table(int(process.name)) if entry.device == device]
        except OSError:
            # It has ended meanwhile.
            continue
        looked_into.add(view)
        for entry in entries:
            if entry.identifier not in seen:
                seen.add(entry.identifier)
                copies.append(MountCopy(os.fsdecode(entry.mountpoint), None if view[0] == own else user_of(process)))
    return copies


def holders_of(device: str) -> str:
    """Name for a sentence who uses the file system of a device that was unmounted, and where it still stands."""
    holders = [*map(str, copies_of(device)), *_few(users_of(device))]
    return ", ".join(holders) or "something that /proc does not show"


def writers_beneath(directory: str, descriptor: int) -> list[MountUser]:
    """Find the processes that have a file in a directory open for writing, on the file system of its `descriptor`.

    To be asked before a mount covers the directory: what they write passes the mount by. PBS keeps the lock file of
    each datastore open that it has used.
    """
    status = os.fstat(descriptor)
    device = (os.major(status.st_dev), os.minor(status.st_dev))
    return [
        user_of(process)
        for process in processes()
        if int(process.name) != os.getpid() and _writes_in(process, directory, device)
    ]


def lives(mount: MountEntry) -> bool:
    """Tell whether the file system of a mount that was unmounted still lives: somebody holds it, mounted or not.

    The kernel gives the device of one that has ended to the next: then it is that of another datastore's mirrorfs, of
    which nobody must be told that it holds this one.

    Raises OSError: the kernel does not let itself be asked.
    """
    control = open_file_system(b"fusectl")
    try:
        os.stat(mount.device.partition(":")[2], dir_fd=control)
    except FileNotFoundError:
        return False
    finally:
        os.close(control)
    return all(other.source == mount.source for other in mount_table() if other.device == mount.device)


def _few(users: list[MountUser]) -> list[str]:
    named = [str(user) for user in users[:_NAMED]]
    return named if len(users) <= _NAMED else [*named, f"{len(users) - _NAMED} more"]


def how_to_let_go(datastore: str) -> str:
    """Return what to do about a PBS that uses a datastore, without stopping it; with its name there if it is known."""
    name = name_of_datastore(datastore) or "STORE"
    return (
        f"If that is PBS, have it let go of them: 'proxmox-backup-manager datastore update {name} --maintenance-mode "
        f"type=offline', and when it is done '... update {name} --delete maintenance-mode'."
    )


def named(users: list[MountUser]) -> str:
    """Name some of the processes for a sentence, and count the others."""
    return ", ".join(_few(users))


def processes() -> list[Path]:
    """Return the directory of each process in /proc."""
    return sorted((path for path in Path("/proc").iterdir() if path.name.isdigit()), key=lambda path: int(path.name))


def view_of(process: Path) -> tuple[str, str]:
    """Return what a process sees mounts by, for its mount table to be read once: its mount namespace, and its root.

    Raises OSError, when it has ended too.
    """
    return os.readlink(process / "ns" / "mnt"), os.readlink(process / "root")


def things_in_use(process: Path) -> Iterator[Path]:
    """Yield what a process has open, mapped, or as its working directory or root, as the links of /proc."""
    yield from (process / name for name in ("cwd", "root"))
    for folder in ("fd", "map_files"):
        yield from _in(process / folder)


def _in(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        # The process has ended meanwhile, or is none that has files.
        return []


def _is_on(link: Path, device: tuple[int, int]) -> bool:
    try:
        return device_of(os.fsencode(link)) == device
    except OSError:
        return False


def _writes_in(process: Path, directory: str, device: tuple[int, int]) -> bool:
    return any(
        _is_below(link, directory) and _is_for_writing(process, link.name) and _is_on(link, device)
        for link in _in(process / "fd")
    )


def _is_below(link: Path, directory: str) -> bool:
    try:
        return os.readlink(link).startswith(f"{directory.rstrip('/')}/")
    except OSError:
        return False


def _is_for_writing(process: Path, descriptor: str) -> bool:
    try:
        lines = (process / "fdinfo" / descriptor).read_text().splitlines()
    except OSError:
        return False
    flags = next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), os.O_RDONLY)
    return flags & os.O_ACCMODE != os.O_RDONLY


def _numbers(device: str) -> tuple[int, int]:
    major, _, minor = device.partition(":")
    return int(major), int(minor)


def user_of(process: Path) -> MountUser:
    """Return number and name of a process in /proc."""
    return MountUser(int(process.name), _name(process))


def _name(process: Path) -> str:
    try:
        # A process gives itself any 15 bytes as its name.
        name = (process / "comm").read_text(errors="replace").strip()
        if len(name) == _KEPT_BYTES:
            # proxmox-backup-proxy and proxmox-backup-api would be called the same.
            command, _, _ = (process / "cmdline").read_text(errors="replace").partition("\0")
            whole = os.path.basename(command)
            name = whole if whole.startswith(name) else name
        return printable(name)
    except OSError:
        return "ended"
