"""The pass-through: every request of the kernel, carried out on the backing directory with its results and errors."""

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3
import trio

from mirrorfs.filesystem.attributes import attributes, no_entry
from mirrorfs.filesystem.files import FileHandle, Files
from mirrorfs.filesystem.inodes import Inode
from mirrorfs.filesystem.listing import Directories, DirectoryHandle
from mirrorfs.filesystem.observer import Observer
from mirrorfs.filesystem.system_calls import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ActingAs,
    renameat2,
    set_times,
)
from mirrorfs.filesystem.tree import Departure, Reference, Tree, descriptor_path

log = logging.getLogger(__name__)

_THREADS = 16
# Deleting a file takes time by its size; from here on it is worth a thread.
_LARGE_FILE_BLOCKS = (64 << 20) // 512
_ACCESS_CONTROL_LIST = "system.posix_acl_access"

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Handler = Callable[Concatenate["PassThrough", Arguments], Coroutine[Any, Any, Result]]


def _answered(handler: Handler[Arguments, Result]) -> Handler[Arguments, Result]:
    """Turns what a handler raises into the answer to the kernel, and lets nothing else escape into pyfuse3.

    An exception that is not an OSError is a defect: it is logged, the system call gets EIO, the mount goes on.
    """

    @functools.wraps(handler)
    async def answer(self: "PassThrough", /, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        try:
            return await handler(self, *args, **kwargs)
        except OSError as error:
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except pyfuse3.FUSEError:
            raise
        except Exception:
            log.exception("%s%r failed unexpectedly", handler.__name__, args)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return answer


class PassThrough(pyfuse3.Operations):
    """Passes everything to the directory that is open as `root_descriptor`, which stays the caller's.

    The kernel checks access (mount option default_permissions), applies the umask, follows paths and keeps
    locks; this daemon runs as root and does what it is asked. It must be the only one that changes the tree.

    Metadata calls are made in the trio thread itself, one after the other. A thread for each would take longer
    than the call (garbage collection asks for millions, with all inodes in memory), and this way the table of
    names changes together with the backing directory, without locks. What moves data, synchronizes, deletes
    much or lists much goes to threads: there only descriptors are used, never names. Requests on one file whose
    order matters are ordered by the kernel: it holds the inode's lock during write and truncate, the directory's
    during create, unlink and rename, and a file reference until the last request of a handle is answered.
    """

    supports_dot_lookup = False

    def __init__(self, root_descriptor: int, observer: Observer | None = None) -> None:
        super().__init__()
        self._root_descriptor = root_descriptor
        self._observer = observer
        self._limiter = trio.CapacityLimiter(_THREADS)
        self._tree = Tree(root_descriptor)
        self._files = Files(self._tree, self._limiter)
        self._directories = Directories(self._tree, self._limiter)
        # Without this the kernel would check by mode bits alone what the backing file system checks by lists.
        self.enable_acl = _has_access_control_lists(root_descriptor)

    def close(self) -> None:
        """Closes all descriptors but the root's, after the mount has ended."""
        self._files.close()
        self._directories.close()
        self._tree.close()

    def backing_path(self) -> bytes:
        """Where the backing directory is (or was, before it was mounted over) in the tree of all files."""
        return os.readlink(descriptor_path(self._root_descriptor))

    def statistics(self) -> dict[str, int]:
        """How much is held now: known inodes, open files and directories, further descriptors."""
        return {
            "inodes": len(self._tree.inodes),
            "files": len(self._files),
            "directories": len(self._directories),
            "descriptors": self._tree.held_descriptors,
        }

    # Names

    @_answered
    async def lookup(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        parent = self._tree.inodes[parent_inode]
        try:
            return self._entry(parent, name)
        except FileNotFoundError:
            return no_entry()

    @_answered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            for descriptor in self._tree.forget(number, lookups):
                await self._delete(descriptor)

    @_answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._tree.inodes[parent_inode]
        directory = self._tree.directory(parent)
        with ActingAs(ctx.uid, ctx.gid):
            os.mknod(name, mode, rdev, dir_fd=directory)
        return await self._created(parent, name)

    @_answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._tree.inodes[parent_inode]
        directory = self._tree.directory(parent)
        with ActingAs(ctx.uid, ctx.gid):
            os.mkdir(name, stat.S_IMODE(mode), dir_fd=directory)
        return await self._created(parent, name)

    @_answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._tree.inodes[parent_inode]
        directory = self._tree.directory(parent)
        with ActingAs(ctx.uid, ctx.gid):
            os.symlink(target, name, dir_fd=directory)
        return await self._created(parent, name)

    @_answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        source = self._tree.inodes[inode]
        parent = self._tree.inodes[new_parent_inode]
        directory = self._tree.directory(parent)
        for source_parent, source_name in self._tree.inodes.names(source):
            source_directory = self._tree.directory(source_parent)
            os.link(
                source_name,
                new_name,
                src_dir_fd=source_directory,
                dst_dir_fd=directory,
                follow_symlinks=False,
            )
            return await self._created(parent, new_name)
        raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    @_answered
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._remove(self._tree.inodes[parent_inode], name, os.unlink, is_directory=False)

    @_answered
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._remove(self._tree.inodes[parent_inode], name, os.rmdir, is_directory=True)

    @_answered
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        old_parent = self._tree.inodes[parent_inode_old]
        new_parent = self._tree.inodes[parent_inode_new]
        old_path = self._tree.inodes.path(old_parent, name_old)
        if flags == RENAME_EXCHANGE:
            status = self._exchange(old_parent, name_old, new_parent, name_new)
        else:
            status = self._replace(old_parent, name_old, new_parent, name_new, flags)
        new_path = self._tree.inodes.path(new_parent, name_new)
        if self._observer is None or old_path is None or new_path is None:
            return
        inode = self._tree.inodes.find(status)
        await self._observer.renamed(
            old_path,
            new_path,
            is_directory=stat.S_ISDIR(status.st_mode),
            writers=self._files.writers(inode) if inode is not None else 0,
            exchanged=flags == RENAME_EXCHANGE,
        )

    @_answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        with self._tree.reference(self._tree.inodes[inode]) as descriptor:
            return os.readlink(b"", dir_fd=descriptor)

    # Attributes

    @_answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._attributes(self._tree.inodes[inode])

    @_answered
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        record = self._tree.inodes[inode]
        changes_times = fields.update_atime or fields.update_mtime
        # No field at all is what chown(path, -1, -1) looks like: it sets ctime, and takes set-user-id away.
        changes_owner = (
            fields.update_uid or fields.update_gid or not (fields.update_mode or fields.update_size or changes_times)
        )
        if changes_owner or fields.update_mode:
            with self._reference(record) as descriptor:
                path = descriptor_path(descriptor)
                if changes_owner:
                    _set_owner(path, attr, fields)
                if fields.update_mode:
                    os.chmod(path, stat.S_IMODE(attr.st_mode))
        if fields.update_size:
            await self._files.truncate(record, fh, attr.st_size, ctx.uid, ctx.gid)
        if changes_times:
            with self._reference(record) as descriptor:
                _set_times(descriptor_path(descriptor), attr, fields)
        if fields.update_size and self._observer is not None and self._files.writers(record) == 0:
            for name in self._tree.inodes.paths(record):
                await self._observer.truncated(name)
        return self._attributes(record)

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        with self._reference(self._tree.inodes[inode]) as descriptor:
            return os.getxattr(descriptor_path(descriptor), name)

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self._reference(self._tree.inodes[inode]) as descriptor:
            os.setxattr(descriptor_path(descriptor), name, value)

    @_answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        with self._reference(self._tree.inodes[inode]) as descriptor:
            return [os.fsencode(name) for name in os.listxattr(descriptor_path(descriptor))]

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self._reference(self._tree.inodes[inode]) as descriptor:
            os.removexattr(descriptor_path(descriptor), name)

    @_answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        backing = os.fstatvfs(self._root_descriptor)
        result = pyfuse3.StatvfsData()
        result.f_bsize = backing.f_bsize
        result.f_frsize = backing.f_frsize
        result.f_blocks = backing.f_blocks
        result.f_bfree = backing.f_bfree
        result.f_bavail = backing.f_bavail
        result.f_files = backing.f_files
        result.f_ffree = backing.f_ffree
        result.f_favail = backing.f_favail
        result.f_namemax = backing.f_namemax
        return result

    # Open files

    @_answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        handle = self._files.open(self._tree.inodes[inode], flags, ctx)
        try:
            await self._opened(handle)
        except BaseException:
            self._files.release(handle)
            raise
        return pyfuse3.FileInfo(fh=handle.descriptor, keep_cache=True)

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self._tree.inodes[parent_inode]
        descriptor = self._files.create(self._tree.directory(parent), name, mode, flags, ctx)
        status = os.fstat(descriptor)
        inode = self._tree.inodes.remember(parent, name, status)
        handle = self._files.adopt(descriptor, inode, flags, ctx)
        try:
            await self._opened(handle)
        except BaseException:
            self._files.release(handle)
            self._tree.forget(inode.number, 1)
            raise
        return pyfuse3.FileInfo(fh=descriptor, keep_cache=True), self._entry_of(inode, status)

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, and has answered before anything else runs.
        return cast(bytes, await self._files.read(fh, off, size))

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(fh, off, buf)

    @_answered
    async def flush(self, fh: int) -> None:
        self._files.flush(fh)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.sync(fh, datasync)

    @_answered
    async def release(self, fh: int) -> None:
        handle = self._files[fh]
        self._files.release(handle)
        if self._observer is None or not handle.writable:
            return
        await self._observer.writer_closed(
            handle.inode.number,
            self._tree.inodes.paths(handle.inode),
            self._files.writers(handle.inode),
        )

    # Open directories

    @_answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        return self._directories.open(self._tree.inodes[inode]).descriptor

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._directories[fh]
        names = await self._directories.names(handle, start_id)
        for position in range(start_id, len(names)):
            if not self._list(handle, names[position], position, token):
                break

    @_answered
    async def releasedir(self, fh: int) -> None:
        self._directories.release(fh)

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._directories.sync(fh, datasync)

    # Parts of the above

    def _entry(self, parent: Inode, name: bytes) -> pyfuse3.EntryAttributes:
        status = os.stat(name, dir_fd=self._tree.directory(parent), follow_symlinks=False)
        return self._entry_of(self._tree.inodes.remember(parent, name, status), status)

    def _entry_of(self, inode: Inode, status: os.stat_result) -> pyfuse3.EntryAttributes:
        entry = attributes(inode.number, status)
        entry.generation = self._tree.inodes.generation(inode)
        return entry

    async def _created(self, parent: Inode, name: bytes) -> pyfuse3.EntryAttributes:
        entry = self._entry(parent, name)
        path = self._tree.inodes.path(parent, name) if self._observer is not None else None
        if self._observer is None or path is None:
            return entry
        try:
            await self._observer.created(path, entry.st_mode)
        except BaseException:
            self._tree.forget(entry.st_ino, 1)
            raise
        return entry

    async def _remove(self, parent: Inode, name: bytes, remove: Callable[..., None], *, is_directory: bool) -> None:
        departure = self._tree.departing(parent, name)
        try:
            remove(name, dir_fd=self._tree.directory(parent))
        except OSError:
            self._tree.stays(departure)
            raise
        self._tree.departed(departure, parent, name)
        path = self._tree.inodes.path(parent, name)
        if self._observer is not None and path is not None:
            await self._observer.removed(path, is_directory)

    def _replace(
        self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> os.stat_result:
        status = self._status_of_name(old_parent, old_name)
        replaced = self._departing_if_there(new_parent, new_name)
        if replaced is not None and os.path.samestat(status, replaced.status) and flags == 0:
            # Two names of one file: by POSIX, nothing happens, and both stay.
            self._tree.stays(replaced)
            return status
        try:
            self._rename(old_parent, old_name, new_parent, new_name, flags)
        except OSError:
            if replaced is not None:
                self._tree.stays(replaced)
            raise
        if replaced is not None:
            self._tree.departed(replaced, new_parent, new_name)
        inode = self._tree.inodes.find(status)
        if inode is not None:
            self._tree.renamed(inode, old_parent, old_name, new_parent, new_name)
        return status

    def _exchange(self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes) -> os.stat_result:
        status = self._status_of_name(old_parent, old_name)
        other_status = self._status_of_name(new_parent, new_name)
        self._rename(old_parent, old_name, new_parent, new_name, RENAME_EXCHANGE)
        inode = self._tree.inodes.find(status)
        other = self._tree.inodes.find(other_status)
        if inode is other:
            return status
        if inode is not None:
            self._tree.renamed(inode, old_parent, old_name, new_parent, new_name)
        if other is not None:
            self._tree.renamed(other, new_parent, new_name, old_parent, old_name)
        return status

    def _rename(self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes, flags: int) -> None:
        old_directory = self._tree.directory(old_parent)
        new_directory = self._tree.directory(new_parent)
        renameat2(old_directory, old_name, new_directory, new_name, flags)

    def _departing_if_there(self, parent: Inode, name: bytes) -> Departure | None:
        try:
            return self._tree.departing(parent, name)
        except FileNotFoundError:
            return None

    def _status_of_name(self, parent: Inode, name: bytes) -> os.stat_result:
        return os.stat(name, dir_fd=self._tree.directory(parent), follow_symlinks=False)

    def _attributes(self, inode: Inode) -> pyfuse3.EntryAttributes:
        handle = self._files.of_inode(inode)
        status = self._tree.status(inode) if handle is None else os.fstat(handle.descriptor)
        # The kernel knows the root by its own number; callers shall see the backing one.
        number = status.st_ino if inode is self._tree.inodes.root else inode.number
        return attributes(number, status)

    def _reference(self, inode: Inode) -> Reference:
        """A descriptor of the inode, whatever it is and if it still has a name, for calls that take a path to it."""
        handle = self._files.of_inode(inode)
        if handle is not None:
            return Reference(handle.descriptor, owned=False)
        return self._tree.reference(inode)

    async def _opened(self, handle: FileHandle) -> None:
        if self._observer is not None and handle.writable:
            await self._observer.writer_opened(handle.inode.number)

    def _list(self, handle: DirectoryHandle, name: bytes, position: int, token: pyfuse3.ReaddirToken) -> bool:
        if name in (b".", b".."):
            status = self._status_of_dots(handle, name)
            # The kernel takes no reference to these two.
            return pyfuse3.readdir_reply(token, name, attributes(status.st_ino, status), position + 1)
        try:
            status = os.stat(name, dir_fd=handle.descriptor, follow_symlinks=False)
        except FileNotFoundError:
            return True
        inode = self._tree.inodes.remember(handle.inode, name, status)
        accepted = pyfuse3.readdir_reply(token, name, self._entry_of(inode, status), position + 1)
        if not accepted:
            self._tree.forget(inode.number, 1)
        return accepted

    def _status_of_dots(self, handle: DirectoryHandle, name: bytes) -> os.stat_result:
        # Never through the name "..": that of a directory in the root leads to the mount point, and if this is the
        # backing directory itself, into the mount: this thread would wait for its own answer.
        parent = handle.inode.parent
        if name == b".." and parent is not None:
            return self._tree.status(parent)
        return os.fstat(handle.descriptor)

    async def _delete(self, descriptor: int) -> None:
        if os.fstat(descriptor).st_blocks < _LARGE_FILE_BLOCKS:
            os.close(descriptor)
        else:
            await trio.to_thread.run_sync(os.close, descriptor, limiter=self._limiter)


def _set_owner(path: bytes, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
    os.chown(path, attr.st_uid if fields.update_uid else -1, attr.st_gid if fields.update_gid else -1)


def _set_times(path: bytes, attr: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> None:
    set_times(
        path,
        attr.st_atime_ns if fields.update_atime else None,
        attr.st_mtime_ns if fields.update_mtime else None,
    )


def _has_access_control_lists(descriptor: int) -> bool:
    try:
        os.getxattr(descriptor_path(descriptor), _ACCESS_CONTROL_LIST)
    except OSError as error:
        return error.errno == errno.ENODATA
    return True
