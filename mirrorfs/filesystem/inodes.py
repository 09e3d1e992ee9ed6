"""The inodes that the kernel knows, and the names under which they were met: no system calls here."""

import errno
import os
import stat
from collections.abc import Iterator

ROOT_NUMBER = 1
"""The number by which the kernel calls the mounted directory (FUSE_ROOT_ID), whatever its own is."""

FIRST_FOREIGN_NUMBER = 1 << 62
"""From here on, numbers are ours: of inodes on other file systems than that of the root."""


class Inode:
    """An inode the kernel refers to, or an ancestor of one.

    Names hang on the parent's record, not on its path, so renaming a directory touches one record. `parent` and
    `name` are the first known name (others: `InodeTable.names`); None for the root and for what was unlinked.
    """

    __slots__ = ("changes", "children", "entry_changes", "is_directory", "lookups", "name", "number", "parent")

    def __init__(self, number: int, is_directory: bool) -> None:
        self.number = number
        self.is_directory = is_directory
        self.parent: Inode | None = None
        self.name = b""
        self.lookups = 0
        """How often the kernel was given this inode, less what it gave back: it may be named until zero."""
        self.children = 0
        """How many known names are in this directory: it is needed for their paths as long as there are any."""
        self.changes = 0
        """Grows with each name that it gets or loses, so that who did not find it sees whether to look again."""
        self.entry_changes = 0
        """Grows with each name in it that is made, goes or changes, so that a listing is seen to be out of date."""


class InodeTable:
    """Records of all known inodes, by the number the kernel uses.

    That number is the backing file system's own st_ino. Inodes on another device (something mounted below the
    backing directory, or a btrfs subvolume) and an inode numbered 1 (which means the root to the kernel) get
    numbers above 2**62, unique as long as they are known.
    """

    def __init__(self, device: int) -> None:
        self._device = device
        self.root = Inode(ROOT_NUMBER, is_directory=True)
        self.root.lookups = 1
        self._inodes = {ROOT_NUMBER: self.root}
        self._more_names: dict[int, dict[tuple[Inode, bytes], None]] = {}
        self._generations: dict[int, int] = {}
        self._lacking: dict[int, frozenset[bytes]] = {}
        self._vanished: set[int] = set()
        self._foreign_numbers: dict[tuple[int, int], int] = {}
        self._foreign_keys: dict[int, tuple[int, int]] = {}
        self._next_foreign_number = FIRST_FOREIGN_NUMBER

    def __len__(self) -> int:
        return len(self._inodes)

    def __getitem__(self, number: int) -> Inode:
        """The record of a number the kernel used. Raises OSError ESTALE if it was never given out."""
        try:
            return self._inodes[number]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def find(self, status: os.stat_result) -> Inode | None:
        """The record of the inode with this status, if it is known."""
        if status.st_dev == self._device and status.st_ino != ROOT_NUMBER:
            return self._inodes.get(status.st_ino)
        number = self._foreign_numbers.get((status.st_dev, status.st_ino))
        return None if number is None else self._inodes.get(number)

    def knows(self, inode: Inode) -> bool:
        """Whether this record still stands; a forgotten one does not."""
        return self._inodes.get(inode.number) is inode

    def generation(self, inode: Inode) -> int:
        """Tells the kernel an inode from an earlier one of the same number that it may still hold."""
        return self._generations.get(inode.number, 0)

    def lacks(self, number: int, name: bytes) -> bool:
        """Whether the inode of this number is known not to have this extended attribute."""
        return name in self._lacking.get(number, ())

    def note_lacking(self, inode: Inode, names: frozenset[bytes]) -> None:
        """Notes that it has been made just now without these extended attributes."""
        self._lacking[inode.number] = names

    def note_given(self, number: int, name: bytes) -> None:
        """Notes that it is about to be given this one."""
        if self.lacks(number, name):
            self._lacking[number] -= {name}

    def is_same(self, inode: Inode, status: os.stat_result) -> bool:
        """Whether `status` is of this inode: false, if something else has taken its name behind our back."""
        return self.find(status) is inode

    def remember(self, parent: Inode, name: bytes, status: os.stat_result) -> Inode:
        """The record for what was found under `name`, counted as handed to the kernel once more."""
        inode = self.find(status)
        if inode is None:
            inode = self._add(status)
            self._attach(inode, parent, name)
        elif inode.parent is not parent or inode.name != name:
            self._meet_again(inode, parent, name, status)
        inode.lookups += 1
        return inode

    def forget(self, number: int, lookups: int) -> list[Inode]:
        """Takes back `lookups`. Returns the records that are gone with it: the inode, ancestors."""
        inode = self._inodes.get(number)
        if inode is None:
            return []
        inode.lookups -= lookups
        return self._drop_unneeded(inode)

    def add_name(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Notes one more name of the inode, unless it is known."""
        if inode.parent is None:
            self._attach(inode, parent, name)
        elif inode.parent is not parent or inode.name != name:
            more = self._more_names.setdefault(inode.number, {})
            if (parent, name) not in more:
                more[parent, name] = None
                parent.children += 1
                inode.changes += 1

    def remove_name(self, inode: Inode, parent: Inode, name: bytes) -> list[Inode]:
        """Notes that the name is gone. Returns the records that are gone with it."""
        more = self._more_names.get(inode.number, {})
        if inode.parent is parent and inode.name == name:
            inode.parent, inode.name = more.popitem()[0] if more else (None, b"")
        elif (parent, name) in more:
            del more[parent, name]
        else:
            return []
        if not more:
            self._more_names.pop(inode.number, None)
        parent.children -= 1
        inode.changes += 1
        return self._drop_unneeded(parent)

    def vanish(self, inode: Inode) -> None:
        """Notes that the inode is deleted and nothing keeps its number from being used again.

        Not needed for one that somebody holds open: its number is not free.
        """
        self._vanished.add(inode.number)

    def names(self, inode: Inode) -> list[tuple[Inode, bytes]]:
        """All names the inode is known by, each as directory and name in it."""
        if inode.parent is None:
            return []
        return [(inode.parent, inode.name), *self._more_names.get(inode.number, ())]

    def paths(self, inode: Inode) -> list[bytes]:
        """All paths the inode is known by, relative to the root; none if it was unlinked."""
        if inode is self.root:
            return [b""]
        paths = (self.path(parent, name) for parent, name in self.names(inode))
        return [path for path in paths if path is not None]

    def path(self, directory: Inode, name: bytes) -> bytes | None:
        """The path of a name in a directory, relative to the root; None if the directory was removed."""
        components = [name]
        for ancestor in self.ancestry(directory):
            components.append(ancestor.name)
            if ancestor.parent is None:
                return None
        components.reverse()
        return b"/".join(components)

    def ancestry(self, inode: Inode) -> Iterator[Inode]:
        """The inode and its ancestors, upwards, up to but without the root (or whatever was removed)."""
        while inode is not self.root:
            yield inode
            if inode.parent is None:
                return
            inode = inode.parent

    def _add(self, status: os.stat_result) -> Inode:
        inode = Inode(self._number(status), stat.S_ISDIR(status.st_mode))
        self._inodes[inode.number] = inode
        return inode

    def _number(self, status: os.stat_result) -> int:
        if status.st_dev == self._device and status.st_ino != ROOT_NUMBER:
            return status.st_ino
        number = self._next_foreign_number
        self._next_foreign_number += 1
        key = (status.st_dev, status.st_ino)
        self._foreign_numbers[key] = number
        self._foreign_keys[number] = key
        return number

    def _meet_again(self, inode: Inode, parent: Inode, name: bytes, status: os.stat_result) -> None:
        is_directory = stat.S_ISDIR(status.st_mode)
        if inode.number in self._vanished or inode.is_directory != is_directory:
            self._reuse_number(inode, is_directory)
        if is_directory:
            # A directory has one name: whatever we knew is out of date.
            self._detach(inode)
        self.add_name(inode, parent, name)

    def _reuse_number(self, inode: Inode, is_directory: bool) -> None:
        self._vanished.discard(inode.number)
        self._detach(inode)
        inode.is_directory = is_directory
        self._lacking.pop(inode.number, None)
        self._generations[inode.number] = self.generation(inode) + 1

    def _attach(self, inode: Inode, parent: Inode, name: bytes) -> None:
        inode.parent = parent
        inode.name = name
        inode.changes += 1
        parent.children += 1

    def _detach(self, inode: Inode) -> None:
        for parent, _ in self.names(inode):
            parent.children -= 1
        self._more_names.pop(inode.number, None)
        inode.parent, inode.name = None, b""
        inode.changes += 1

    def _drop_unneeded(self, inode: Inode) -> list[Inode]:
        dropped = []
        candidates = [inode]
        while candidates:
            inode = candidates.pop()
            if inode.lookups > 0 or inode.children > 0 or inode is self.root:
                continue
            if self._inodes.pop(inode.number, None) is None:
                continue
            candidates.extend(parent for parent, _ in self.names(inode))
            self._detach(inode)
            self._generations.pop(inode.number, None)
            self._lacking.pop(inode.number, None)
            self._vanished.discard(inode.number)
            key = self._foreign_keys.pop(inode.number, None)
            if key is not None:
                del self._foreign_numbers[key]
            dropped.append(inode)
        return dropped
