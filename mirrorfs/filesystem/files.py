"""Open files: the only place where backing files are opened, created, read and written."""

import errno
import os
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import pyfuse3
import trio

from mirrorfs.filesystem.inodes import Inode
from mirrorfs.filesystem.system_calls import RWF_NOWAIT, ActingAs
from mirrorfs.filesystem.tree import Tree, descriptor_path

# The kernel has done what these ask for: it computes the offset of appended data, creates exclusively only what
# it knows to be missing, and reads and writes past its own cache for O_DIRECT. On the backing descriptor they
# would do harm: pwrite ignores its offset with O_APPEND, and O_DIRECT wants buffers aligned.
_KERNEL_FLAGS = os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_NOCTTY | os.O_DIRECT
_BACKING_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW
Result = TypeVar("Result")

_LARGEST_READ = 1 << 20
_WRITE_ACCESS = (os.O_WRONLY, os.O_RDWR)


class FileHandle:
    """One open of one file, by the caller with these ids."""

    __slots__ = ("descriptor", "gid", "inode", "uid", "writable")

    def __init__(self, descriptor: int, inode: Inode, flags: int, context: pyfuse3.RequestContext) -> None:
        self.descriptor = descriptor
        self.inode = inode
        self.writable = flags & os.O_ACCMODE in _WRITE_ACCESS
        self.uid = context.uid
        self.gid = context.gid


class Files:
    """The table of open files. The number of a handle is that of its backing descriptor."""

    def __init__(self, tree: Tree, limiter: trio.CapacityLimiter) -> None:
        self._tree = tree
        self._limiter = limiter
        self._handles: dict[int, FileHandle] = {}
        self._of_inode: dict[Inode, list[FileHandle]] = {}
        self._read_buffer = memoryview(bytearray(_LARGEST_READ))
        self._reads_without_waiting = True

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

    def open(self, inode: Inode, flags: int, context: pyfuse3.RequestContext) -> FileHandle:
        """Opens an existing file, for a caller whose access the kernel has checked."""
        # The second open follows the link of proc(5), which O_NOFOLLOW would refuse.
        backing_flags = flags & ~_KERNEL_FLAGS & ~os.O_NOFOLLOW | os.O_CLOEXEC
        with self._tree.reference(inode) as reference:
            descriptor = self._open_as(context, descriptor_path(reference), backing_flags)
        return self._add(descriptor, inode, flags, context)

    def create(self, directory: int, name: bytes, mode: int, flags: int, context: pyfuse3.RequestContext) -> int:
        """Makes and opens a file as its caller's. Returns the descriptor, to be given to `adopt` or closed."""
        exclusive = flags & os.O_EXCL
        backing_flags = flags & ~_KERNEL_FLAGS | _BACKING_FLAGS | os.O_CREAT | exclusive
        with ActingAs(context.uid, context.gid):
            return os.open(name, backing_flags, mode, dir_fd=directory)

    def adopt(self, descriptor: int, inode: Inode, flags: int, context: pyfuse3.RequestContext) -> FileHandle:
        """The handle for a file that `create` has made."""
        return self._add(descriptor, inode, flags, context)

    async def read(self, number: int, offset: int, size: int) -> bytes | memoryview:
        """Reads as pread(2). The result is good until the next `await` only."""
        descriptor = self[number].descriptor
        if self._reads_without_waiting and size <= _LARGEST_READ:
            data = self._read_cached(descriptor, offset, size)
            if data is not None:
                return data
        return await self._in_thread(partial(os.pread, descriptor, size, offset))

    async def write(self, number: int, offset: int, data: bytes) -> int:
        """Writes all of `data`, or as much as fits before an error; raises OSError if that is nothing."""
        # Always in a thread: even a write into the page cache waits when too much of it is dirty.
        return await self._in_thread(partial(_write_all, self[number], offset, data))

    async def truncate(self, inode: Inode, number: int | None, size: int, uid: int, gid: int) -> None:
        """Sets the size, through the handle if there is one."""
        if number is not None:
            await self._in_thread(partial(_truncate, self[number].descriptor, size, uid, gid))
            return
        # An own descriptor: a borrowed one may be closed, and its number be another file's, while the thread works.
        reference = self._tree.open_reference(inode)
        try:
            await self._in_thread(partial(_truncate, descriptor_path(reference), size, uid, gid))
        finally:
            os.close(reference)

    async def sync(self, number: int, data_only: bool) -> None:
        """fsync(2) or fdatasync(2)."""
        synchronize = os.fdatasync if data_only else os.fsync
        await self._in_thread(partial(synchronize, self[number].descriptor))

    def flush(self, number: int) -> None:
        """What close(2) of one of several descriptors of an open file does; it may report late write errors."""
        os.close(os.dup(self[number].descriptor))

    def release(self, handle: FileHandle) -> None:
        """Closes the handle. That deletes nothing: the tree holds on to unlinked inodes until they are forgotten."""
        del self._handles[handle.descriptor]
        handles = self._of_inode[handle.inode]
        handles.remove(handle)
        if not handles:
            del self._of_inode[handle.inode]
        os.close(handle.descriptor)

    def close(self) -> None:
        """Closes what the kernel did not release."""
        for handle in list(self._handles.values()):
            self.release(handle)

    def _open_as(self, context: pyfuse3.RequestContext, path: bytes, flags: int) -> int:
        # O_TRUNC by others than root takes away set-user-id bits; without it there is nothing to act as.
        if flags & os.O_TRUNC:
            with ActingAs(context.uid, context.gid, writing=True):
                return os.open(path, flags)
        return os.open(path, flags)

    def _add(self, descriptor: int, inode: Inode, flags: int, context: pyfuse3.RequestContext) -> FileHandle:
        handle = FileHandle(descriptor, inode, flags, context)
        self._handles[descriptor] = handle
        self._of_inode.setdefault(inode, []).append(handle)
        return handle

    def _read_cached(self, descriptor: int, offset: int, size: int) -> memoryview | None:
        # Most reads find their data in the page cache, and a thread costs more than copying it.
        buffer = self._read_buffer[:size]
        try:
            count = os.preadv(descriptor, [buffer], offset, RWF_NOWAIT)
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            self._reads_without_waiting = False
            return None
        if 0 < count < size and os.fstat(descriptor).st_size > offset + count:
            return None
        return buffer[:count]

    async def _in_thread(self, call: Callable[[], Result]) -> Result:
        return await trio.to_thread.run_sync(call, limiter=self._limiter)


def _write_all(handle: FileHandle, offset: int, data: bytes) -> int:
    with ActingAs(handle.uid, handle.gid, writing=True):
        written = os.pwrite(handle.descriptor, data, offset)
        while written < len(data):
            try:
                written += os.pwrite(handle.descriptor, memoryview(data)[written:], offset + written)
            except OSError:
                # The kernel reports how much was written, and meets the error again with the next write.
                return written
        return written


def _truncate(target: int | bytes, size: int, uid: int, gid: int) -> None:
    with ActingAs(uid, gid, writing=True):
        os.truncate(target, size)
