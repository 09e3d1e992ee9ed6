"""What the kernel may keep of a directory that others change past the mount, while all else comes through it."""

from __future__ import annotations

import pyfuse3

from mirrorfs.filesystem.inodes import Inode, InodeTable


class Caching:
    """Bounds what the kernel is told, once `shared` names a directory in the root that is changed from elsewhere too.

    Of what lies in it the kernel keeps nothing: neither names, missing names and attributes, nor pages of a file that
    is closed. The name of the directory itself stays known, since only the mount changes it.
    """

    def __init__(self, inodes: InodeTable, shared: bytes | None) -> None:
        self._inodes = inodes
        self._shared = shared

    def bound(self, entry: pyfuse3.EntryAttributes, inode: Inode) -> pyfuse3.EntryAttributes:
        """Return the attributes of an inode, to be believed for no longer than they may."""
        if self._shared is None or inode is self._inodes.root:
            return entry
        if self._is_shared(inode):
            entry.attr_timeout = 0
        elif self._is_inside(inode):
            entry.attr_timeout = entry.entry_timeout = 0
        return entry

    def bound_missing(self, entry: pyfuse3.EntryAttributes, directory: Inode) -> pyfuse3.EntryAttributes:
        """Return the answer that there is no such name in a directory, to be believed for no longer than it may."""
        if not self.keeps_names(directory):
            entry.entry_timeout = 0
        return entry

    def keeps_pages(self, inode: Inode) -> bool:
        """Whether what was read of a file may be kept until it is opened again."""
        return self._shared is None or not self._is_inside(inode)

    def keeps_names(self, directory: Inode) -> bool:
        """Whether the names in a directory may be kept until it is opened again."""
        return self._shared is None or not (self._is_shared(directory) or self._is_inside(directory))

    def _is_shared(self, inode: Inode) -> bool:
        return inode.parent is self._inodes.root and inode.name == self._shared

    def _is_inside(self, inode: Inode) -> bool:
        return any(self._is_shared(ancestor) for ancestor in self._inodes.ancestry(inode) if ancestor is not inode)
