"""What the pass-through tells about changes of the tree, so that it need not know what they mean."""

from collections.abc import Sequence
from typing import Protocol


class Observer(Protocol):
    """Hears of each change after it has succeeded on the backing file system and before the kernel is answered.

    All methods are called in the trio thread of the mount and may wait: the system call waits with them. An
    `OSError` raised here becomes the result of the system call, although the change itself stands.

    Paths are bytes relative to the mounted directory, without a leading slash, as they are at the time of the
    call. The mounted directory itself is b"".
    """

    async def writer_opened(self, inode: int) -> None:
        """A handle with write access was made, by open or by creating the file."""

    async def writer_closed(self, inode: int, paths: Sequence[bytes], remaining: int) -> None:
        """A handle with write access was released, and `remaining` others are left on the same inode.

        `paths` are all names under which the inode is known now; none, if it was unlinked.
        """

    async def created(self, path: bytes, mode: int) -> None:
        """mkdir, mknod, symlink or link made this name; `mode` is its st_mode. Not called for created files."""

    async def truncated(self, path: bytes) -> None:
        """The size of a file was set while no handle with write access was open on it."""

    async def removed(self, path: bytes, is_directory: bool) -> None:
        """unlink or rmdir took this name away."""

    async def renamed(self, old: bytes, new: bytes, *, is_directory: bool, writers: int, exchanged: bool) -> None:
        """`old` is called `new` now, replacing what was there, or, if `exchanged`, in exchange for it.

        `writers` is the number of handles with write access open on it.
        """
