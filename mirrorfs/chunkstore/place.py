"""How PBS reaches its chunks: what is wanted, what it is, and whether they are attached. Commands ask that too.

So nothing is imported here that takes long.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum

from mirrorfs.filesystem.mount_table import mount_at, mount_table

_CHUNKS_NAME = ".chunks"


class Choice(StrEnum):
    """What the administrator wants; AUTO takes NATIVE where it is possible."""

    AUTO = "auto"
    NATIVE = "native"
    FUSE = "fuse"


@dataclass(frozen=True, slots=True)
class InUse:
    """How PBS reaches its chunks: natively, or through FUSE, for `reason` (a clause, "" when native)."""

    is_native: bool
    reason: str


def chunks_path(mountpoint: str) -> str:
    """Return where `.chunks` is attached in a mount."""
    return os.path.join(mountpoint, _CHUNKS_NAME)


def is_attached(mountpoint: str) -> bool:
    """Tell whether anything is mounted at `.chunks` in the mount, and not at that of the directory below the mount."""
    mount = mount_at(mountpoint)
    path = os.fsencode(chunks_path(mountpoint))
    return mount is not None and any(
        entry.parent == mount.identifier and entry.mountpoint == path for entry in mount_table()
    )
