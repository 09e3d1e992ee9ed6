"""Open directories: listings that stand whatever is created, removed and renamed meanwhile."""

import errno
import os
from functools import partial

from mirrorfs.filesystem.descriptors import descriptor_path
from mirrorfs.filesystem.inodes import Inode
from mirrorfs.filesystem.threads import Threads
from mirrorfs.filesystem.tree import Tree, status_in_memory

# A directory of this size, if it is in memory, is read in less time than the event loop takes to be woken.
_SMALL_DIRECTORY = 32 << 10
# As many entries as there are in the smallest buffer that the kernel asks with, more or less.
_STATUSES_AT_ONCE = 32


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

    def __init__(self, tree: Tree, threads: Threads) -> None:
        self._tree = tree
        self._threads = threads
        self._handles: dict[int, DirectoryHandle] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, number: int) -> DirectoryHandle:
        """The handle with this number. Raises OSError EBADF if it is not open."""
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    async def open(self, inode: Inode) -> DirectoryHandle:
        """Opens a directory, for a caller whose access the kernel has checked."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        with await self._tree.directory(inode) as directory:
            descriptor = await self._threads.run(inode, partial(os.open, b".", flags, dir_fd=directory))
        handle = DirectoryHandle(descriptor, inode)
        self._handles[descriptor] = handle
        return handle

    async def names(self, handle: DirectoryHandle, offset: int) -> list[bytes]:
        """The names in the order of the listing, with "." and "..", taken anew if the offset is 0."""
        names = handle.names
        if names is None or offset == 0:
            is_small = os.fstat(handle.descriptor).st_size <= _SMALL_DIRECTORY
            call = partial(_list, descriptor_path(handle.descriptor))
            names = await self._threads.run(handle.inode, call, briefly=is_small)
            handle.names = names
        return names

    def statuses(self, handle: DirectoryHandle, names: list[bytes]) -> "Statuses":
        """The status of each name, for the time of one request: so long the kernel keeps the names as they are."""
        return Statuses(self._threads, handle, names)

    async def sync(self, number: int, data_only: bool) -> None:
        """fsync(2) or fdatasync(2) of the directory."""
        synchronize = os.fdatasync if data_only else os.fsync
        await self._threads.run(self[number].inode, partial(synchronize, number), briefly=False)

    def release(self, number: int) -> None:
        """Closes the handle."""
        handle = self[number]
        del self._handles[number]
        os.close(handle.descriptor)

    def close(self) -> None:
        """Closes what the kernel did not release."""
        for number in list(self._handles):
            self.release(number)


class Statuses:
    """lstat of the names in an open directory, one after the other; some ahead if the disk is to be asked."""

    __slots__ = ("_ahead", "_handle", "_names", "_threads")

    def __init__(self, threads: Threads, handle: DirectoryHandle, names: list[bytes]) -> None:
        self._threads = threads
        self._handle = handle
        self._names = names
        self._ahead: dict[int, os.stat_result | None] = {}

    async def at(self, position: int) -> os.stat_result | None:
        """The status of the name at this position, which is not "." nor ".."; None if it is gone."""
        if position in self._ahead:
            return self._ahead.pop(position)
        directory = self._handle.descriptor
        try:
            status = status_in_memory(directory, self._names[position])
        except FileNotFoundError:
            return None
        if status is None:
            names = self._names[position : position + _STATUSES_AT_ONCE]
            found = await self._threads.run(self._handle.inode, partial(_statuses, directory, names))
            self._ahead = dict(enumerate(found, position))
            status = self._ahead.pop(position)
        return status


def _statuses(directory: int, names: list[bytes]) -> list[os.stat_result | None]:
    return [_status(directory, name) for name in names]


def _status(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _list(path: bytes) -> list[bytes]:
    return [b".", b"..", *os.listdir(path)]
