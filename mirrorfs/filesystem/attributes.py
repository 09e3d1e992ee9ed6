"""What the kernel is told about inodes and the file system, and for how long it may believe it."""

import os

import pyfuse3

KERNEL_CACHE_SECONDS = 3600
"""Validity of names, missing names and attributes in the kernel's caches.

Long, because everything that changes the tree comes through the mount, and the kernel itself drops what its own
requests make untrue: attributes after write, setattr, link, unlink, rename, xattr changes and reads (atime), of all
names of an inode at once, since it knows inodes by number."""


def attributes(number: int, status: os.stat_result) -> pyfuse3.EntryAttributes:
    """The attributes in `status`, reported under the inode number `number`."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = number
    entry.entry_timeout = KERNEL_CACHE_SECONDS
    entry.attr_timeout = KERNEL_CACHE_SECONDS
    entry.st_mode = status.st_mode
    entry.st_nlink = status.st_nlink
    entry.st_uid = status.st_uid
    entry.st_gid = status.st_gid
    entry.st_rdev = status.st_rdev
    entry.st_size = status.st_size
    entry.st_blksize = status.st_blksize
    entry.st_blocks = status.st_blocks
    entry.st_atime_ns = status.st_atime_ns
    entry.st_mtime_ns = status.st_mtime_ns
    entry.st_ctime_ns = status.st_ctime_ns
    return entry


def no_entry() -> pyfuse3.EntryAttributes:
    """The answer to a lookup of a name that does not exist, for the kernel to remember."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = 0
    entry.entry_timeout = KERNEL_CACHE_SECONDS
    return entry


def filesystem_statistics(backing: os.statvfs_result) -> pyfuse3.StatvfsData:
    """The answer to statfs: what the backing file system says of itself."""
    statistics = pyfuse3.StatvfsData()
    statistics.f_bsize = backing.f_bsize
    statistics.f_frsize = backing.f_frsize
    statistics.f_blocks = backing.f_blocks
    statistics.f_bfree = backing.f_bfree
    statistics.f_bavail = backing.f_bavail
    statistics.f_files = backing.f_files
    statistics.f_ffree = backing.f_ffree
    statistics.f_favail = backing.f_favail
    statistics.f_namemax = backing.f_namemax
    return statistics
