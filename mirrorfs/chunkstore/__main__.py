"""`python -m mirrorfs.chunkstore CHUNKS MOUNTPOINT DEVICE ATTRIBUTES`: attaches `.chunks`; not to be called by hand.

The filesystem process starts it, since it must not wait for what it has to answer itself. CHUNKS is the descriptor of
the backing directory's `.chunks`, which is inherited, DEVICE the number (st_dev) of the mount that is meant: a mount
that has ended meanwhile gets nothing attached, and neither does the directory below it. Ends with 0, or with 1 and a
sentence on standard error.
"""

from __future__ import annotations

import os
import sys

from mirrorfs.chunkstore.possibility import NativeImpossible, explaining, prepare_mount
from mirrorfs.chunkstore.system_calls import attach_mount
from mirrorfs.output import say

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def attach(chunks: int, mountpoint: str, device: int, attributes: int) -> None:
    """Attach `.chunks`. Raises NativeImpossible."""
    with explaining(f"{mountpoint} cannot be opened"):
        root = os.open(mountpoint, _DIRECTORY)
        over = os.open(".chunks", _DIRECTORY, dir_fd=root)
        found = os.fstat(root).st_dev, os.fstat(over).st_dev
    if found != (device, device):
        raise NativeImpossible(f"{mountpoint} or its .chunks is not what it was when it was mounted")
    mount = prepare_mount(chunks, attributes)
    with explaining("it cannot be attached (move_mount)"):
        attach_mount(mount, over)


def main() -> int:
    """Attach as the arguments say."""
    chunks, mountpoint, device, attributes = sys.argv[1:]
    try:
        attach(int(chunks), mountpoint, int(device), int(attributes))
    except NativeImpossible as error:
        say(str(error), err=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
