"""The kernel's table of mounts: what is mounted where, and which of it is a mirrorfs. No file system is asked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from mirrorfs.filesystem.system_calls import unmount

FILE_SYSTEM_TYPE = b"fuse.mirrorfs"
_MOST_LINKS = 40


@dataclass(frozen=True, slots=True)
class MountEntry:
    """A line of /proc/PID/mountinfo (proc(5))."""

    identifier: int
    """No other mount has it while this one stands, in no namespace."""
    parent: int
    """The identifier of the mount in which it stands."""
    device: str
    """major:minor, as in /sys/class/bdi: of the file system, so that all its mounts have the same."""
    mountpoint: bytes
    file_system_type: bytes
    source: bytes


def mount_table(process: int | None = None) -> Iterator[MountEntry]:
    """Yield the mounts that a process sees, by default this one, in the order in which they cover each other.

    Raises OSError, when a process has ended too.
    """
    with open(f"/proc/{'self' if process is None else process}/mountinfo", "rb") as lines:
        for line in lines:
            yield _parse(line)


def mount_at(path: str) -> MountEntry | None:
    """Tell what is mounted at exactly this path, topmost; None if it is no mount point."""
    wanted = os.fsencode(os.path.abspath(path))
    found = None
    for entry in mount_table():
        if entry.mountpoint == wanted:
            found = entry
    return found


def is_mounted(path: str) -> bool:
    """Tell whether a mirrorfs is mounted at this path, alive or dead."""
    entry = mount_at(path)
    return entry is not None and entry.file_system_type == FILE_SYSTEM_TYPE


def mountpoints() -> set[str]:
    """Tell where a mirrorfs is mounted, alive or dead."""
    return {os.fsdecode(entry.mountpoint) for entry in mount_table() if entry.file_system_type == FILE_SYSTEM_TYPE}


def file_system_type_of(descriptor: int) -> str:
    """Look up the mount of a descriptor in proc(5)'s fdinfo and mountinfo; "" when it is not found."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as lines:
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
    wanted = int(fields["mnt_id"])
    return next((entry.file_system_type.decode() for entry in mount_table() if entry.identifier == wanted), "")


def detach(path: str) -> None:
    """Take the topmost mount away from this path at once; it ends when nobody uses it any more. Raises OSError."""
    unmount(os.fsencode(path), lazily=True)


class OwnMount:
    """The mount that this process serves, told from whatever else may come to stand at its path.

    While it is served no other file system gets its device, so that nothing else can be taken for it.
    """

    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self.entry: MountEntry | None = None

    def note(self) -> None:
        """Note what stands at the path as ours; to be called when it has just been mounted."""
        self.entry = mount_at(self.path)

    def stands(self) -> bool:
        """Tell whether it is ours that an unmount of the path would take away.

        Somebody may have unmounted ours before, and then it would be the disk of the datastore itself; or have mounted
        something over it.
        """
        return self.entry is not None and mount_at(self.path) == self.entry

    def describe_other(self) -> str:
        """Say what stands at the path if it is not ours."""
        there = mount_at(self.path)
        if there is None:
            return "nothing is mounted there now"
        return f"{os.fsdecode(there.source)} ({there.file_system_type.decode()}) is mounted there now"


def real_path(path: str) -> str:
    """Return the path without symbolic links, as os.path.realpath does, but look into no mirrorfs on the way.

    A mirrorfs whose disk hangs, or whose process is stopped, would keep us waiting for ever.
    """
    mirrors = mountpoints()
    done, pending, links = "/", os.path.abspath(path).split("/")[1:], 0
    while pending:
        name = pending.pop(0)
        if name in ("", "."):
            continue
        if name == "..":
            done = os.path.dirname(done)
            continue
        here = os.path.join(done, name)
        if here in mirrors:
            return os.path.normpath(os.path.join(here, *pending))
        target = _link_target(here) if links < _MOST_LINKS else None
        if target is None:
            done = here
            continue
        links += 1
        done, pending = ("/" if target.startswith("/") else done), [*target.split("/"), *pending]
    return done


def _link_target(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _parse(line: bytes) -> MountEntry:
    fields, _, rest = line.partition(b" - ")
    identifier, parent, device, _, mountpoint = fields.split(b" ")[:5]
    file_system_type, source = rest.split(b" ")[:2]
    return MountEntry(
        int(identifier), int(parent), device.decode(), _unescape(mountpoint), file_system_type, _unescape(source)
    )


def _unescape(field: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), field)
