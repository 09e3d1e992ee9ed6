"""Open files: the only place where backing files are opened, created, read and written."""

import errno
import os
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pyfuse3

from mirrorfs.filesystem.descriptors import Descriptor, descriptor_path
from mirrorfs.filesystem.extended_attributes import lacked
from mirrorfs.filesystem.inodes import FIRST_FOREIGN_NUMBER, Inode
from mirrorfs.filesystem.mount_table import file_system_type_of
from mirrorfs.filesystem.shares import Shares
from mirrorfs.filesystem.system_calls import RWF_NOWAIT, ActingAs
from mirrorfs.filesystem.threads import OUT_OF_DESCRIPTORS, Threads

Result = TypeVar("Result")

# The kernel has done what these ask for: it computes the offset of appended data, creates exclusively only what
# it knows to be missing, and reads and writes past its own cache for O_DIRECT. On the backing descriptor they
# would do harm: pwrite ignores its offset with O_APPEND, and O_DIRECT wants buffers aligned.
_KERNEL_FLAGS = os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT
_BACKING_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW

# The types of file systems (proc(5)) that ask nobody when an inode in memory is opened for reading, so that it cannot
# fail; and that have nothing to report when it is closed: late errors are told by fsync alone.
_PLAIN_FILE_SYSTEMS = frozenset(("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "zfs", "tmpfs"))

_LARGEST_READ = 1 << 20
# Copying that much takes less time than waking the event loop.
_SHORT = 16 << 10
_WRITE_ACCESS = (os.O_WRONLY, os.O_RDWR)
_RELATIVE_ACCESS_TIME_SECONDS = 24 * 60 * 60


class FileHandle:
    """One open of one file, by the caller with these ids. Its number is that of its backing descriptor."""

    __slots__ = ("descriptor", "flags_to_open", "gid", "inode", "uid", "writable")

    def __init__(self, descriptor: Descriptor, inode: Inode, flags: int, context: pyfuse3.RequestContext) -> None:
        self.descriptor = descriptor.hold()
        self.inode = inode
        self.writable = flags & os.O_ACCMODE in _WRITE_ACCESS
        self.uid = context.uid
        self.gid = context.gid
        self.flags_to_open: int | None = None
        """With which the descriptor is to be opened before it is read from, if it is O_PATH still."""

    @property
    def number(self) -> int:
        return self.descriptor.number


class Files:
    """The table of open files.

    The kernel releases a handle only when all requests that were made with it are answered, so these use its number
    while they are in a thread. Who borrows the descriptor of a handle for something else has to hold it.
    """

    def __init__(self, threads: Threads, shares: Shares, root_descriptor: int) -> None:
        """Each handle is taken from `shares`; the backing file system is that of `root_descriptor`."""
        self._threads = threads
        self._shares = shares
        self._handles: dict[int, FileHandle] = {}
        self._of_inode: dict[Inode, list[FileHandle]] = {}
        mount_flags = os.fstatvfs(root_descriptor).f_flag
        self._is_plain = file_system_type_of(root_descriptor) in _PLAIN_FILE_SYSTEMS
        self._read_buffer = memoryview(bytearray(_LARGEST_READ))
        self._reads_without_waiting = True
        self._reading_changes_nothing = bool(mount_flags & (os.ST_NOATIME | os.ST_RDONLY))
        self._reading_changes_seldom = bool(mount_flags & os.ST_RELATIME)

    def __len__(self) -> int:
        return len(self._handles)

    def __getitem__(self, number: int) -> FileHandle:
        """The handle with this number. Raises OSError EBADF if it is not open."""
        try:
            return self._handles[number]
        except KeyError:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF)) from None

    def of_inode(self, inode: Inode) -> FileHandle | None:
        """Any open handle of the inode."""
        handles = self._of_inode.get(inode)
        return handles[0] if handles else None

    def writers(self, inode: Inode) -> int:
        """The number of handles with write access that are open on the inode."""
        return sum(handle.writable for handle in self._of_inode.get(inode, ()))

    async def open(self, inode: Inode, reference: int, flags: int, context: pyfuse3.RequestContext) -> FileHandle:
        """Opens what the descriptor `reference` stands for, for a caller whose access the kernel has checked.

        What cannot fail, and may never be needed, is done with the first read: the kernel has in memory what it has
        read before, and a listing of snapshots opens each manifest again and again.
        """
        # The open follows the link of proc(5), which O_NOFOLLOW would refuse.
        backing_flags = flags & ~_KERNEL_FLAGS & ~os.O_NOFOLLOW | os.O_CLOEXEC
        call = partial(_open, descriptor_path(reference), backing_flags, context.uid, context.gid)
        later = self._may_open_later(inode, flags)
        self._shares.take(context.uid)
        try:
            if later:
                number = self._threads.at_once(partial(os.dup, reference))
            else:
                number = await self._threads.run(inode, call)
        except BaseException:
            self._shares.give_back(context.uid)
            raise
        handle = self.adopt(number, inode, flags, context)
        handle.flags_to_open = backing_flags if later else None
        return handle

    async def create(
        self, parent: Inode, directory: int, name: bytes, mode: int, flags: int, context: pyfuse3.RequestContext
    ) -> tuple[int, os.stat_result, frozenset[bytes]]:
        """Makes and opens a file as its caller's. Returns the descriptor, to be given to `adopt`, and of the file its
        status and which attributes it lacks (see InodeTable).
        """
        exclusive = flags & os.O_EXCL
        backing_flags = flags & ~_KERNEL_FLAGS | _BACKING_FLAGS | os.O_CREAT | exclusive
        call = partial(_create, directory, name, backing_flags, mode, context.uid, context.gid)
        self._shares.take(context.uid)
        try:
            return await self._threads.run(parent, call)
        except BaseException:
            self._shares.give_back(context.uid)
            raise

    def adopt(self, number: int, inode: Inode, flags: int, context: pyfuse3.RequestContext) -> FileHandle:
        """The handle for a file that `create` has opened."""
        handle = FileHandle(Descriptor(number, self._close_soon), inode, flags, context)
        self._handles[number] = handle
        self._of_inode.setdefault(inode, []).append(handle)
        return handle

    async def read(self, number: int, offset: int, size: int) -> bytes | memoryview:
        """Reads as pread(2). The result is good until the next `await` only."""
        handle = self[number]
        read = partial(os.pread, number, size, offset)
        if handle.flags_to_open is not None:
            return await self._run_opened(handle, read, briefly=size <= _SHORT)
        if self._reads_without_waiting and size <= _LARGEST_READ and not self._sets_access_time(number):
            data = self._read_cached(number, offset, size)
            if data is not None:
                return data
        return await self._threads.run(handle.inode, read, briefly=False)

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Writes all of `data`, or as much as fits before an error; raises OSError if that is nothing."""
        # Always in a thread: even a write into the page cache waits when too much of it is dirty.
        handle = self[number]
        call = partial(_write_all, number, offset, data, handle.uid, handle.gid)
        return await self._threads.run(handle.inode, call, briefly=len(data) <= _SHORT)

    async def sync(self, number: int, data_only: bool) -> None:
        """fsync(2) or fdatasync(2)."""
        synchronize = os.fdatasync if data_only else os.fsync
        await self._run_opened(self[number], partial(synchronize, number), briefly=False)

    async def flush(self, number: int) -> None:
        """What close(2) of one of several descriptors of an open file does; it may report late write errors.

        Raises OSError ENOSYS where the backing file system reports none: the kernel has closed the file without us
        then, and asks no more. That is a fifth of what somebody waits for who reads a manifest.
        """
        if self._is_plain:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        handle = self[number]
        if handle.writable:
            await self._threads.run(handle.inode, partial(_flush, number))

    def remove(self, handle: FileHandle) -> None:
        """Takes the handle out of the table. To be followed by `close_handle`."""
        del self._handles[handle.number]
        handles = self._of_inode[handle.inode]
        handles.remove(handle)
        if not handles:
            del self._of_inode[handle.inode]

    async def close_handle(self, handle: FileHandle) -> None:
        """Closes what was removed. The last writer that goes may have to bring blocks in order, or write all."""
        try:
            await self._close_unless_held(handle)
        finally:
            self._shares.give_back(handle.uid)

    async def _close_unless_held(self, handle: FileHandle) -> None:
        if not handle.descriptor.let_go():
            return
        if handle.writable or os.fstat(handle.number).st_nlink == 0:
            await self._threads.run(handle.inode, partial(os.close, handle.number))
        else:
            os.close(handle.number)

    def close(self) -> None:
        """Closes what the kernel did not release."""
        for handle in list(self._handles.values()):
            self.remove(handle)
            if handle.descriptor.let_go():
                os.close(handle.number)

    def _is_on_plain(self, inode: Inode) -> bool:
        return self._is_plain and inode.number < FIRST_FOREIGN_NUMBER

    def _may_open_later(self, inode: Inode, flags: int) -> bool:
        # Beside another handle the reference may be a descriptor of that, which is no new one when it is duplicated.
        reads_only = flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY
        return reads_only and self._is_on_plain(inode) and inode not in self._of_inode

    async def _run_opened(self, handle: FileHandle, call: Callable[[], Result], *, briefly: bool) -> Result:
        """Runs a call for which the handle has to be open: in one go, since to hand over to a thread costs as much."""
        if handle.flags_to_open is not None:
            call = partial(_opened_and, call, handle.number, handle.flags_to_open)
        result = await self._threads.run(handle.inode, call, briefly=briefly)
        # Who came at the same time has opened it once more.
        handle.flags_to_open = None
        return result

    def _close_soon(self, number: int) -> None:
        self._threads.start(partial(os.close, number))

    def _sets_access_time(self, number: int) -> bool:
        """Whether a read would change the inode, which waits for the file system's journal whatever it is asked."""
        if self._reading_changes_nothing:
            return False
        if not self._reading_changes_seldom:
            return True
        # The rule of `relatime`, mount(8).
        status = os.fstat(number)
        return (
            status.st_atime_ns <= max(status.st_mtime_ns, status.st_ctime_ns)
            or time.time() - status.st_atime >= _RELATIVE_ACCESS_TIME_SECONDS
        )

    def _read_cached(self, number: int, offset: int, size: int) -> memoryview | None:
        # Most reads find their data in the page cache, and a thread costs more than copying it.
        buffer = self._read_buffer[:size]
        try:
            count = os.preadv(number, [buffer], offset, RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._reads_without_waiting = False
            return None
        if 0 < count < size and os.fstat(number).st_size > offset + count:
            return None
        return buffer[:count]


def truncate(target: int | bytes, size: int, uid: int, gid: int) -> None:
    """Sets the size of a file, given by descriptor or path, for this user. It may wait."""
    with ActingAs(uid, gid, writing=True):
        os.truncate(target, size)


def _open(path: bytes, flags: int, uid: int, gid: int) -> int:
    # O_TRUNC by others than root takes away set-user-id bits; without it there is nothing to act as.
    if flags & os.O_TRUNC:
        with ActingAs(uid, gid, writing=True):
            return os.open(path, flags)
    return os.open(path, flags)


def _open_in_place(number: int, flags: int) -> None:
    """Turns an O_PATH descriptor into one that is open, of the same file, with the same number."""
    opened = os.open(descriptor_path(number), flags)
    try:
        os.dup2(opened, number, inheritable=False)
    finally:
        os.close(opened)


def _opened_and(call: Callable[[], Result], number: int, flags: int) -> Result:
    _open_in_place(number, flags)
    return call()


def _create(
    directory: int, name: bytes, flags: int, mode: int, uid: int, gid: int
) -> tuple[int, os.stat_result, frozenset[bytes]]:
    with ActingAs(uid, gid):
        number = os.open(name, flags, mode, dir_fd=directory)
    # Asked now, where it costs next to nothing: else each question would be handed to a thread.
    return number, os.fstat(number), lacked(number)


def _write_all(number: int, offset: int, data: bytes, uid: int, gid: int) -> int:
    with ActingAs(uid, gid, writing=True):
        written = os.pwrite(number, data, offset)
        while written < len(data):
            try:
                written += os.pwrite(number, memoryview(data)[written:], offset + written)
            except OSError:
                # The kernel reports how much was written, and meets the error again with the next write.
                return written
        return written


def _flush(number: int) -> None:
    try:
        another = os.dup(number)
    except OSError as error:
        if error.errno not in OUT_OF_DESCRIPTORS:
            raise
        # It tells of late errors too, and needs none; only that it waits for the disk.
        os.fdatasync(number)
    else:
        os.close(another)
