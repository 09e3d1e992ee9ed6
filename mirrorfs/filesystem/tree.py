"""From inode numbers to the backing files: walks by component from the open root, with few descriptors."""

import errno
import os
from collections import OrderedDict
from dataclasses import dataclass
from types import TracebackType

from mirrorfs.filesystem.inodes import Inode, InodeTable

DIRECTORY_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
REFERENCE_FLAGS = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
CACHED_DIRECTORIES = 256


def descriptor_path(descriptor: int) -> bytes:
    """A path that leads to exactly what is open, also for O_PATH, symbolic links and unlinked files (proc(5))."""
    return b"/proc/self/fd/%d" % descriptor


@dataclass(frozen=True, slots=True)
class Departure:
    """A name that is about to be taken away: what it names, and a descriptor that outlives it."""

    inode: Inode | None
    descriptor: int | None
    status: os.stat_result


class Reference:
    """A descriptor for the length of a `with` statement, closed at its end if it was opened for it."""

    __slots__ = ("_descriptor", "_owned")

    def __init__(self, descriptor: int, *, owned: bool) -> None:
        self._descriptor = descriptor
        self._owned = owned

    def __enter__(self) -> int:
        return self._descriptor

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            os.close(self._descriptor)


class Tree:
    """Finds the backing file of an inode. Owns the root descriptor and all descriptors it makes of directories.

    Everything is relative to an open directory (openat), one name at a time, so the length of paths does not
    matter, and a symbolic link is never followed. No descriptor is held per known inode, only for the
    directories used last, and for unlinked inodes until the kernel forgets them.

    Nothing here waits, and callers use a borrowed descriptor or name before their next `await`: so names in the
    table and in the backing directory always agree.
    """

    def __init__(self, root_descriptor: int) -> None:
        self._root_descriptor = root_descriptor
        self.inodes = InodeTable(os.fstat(root_descriptor).st_dev)
        self._directories: OrderedDict[int, int] = OrderedDict()
        self._unlinked: dict[int, int] = {}

    def close(self) -> None:
        """Closes all descriptors but the root's."""
        for descriptor in (*self._directories.values(), *self._unlinked.values()):
            os.close(descriptor)
        self._directories.clear()
        self._unlinked.clear()

    @property
    def held_descriptors(self) -> int:
        """How many descriptors of directories and of unlinked inodes are open now."""
        return len(self._directories) + len(self._unlinked)

    def directory(self, inode: Inode) -> int:
        """An O_PATH descriptor of a directory, to be used before the next `await` and not to be closed.

        Raises OSError: ESTALE if something else is found under its names, or as openat(2).
        """
        descriptor = self._directories.get(inode.number)
        if descriptor is not None:
            self._directories.move_to_end(inode.number)
            return descriptor
        if inode is self.inodes.root:
            return self._root_descriptor
        descriptor = self._unlinked.get(inode.number)
        return self._walk(inode) if descriptor is None else descriptor

    def status(self, inode: Inode) -> os.stat_result:
        """fstat of what the inode stands for."""
        descriptor = self._held(inode)
        if descriptor is not None:
            return os.fstat(descriptor)
        for parent, name in self.inodes.names(inode):
            status = self._status_of_name(parent, name)
            if status is not None and self.inodes.is_same(inode, status):
                return status
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def reference(self, inode: Inode) -> "Reference":
        """A descriptor of any inode, for a `with` statement; O_PATH, so for descriptor_path and fstat only."""
        descriptor = self._held(inode)
        if descriptor is not None:
            return Reference(descriptor, owned=False)
        return Reference(self.open_reference(inode), owned=True)

    def open_reference(self, inode: Inode) -> int:
        """A new O_PATH descriptor of any inode, for the caller to close. Raises OSError, as `directory`."""
        descriptor = self._held(inode)
        if descriptor is not None:
            return os.dup(descriptor)
        for parent, name in self.inodes.names(inode):
            try:
                descriptor = os.open(name, REFERENCE_FLAGS, dir_fd=self.directory(parent))
            except FileNotFoundError:
                continue
            if self.inodes.is_same(inode, os.fstat(descriptor)):
                return descriptor
            os.close(descriptor)
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def departing(self, parent: Inode, name: bytes) -> Departure:
        """To be called before a name goes: keeps hold of what it names, if the kernel may go on asking for it.

        To be followed by `departed` or, if the name stays, by `stays`.
        """
        directory = self.directory(parent)
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        inode = self.inodes.find(status)
        if inode is None or (status.st_nlink > 1 and not inode.is_directory):
            return Departure(inode, None, status)
        try:
            descriptor = os.open(name, REFERENCE_FLAGS, dir_fd=directory)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            return Departure(inode, None, status)
        return Departure(inode, descriptor, status)

    def stays(self, departure: Departure) -> None:
        """The name was not taken away."""
        if departure.descriptor is not None:
            os.close(departure.descriptor)

    def departed(self, departure: Departure, parent: Inode, name: bytes) -> None:
        """The name is gone. If it was the last one, the inode lives on in a descriptor until it is forgotten.

        That keeps operations on it working as they would on the backing file system, and it keeps the number
        from being used again for another file while the kernel still means this one.
        """
        inode = departure.inode
        if inode is None:
            return
        cached = self._directories.pop(inode.number, None)
        if cached is not None:
            os.close(cached)
        if departure.descriptor is not None:
            self._unlinked[inode.number] = departure.descriptor
        elif departure.status.st_nlink == 1 or inode.is_directory:
            self.inodes.vanish(inode)
        self._release(self.inodes.remove_name(inode, parent, name))

    def renamed(self, inode: Inode, parent: Inode, name: bytes, new_parent: Inode, new_name: bytes) -> None:
        """The name of an inode has become another one."""
        self.inodes.add_name(inode, new_parent, new_name)
        self._release(self.inodes.remove_name(inode, parent, name))

    def forget(self, number: int, lookups: int) -> list[int]:
        """Takes back lookups; returns descriptors of inodes that are both unlinked and forgotten, to be closed.

        Closing one may be what deletes the file.
        """
        return self._release(self.inodes.forget(number, lookups))

    def _release(self, dropped: list[Inode]) -> list[int]:
        unlinked = []
        for inode in dropped:
            descriptor = self._directories.pop(inode.number, None)
            if descriptor is not None:
                os.close(descriptor)
            descriptor = self._unlinked.pop(inode.number, None)
            if descriptor is not None:
                unlinked.append(descriptor)
        return unlinked

    def _held(self, inode: Inode) -> int | None:
        if inode is self.inodes.root:
            return self._root_descriptor
        descriptor = self._unlinked.get(inode.number)
        return self._directories.get(inode.number) if descriptor is None else descriptor

    def _status_of_name(self, parent: Inode, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self.directory(parent), follow_symlinks=False)
        except FileNotFoundError:
            return None

    def _walk(self, inode: Inode) -> int:
        path = []
        for ancestor in self.inodes.ancestry(inode):
            if ancestor.number in self._directories or ancestor.number in self._unlinked:
                break
            path.append(ancestor)
        # The first one open is cached, above the root, or the root itself.
        top = path[-1].parent if path else inode
        if top is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        descriptor = self.directory(top)
        for directory in reversed(path):
            descriptor = self._open_directory(descriptor, directory)
        return descriptor

    def _open_directory(self, parent_descriptor: int, inode: Inode) -> int:
        descriptor = os.open(inode.name, DIRECTORY_FLAGS, dir_fd=parent_descriptor)
        if not self.inodes.is_same(inode, os.fstat(descriptor)):
            os.close(descriptor)
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        self._directories[inode.number] = descriptor
        if len(self._directories) > CACHED_DIRECTORIES:
            _, oldest = self._directories.popitem(last=False)
            os.close(oldest)
        return descriptor
