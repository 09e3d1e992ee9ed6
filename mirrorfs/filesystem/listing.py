"""Open directories: listings that stand whatever is created, removed and renamed meanwhile."""

import errno
import os
from collections import Counter, OrderedDict
from collections.abc import Callable
from functools import partial

import trio

from mirrorfs.filesystem.descriptors import descriptor_path
from mirrorfs.filesystem.inodes import Inode
from mirrorfs.filesystem.shares import Shares
from mirrorfs.filesystem.threads import Threads
from mirrorfs.filesystem.tree import Tree, status_in_memory

# A directory of this size, if it is in memory, is read in less time than the event loop takes to be woken.
_SMALL_DIRECTORY = 32 << 10
# Kept after nobody lists a directory any more. A name takes about 75 bytes, the longest ones 300; a listing alone takes
# as much as eight names. So that is 10 MB in all.
_MOST_KEPT_NAMES = 1 << 17
_MOST_KEPT_NAMES_OF_ONE = 1 << 10
_NAMES_FOR_A_LISTING = 8
# As many entries as there are in the smallest buffer that the kernel asks with, more or less.
_STATUSES_AT_ONCE = 32


class Listing:
    """The names in a directory at one time, with "." and "..", for all handles that have begun to list it then.

    They are copied when a listing begins (and anew after rewinddir), so an offset is simply a position among them:
    it means the same whatever happens to the directory, and every name that is there all the time is listed exactly
    once. Names that have gone meanwhile are left out when their turn comes.
    """

    __slots__ = ("names", "stamp", "taken", "users")

    def __init__(self, names: list[bytes], stamp: "Stamp") -> None:
        self.names = names
        self.stamp = stamp
        self.users: Counter[int] = Counter()
        """How many handles of each user have it."""
        self.taken: dict[int, int] = {}
        """How much of the user's share it is, of each of them."""


class DirectoryHandle:
    """One open directory, of this user, and the listing that is under way, if one is. Its descriptor is O_PATH."""

    __slots__ = ("descriptor", "inode", "listing", "uid")

    def __init__(self, descriptor: int, inode: Inode, uid: int) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.uid = uid
        self.listing: Listing | None = None


Stamp = tuple[int, int, int]
"""What is different after every change of a directory: of one through us, and of one behind our back by its times."""


class Directories:
    """The table of open directories. The number of a handle is that of its backing descriptor.

    A directory is read once for all who list it until it changes: however often it is opened, its names are in memory
    once, or as often as it was changed between. Small listings that nobody holds any more are kept while there is room:
    who walks through thousands of directories, as PBS does to show its snapshots, does so again and again.
    """

    def __init__(
        self,
        tree: Tree,
        threads: Threads,
        descriptors: Shares,
        names: Shares,
        may_keep: Callable[[Inode], bool] = lambda _: True,
    ) -> None:
        """Handles are taken from `descriptors`, what their listings hold from `names`.

        `may_keep` tells whether only the mount changes a directory, so that what was read of it stands.
        """
        self._tree = tree
        self._threads = threads
        self._descriptors = descriptors
        self._names = names
        self._handles: dict[int, DirectoryHandle] = {}
        self._newest: dict[Inode, Listing] = {}
        self._reading: dict[Inode, trio.Lock] = {}
        self._may_keep = may_keep
        self._kept: OrderedDict[Inode, Listing] = OrderedDict()
        self._kept_names = 0

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, number: int) -> DirectoryHandle:
        """The handle with this number. Raises OSError EBADF if it is not open."""
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    async def open(self, inode: Inode, uid: int) -> DirectoryHandle:
        """Opens a directory, for a caller whose access the kernel has checked."""
        self._descriptors.take(uid)
        try:
            with await self._tree.directory(inode) as directory:
                # One for itself, since the number is the handle's; the directory is opened when it is read.
                descriptor = self._threads.at_once(partial(os.dup, directory))
        except BaseException:
            self._descriptors.give_back(uid)
            raise
        handle = DirectoryHandle(descriptor, inode, uid)
        self._handles[descriptor] = handle
        return handle

    async def names(self, handle: DirectoryHandle, offset: int) -> list[bytes]:
        """The names in the order of the listing, with "." and "..", taken anew if the offset is 0."""
        if handle.listing is not None and offset != 0:
            return handle.listing.names
        # One after the other: those who wait find what the first one has read.
        reading = self._reading.setdefault(handle.inode, trio.Lock())
        try:
            async with reading:
                listing = self._newest.get(handle.inode) or self._kept.get(handle.inode)
                if listing is None or listing.stamp != _stamp(handle):
                    listing = await self._read(handle)
                self._change_listing(handle, listing)
        finally:
            if not reading.locked():
                self._reading.pop(handle.inode, None)
        return listing.names

    def statuses(self, handle: DirectoryHandle, names: list[bytes]) -> "Statuses":
        """The status of each name, for the time of one request: so long the kernel keeps the names as they are."""
        return Statuses(self._threads, handle, names)

    async def sync(self, number: int, data_only: bool) -> None:
        """fsync(2) or fdatasync(2) of the directory."""
        synchronize = os.fdatasync if data_only else os.fsync
        call = partial(_synchronize, descriptor_path(number), synchronize)
        await self._threads.run(self[number].inode, call, briefly=False)

    def release(self, number: int) -> None:
        """Closes the handle."""
        handle = self[number]
        del self._handles[number]
        self._change_listing(handle, None)
        os.close(handle.descriptor)
        self._descriptors.give_back(handle.uid)

    def close(self) -> None:
        """Closes what the kernel did not release."""
        for number in list(self._handles):
            self.release(number)

    async def _read(self, handle: DirectoryHandle) -> Listing:
        stamp = _stamp(handle)
        is_small = os.fstat(handle.descriptor).st_size <= _SMALL_DIRECTORY
        names = await self._threads.run(
            handle.inode, partial(_list, descriptor_path(handle.descriptor)), briefly=is_small
        )
        # If it was changed meanwhile, who asks next sees that by the stamp, and reads it again.
        return Listing(names, stamp)

    def _change_listing(self, handle: DirectoryHandle, listing: Listing | None) -> None:
        if listing is handle.listing:
            return
        self._let_go(handle)
        if listing is not None:
            self._hold(handle, listing)

    def _hold(self, handle: DirectoryHandle, listing: Listing) -> None:
        if handle.uid not in listing.taken:
            listing.taken[handle.uid] = self._names.take(handle.uid, len(listing.names))
        listing.users[handle.uid] += 1
        handle.listing = listing
        self._newest[handle.inode] = listing
        self._drop_kept(handle.inode)

    def _let_go(self, handle: DirectoryHandle) -> None:
        listing, handle.listing = handle.listing, None
        if listing is None:
            return
        listing.users[handle.uid] -= 1
        if not listing.users[handle.uid]:
            del listing.users[handle.uid]
            self._names.give_back(handle.uid, listing.taken.pop(handle.uid))
        if not listing.users and self._newest.get(handle.inode) is listing:
            del self._newest[handle.inode]
            self._keep(handle.inode, listing)

    def _keep(self, inode: Inode, listing: Listing) -> None:
        if len(listing.names) > _MOST_KEPT_NAMES_OF_ONE or not self._may_keep(inode):
            return
        self._kept[inode] = listing
        self._kept_names += len(listing.names) + _NAMES_FOR_A_LISTING
        while self._kept_names > _MOST_KEPT_NAMES:
            self._drop_kept(next(iter(self._kept)))

    def _drop_kept(self, inode: Inode) -> None:
        listing = self._kept.pop(inode, None)
        if listing is not None:
            self._kept_names -= len(listing.names) + _NAMES_FOR_A_LISTING


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


def _synchronize(path: bytes, synchronize: Callable[[int], None]) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        synchronize(descriptor)
    finally:
        os.close(descriptor)


def _statuses(directory: int, names: list[bytes]) -> list[os.stat_result | None]:
    return [_status(directory, name) for name in names]


def _status(directory: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _stamp(handle: DirectoryHandle) -> Stamp:
    status = os.fstat(handle.descriptor)
    return handle.inode.entry_changes, status.st_mtime_ns, status.st_ctime_ns


def _list(path: bytes) -> list[bytes]:
    return [b".", b"..", *os.listdir(path)]
