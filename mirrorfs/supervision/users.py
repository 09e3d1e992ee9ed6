"""Who uses a mount: what keeps it from being unmounted, for the message that says so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mirrorfs.filesystem.mount import mount_at
from mirrorfs.output import printable


@dataclass(frozen=True, slots=True)
class MountUser:
    """A process that has its working directory or root in a mount, or a file of it open or mapped."""

    pid: int
    name: str


def users_of(mountpoint: str) -> list[MountUser]:
    """Find the processes that use the mount at `mountpoint`, as far as /proc shows them."""
    entry = mount_at(mountpoint)
    if entry is None:
        return []
    device = tuple(int(number) for number in entry.device.split(":"))
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit() and _uses(process, mountpoint, device):
            found.append(MountUser(int(process.name), _name(process)))
    return sorted(found, key=lambda user: user.pid)


def _uses(process: Path, mountpoint: str, device: tuple[int, ...]) -> bool:
    return any(_is_in(link, mountpoint, device) for link in _links(process))


def _links(process: Path) -> Iterator[Path]:
    yield from (process / name for name in ("cwd", "root"))
    for folder in ("fd", "map_files"):
        try:
            yield from (process / folder).iterdir()
        except OSError:
            # The process has ended meanwhile, or is none that has files.
            continue


def _is_in(link: Path, mountpoint: str, device: tuple[int, ...]) -> bool:
    try:
        target = os.readlink(link)
        # The path first: to ask for the device of a file elsewhere could hang on another, sick file system.
        if target != mountpoint and not target.startswith(f"{mountpoint}/"):
            return False
        # The filesystem process holds the directory below the mount, which has the same path.
        number = os.stat(link).st_dev
    except OSError:
        return False
    return (os.major(number), os.minor(number)) == device


def _name(process: Path) -> str:
    try:
        # A process may give itself any name of up to 15 bytes.
        return printable((process / "comm").read_text(errors="replace").strip())
    except OSError:
        return "ended"
