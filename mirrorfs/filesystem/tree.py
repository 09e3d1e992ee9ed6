"""From inode numbers to the backing files: walks by component from the open root, with few descriptors."""

import errno
import logging
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import TracebackType

from mirrorfs.filesystem.descriptors import Descriptor, descriptor_path
from mirrorfs.filesystem.inodes import Inode, InodeTable
from mirrorfs.filesystem.shares import Shares
from mirrorfs.filesystem.system_calls import ActingAs, open_cached
from mirrorfs.filesystem.threads import OUT_OF_DESCRIPTORS, Threads

log = logging.getLogger(__name__)

DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
REFERENCE_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
CACHED_DIRECTORIES = 256


class Departure:
    """A name that is about to be taken away or changed, for a `with` statement around the system call.

    It holds a descriptor of what is named, by which that is reached meanwhile, and which may outlive the name; none if
    the process has no descriptor left. `status` is from before.
    """

    __slots__ = ("_departing", "descriptor", "inode", "status")

    def __init__(
        self,
        inode: Inode | None,
        descriptor: Descriptor | None,
        status: os.stat_result,
        departing: dict[int, list[Descriptor]],
    ) -> None:
        """`departing` is the table, by inode number, in which the descriptor is to be found meanwhile."""
        self.inode = inode
        self.descriptor = descriptor
        self.status = status
        self._departing = departing

    def __enter__(self) -> "Departure":
        if self.descriptor is not None:
            self.descriptor.hold()
            if self.inode is not None:
                self._departing.setdefault(self.inode.number, []).append(self.descriptor)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.descriptor is None:
            return
        if self.inode is not None:
            descriptors = self._departing[self.inode.number]
            descriptors.remove(self.descriptor)
            if not descriptors:
                del self._departing[self.inode.number]
        self.descriptor.release()


@dataclass(frozen=True, slots=True)
class _Unlinked:
    """What keeps an inode without names alive, and whose file it was."""

    descriptor: Descriptor
    owner: int


class Watch:
    """Whether a name has been changed since the watch began."""

    __slots__ = ("changed",)

    def __init__(self) -> None:
        self.changed = False


class Tree:
    """Finds the backing file of an inode. Owns the root descriptor and all descriptors it makes of directories.

    Everything is relative to an open directory (openat), one name at a time, so the length of paths does not
    matter, and a symbolic link is never followed. No descriptor is held per known inode, only for the
    directories used last, for inodes whose names are being changed, and for unlinked inodes until the kernel
    forgets them.

    What is to be had from memory is taken from there at once; everything else is done in threads. Tables change in the
    trio thread only, a name right after the system call that changed it has returned. In between, the table and the
    backing directory may disagree about this name. That does no harm, because

    - an inode whose name is being changed is reached by the descriptor of its `Departure`, not by name;
    - who was looking for an inode when its name changed, and missed it, sees that the table names it otherwise now;
    - who was looking at a name when it changed learns of that from a `Watch`.

    The kernel's own locks do the rest: a directory is locked while a name in it is changed, and locked against changes
    while it is listed or a name in it is looked up, unless that only revalidates what the kernel knows already.
    """

    def __init__(self, root_descriptor: int, threads: Threads, shares: Shares) -> None:
        """The descriptors of unlinked inodes are taken from `shares`, for the owners of these."""
        # Held for ever by one user more than there are: it is the caller's to close.
        self._root = Descriptor(root_descriptor).hold()
        self.inodes = InodeTable(os.fstat(root_descriptor).st_dev)
        self._threads = threads
        self._shares = shares
        self._directories: OrderedDict[int, Descriptor] = OrderedDict()
        self._unlinked: dict[int, _Unlinked] = {}
        self._departing: dict[int, list[Descriptor]] = {}
        self._watches: dict[tuple[Inode, bytes], list[Watch]] = {}
        self._closing = 0
        self._told_of_dropping = False
        threads.when_out_of_descriptors(self._drop_directories)

    def close(self) -> None:
        """Closes all descriptors but the root's."""
        unlinked = (self._given_back(of_inode) for of_inode in self._unlinked.values())
        for descriptor in (*self._directories.values(), *unlinked):
            descriptor.release()
        self._directories.clear()
        self._unlinked.clear()

    @property
    def held_descriptors(self) -> int:
        """How many descriptors of directories and of unlinked inodes are open now."""
        return len(self._directories) + len(self._unlinked) + self._closing

    async def directory(self, inode: Inode) -> Descriptor:
        """An O_PATH descriptor of a directory, for a `with` statement.

        Raises OSError: ESTALE if something else is found under its names, or as openat(2).
        """
        descriptor = self._directories.get(inode.number)
        if descriptor is not None:
            self._directories.move_to_end(inode.number)
            return descriptor
        while True:
            descriptor = self._held(inode)
            if descriptor is not None:
                return descriptor
            descriptor = await self._walk(inode)
            if descriptor is not None:
                return descriptor

    async def status(self, inode: Inode) -> os.stat_result:
        """fstat of what the inode stands for."""
        with await self.reference(inode) as descriptor:
            return os.fstat(descriptor)

    async def reference(self, inode: Inode) -> Descriptor:
        """A descriptor of any inode, for a `with` statement; O_PATH, so for descriptor_path and fstat only.

        Raises OSError, as `directory`.
        """
        while True:
            descriptor = self._held(inode)
            if descriptor is not None:
                return descriptor
            changes = inode.changes
            for parent, name in self.inodes.names(inode):
                descriptor = await self._open_name(inode, parent, name)
                if descriptor is not None:
                    return descriptor
            if not self._has_moved(inode, changes):
                raise _stale()

    async def status_of_name(self, parent: Inode, name: bytes) -> os.stat_result:
        """lstat of a name in a directory, true at the moment of the return. Raises OSError."""
        with await self.directory(parent) as directory:
            while True:
                status = status_in_memory(directory, name)
                if status is not None:
                    return status
                with self._watched(parent, name) as watch:
                    found = await self._threads.run(parent, partial(_status_or_error, directory, name))
                if not watch.changed:
                    return _result(found)

    async def departure(self, parent: Inode, directory: int, name: bytes) -> Departure:
        """What a name stands for that shall go or change; if it does, `departed` or `renamed` are to be called within.

        Raises OSError if there is no such name.
        """
        try:
            number = await self._open(parent, directory, name, REFERENCE_FLAGS)
        except OSError as error:
            if error.errno not in OUT_OF_DESCRIPTORS:
                raise
            status = await self._threads.run(parent, partial(_status, directory, name))
            return Departure(self.inodes.find(status), None, status, self._departing)
        status = os.fstat(number)
        return Departure(self.inodes.find(status), Descriptor(number, self._close_last), status, self._departing)

    def departed(self, departure: Departure, parent: Inode, name: bytes) -> None:
        """The name is gone. If it was the last known one, the inode lives on in a descriptor until it is forgotten.

        That keeps operations on it working as they would on the backing file system, and it keeps the number
        from being used again for another file while the kernel still means this one.
        """
        self._changed(parent, name)
        inode = departure.inode
        if inode is None or not self.inodes.knows(inode):
            return
        if departure.descriptor is None:
            is_last = departure.status.st_nlink == 1
        else:
            # Other names of it may have gone at the same time.
            is_last = os.fstat(departure.descriptor.number).st_nlink == 0
        is_deleted = is_last or inode.is_directory
        if is_deleted:
            self._outlive(inode, departure, is_deleted=True)
        self._release(self.inodes.remove_name(inode, parent, name))
        if not is_deleted and not self.inodes.names(inode):
            # It has other names, but nobody has met them here.
            self._outlive(inode, departure, is_deleted=False)

    def renamed(self, departure: Departure, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes) -> None:
        """The name has become another one."""
        self._changed(parent, name)
        self._changed(new_parent, new_name)
        inode = departure.inode
        if inode is None or not self.inodes.knows(inode):
            return
        self.inodes.add_name(inode, new_parent, new_name)
        self._release(self.inodes.remove_name(inode, parent, name))

    def appeared(
        self, parent: Inode, name: bytes, status: os.stat_result, lacks: frozenset[bytes] = frozenset()
    ) -> Inode:
        """The name has been made; returns the record, counted as handed to the kernel.

        `lacks` are the extended attributes that a new file is known not to have.
        """
        self._changed(parent, name)
        inode = self.inodes.remember(parent, name, status)
        if lacks:
            self.inodes.note_lacking(inode, lacks)
        return inode

    async def forget(self, number: int, lookups: int) -> None:
        """Takes back lookups. An inode that is both unlinked and forgotten is let go, which may be what deletes it."""
        unlinked = self._release(self.inodes.forget(number, lookups))
        self._closing += len(unlinked)
        try:
            for descriptor in unlinked:
                if descriptor.let_go():
                    # By the length of the file, this may take long.
                    await self._threads.run(descriptor, partial(os.close, descriptor.number), briefly=False)
        finally:
            self._closing -= len(unlinked)

    def give_back(self, number: int) -> None:
        """Takes back one lookup that the kernel was not told of after all."""
        for descriptor in self._release(self.inodes.forget(number, 1)):
            descriptor.release()

    def _outlive(self, inode: Inode, departure: Departure, *, is_deleted: bool) -> None:
        cached = self._directories.pop(inode.number, None)
        if cached is not None:
            cached.release()
        if inode.number in self._unlinked:
            return
        owner = departure.status.st_uid
        if departure.descriptor is not None and self._may_hold(owner):
            self._unlinked[inode.number] = _Unlinked(departure.descriptor.hold(), owner)
        elif is_deleted:
            self.inodes.vanish(inode)

    def _may_hold(self, owner: int) -> bool:
        """Takes a descriptor for an unlinked inode, unless its owner has too many: then it is lost with its name."""
        try:
            self._shares.take(owner)
        except OSError:
            return False
        return True

    def _given_back(self, unlinked: _Unlinked) -> Descriptor:
        self._shares.give_back(unlinked.owner)
        return unlinked.descriptor

    def _close_last(self, number: int) -> None:
        # If it has no name any more, this may be what deletes it.
        if os.fstat(number).st_nlink == 0:
            self._threads.start(partial(os.close, number))
        else:
            os.close(number)

    def _release(self, dropped: list[Inode]) -> list[Descriptor]:
        unlinked = []
        for inode in dropped:
            descriptor = self._directories.pop(inode.number, None)
            if descriptor is not None:
                descriptor.release()
            outlived = self._unlinked.pop(inode.number, None)
            if outlived is not None:
                unlinked.append(self._given_back(outlived))
        return unlinked

    def _held(self, inode: Inode) -> Descriptor | None:
        if inode is self.inodes.root:
            return self._root
        number = inode.number
        if number in self._unlinked:
            return self._unlinked[number].descriptor
        descriptor = self._directories.get(number)
        if descriptor is None and number in self._departing:
            return self._departing[number][0]
        return descriptor

    async def _open_name(self, inode: Inode, parent: Inode, name: bytes) -> Descriptor | None:
        """An own descriptor of the inode, if the name leads to it now."""
        try:
            with await self.directory(parent) as directory:
                number = await self._open(inode, directory, name, REFERENCE_FLAGS)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ESTALE):
                raise
            return None
        if self.inodes.is_same(inode, os.fstat(number)):
            return Descriptor(number)
        os.close(number)
        return None

    async def _open(self, about: Inode, directory: int, name: bytes, flags: int) -> int:
        number = open_cached(directory, name, flags)
        if number is not None:
            return number
        return await self._threads.run(about, partial(os.open, name, flags, dir_fd=directory))

    async def _walk(self, inode: Inode) -> Descriptor | None:
        """Opens the ancestors from the first one that is open already. None: they have changed meanwhile."""
        path = []
        for ancestor in self.inodes.ancestry(inode):
            if self._held(ancestor) is not None:
                break
            path.append(ancestor)
        # The first one that is held is above these; if nothing is, they are below what was removed.
        top = path[-1].parent if path else inode
        descriptor = None if top is None else self._held(top)
        if descriptor is None:
            raise _stale()
        for directory in reversed(path):
            with descriptor as parent:
                descriptor = await self._open_directory(parent, directory)
            if descriptor is None:
                return None
        return descriptor

    async def _open_directory(self, parent_descriptor: int, inode: Inode) -> Descriptor | None:
        changes = inode.changes
        try:
            number = await self._open(inode, parent_descriptor, inode.name, DIRECTORY_FLAGS)
        except OSError:
            if self._has_moved(inode, changes):
                return None
            raise
        if self._has_moved(inode, changes):
            # Or somebody else has opened it while we did.
            os.close(number)
            return None
        if not self.inodes.is_same(inode, os.fstat(number)):
            os.close(number)
            raise _stale()
        return self._cache(inode, number)

    def _has_moved(self, inode: Inode, changes: int) -> bool:
        """Whether its names are others than when it had had so many changes, or it can be reached without one."""
        return inode.changes != changes or self._held(inode) is not None

    def _cache(self, inode: Inode, number: int) -> Descriptor:
        descriptor = Descriptor(number)
        self._directories[inode.number] = descriptor.hold()
        if len(self._directories) > CACHED_DIRECTORIES:
            _, oldest = self._directories.popitem(last=False)
            oldest.release()
        return descriptor

    def _drop_directories(self) -> bool:
        """Closes what is only kept to be quicker; whether there was any."""
        dropped = list(self._directories.values())
        self._directories.clear()
        for descriptor in dropped:
            descriptor.release()
        if not self._told_of_dropping:
            self._told_of_dropping = True
            log.warning(
                "this process has as many open files as it may have (ulimit -n, fs.nr_open): directories that are kept "
                "open to be quicker are closed. This is said once"
            )
        return bool(dropped)

    @contextmanager
    def _watched(self, parent: Inode, name: bytes) -> Iterator[Watch]:
        watch = Watch()
        watches = self._watches.setdefault((parent, name), [])
        watches.append(watch)
        try:
            yield watch
        finally:
            watches.remove(watch)
            if not watches:
                del self._watches[parent, name]

    def _changed(self, parent: Inode, name: bytes) -> None:
        parent.entry_changes += 1
        for watch in self._watches.get((parent, name), ()):
            watch.changed = True


def make_name(make: Callable[..., None], directory: int, name: bytes, uid: int, gid: int) -> os.stat_result:
    """Makes a name in an open directory, as this user, and returns its status. It may wait."""
    with ActingAs(uid, gid):
        make(dir_fd=directory)
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def link_name(source: int, directory: int, name: bytes) -> os.stat_result:
    """Gives one more name to what is open, and returns its status. It may wait."""
    # What is followed is the link of proc(5), which leads to the file itself, also if that is a symbolic link.
    os.link(descriptor_path(source), name, dst_dir_fd=directory, follow_symlinks=True)
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def status_in_memory(directory: int, name: bytes) -> os.stat_result | None:
    """lstat of a name in an open directory; None if the kernel cannot tell without asking the disk."""
    number = open_cached(directory, name, REFERENCE_FLAGS)
    if number is None:
        return None
    try:
        return os.fstat(number)
    finally:
        os.close(number)


def _status(directory: int, name: bytes) -> os.stat_result:
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def _status_or_error(directory: int, name: bytes) -> os.stat_result | OSError:
    try:
        return _status(directory, name)
    except OSError as error:
        return error


def _result(found: os.stat_result | OSError) -> os.stat_result:
    if isinstance(found, OSError):
        raise found
    return found


def _stale() -> OSError:
    return OSError(errno.ESTALE, os.strerror(errno.ESTALE))
