"""Open directories: listings that stand whatever is created, removed and renamed meanwhile."""

import errno
import os
from functools import partial

import trio

from mirrorfs.filesystem.inodes import Inode
from mirrorfs.filesystem.tree import Tree, descriptor_path

# A directory of this size, if it is in memory, is read in less time than a thread takes to be asked.
_SMALL_DIRECTORY = 32 << 10


class DirectoryHandle:
    """One open directory.

    The names are copied when the listing begins (and anew after rewinddir), so an offset is simply a position
    among them: it means the same whatever happens to the directory, and every name that is there all the time
    is listed exactly once. Names that have gone meanwhile are left out when their turn comes.
    """

    __slots__ = ("descriptor", "inode", "names")

    def __init__(self, descriptor: int, inode: Inode) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.names: list[bytes] | None = None


class Directories:
    """The table of open directories. The number of a handle is that of its backing descriptor."""

    def __init__(self, tree: Tree, limiter: trio.CapacityLimiter) -> None:
        self._tree = tree
        self._limiter = limiter
        self._handles: dict[int, DirectoryHandle] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, number: int) -> DirectoryHandle:
        """The handle with this number. Raises OSError EBADF if it is not open."""
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def open(self, inode: Inode) -> DirectoryHandle:
        """Opens a directory, for a caller whose access the kernel has checked."""
        directory = self._tree.directory(inode)
        descriptor = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=directory)
        handle = DirectoryHandle(descriptor, inode)
        self._handles[descriptor] = handle
        return handle

    async def names(self, handle: DirectoryHandle, offset: int) -> list[bytes]:
        """The names in the order of the listing, with "." and "..", taken anew if the offset is 0."""
        names = handle.names
        if names is None or offset == 0:
            path = descriptor_path(handle.descriptor)
            if os.fstat(handle.descriptor).st_size <= _SMALL_DIRECTORY:
                names = _list(path)
            else:
                names = await trio.to_thread.run_sync(_list, path, limiter=self._limiter)
            handle.names = names
        return names

    async def sync(self, number: int, data_only: bool) -> None:
        """fsync(2) or fdatasync(2) of the directory."""
        synchronize = os.fdatasync if data_only else os.fsync
        await trio.to_thread.run_sync(partial(synchronize, self[number].descriptor), limiter=self._limiter)

    def release(self, number: int) -> None:
        """Closes the handle."""
        handle = self[number]
        del self._handles[number]
        os.close(handle.descriptor)

    def close(self) -> None:
        """Closes what the kernel did not release."""
        for number in list(self._handles):
            self.release(number)


def _list(path: bytes) -> list[bytes]:
    return [b".", b"..", *os.listdir(path)]
