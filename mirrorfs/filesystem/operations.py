"""The pass-through: every request of the kernel, carried out on the backing directory with its results and errors."""

import errno
import functools
import logging
import os
import stat
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import pyfuse3

from mirrorfs.filesystem.attribute_changes import set_attributes
from mirrorfs.filesystem.attributes import attributes, filesystem_statistics, no_entry
from mirrorfs.filesystem.caching import Caching
from mirrorfs.filesystem.callers import Caller
from mirrorfs.filesystem.descriptors import Descriptor, descriptor_path
from mirrorfs.filesystem.extended_attributes import has_access_control_lists, names_for, set_attribute
from mirrorfs.filesystem.files import FileHandle, Files
from mirrorfs.filesystem.inodes import ROOT_NUMBER, Inode
from mirrorfs.filesystem.listing import Directories, DirectoryHandle
from mirrorfs.filesystem.observer import Observer
from mirrorfs.filesystem.root_attributes import RootAttributes
from mirrorfs.filesystem.shares import owners_of, shares_of_descriptors, shares_of_names
from mirrorfs.filesystem.system_calls import RENAME_EXCHANGE, RENAME_NOREPLACE, renameat2
from mirrorfs.filesystem.threads import Threads
from mirrorfs.filesystem.tree import Departure, Tree, link_name, make_name

log = logging.getLogger(__name__)

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
            # Arguments may hold the data that is written.
            log.exception("%s%.300r failed unexpectedly", handler.__name__, args)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return answer


class PassThrough(pyfuse3.Operations):
    """Passes everything to the directory that is open as `root_descriptor`, which stays the caller's.

    The kernel checks access (mount option default_permissions), applies the umask, follows paths and keeps
    locks; this daemon runs as root and does what it is asked. It must be the only one that changes the tree.

    Nothing that may wait for the disk is done in the trio thread: one stuck request must not hold up the others. What
    the kernel has in memory is asked there (names through openat2 with RESOLVE_CACHED, what is open through fstat,
    cached data through RWF_NOWAIT); everything else goes to threads, which work with descriptors and never touch a
    table. The tables change in the trio thread, together: there is no `await` between the return of a system call that
    changed a name and the change of the table, nor between that and the observer's first step.

    Requests on one file whose order matters are ordered by the kernel: it holds the inode's lock during write and
    setattr, the directory's during create, unlink and rename, a reference to each inode of a request, and one to a
    file until the last request of its handle is answered. What may meet in spite of it is dealt with in `Tree`.
    """

    supports_dot_lookup = False

    def __init__(self, root_descriptor: int, observer: Observer | None = None, shared: bytes | None = None) -> None:
        """Raises the limit of the process's descriptors as far as that is allowed.

        `shared` names a directory in the root that others may change too, see `Caching`.
        """
        super().__init__()
        self.when_begun: Callable[[], None] = _nothing
        """Called when the kernel's first message has been read, before it is answered."""
        self._root_descriptor = root_descriptor
        self._observer = observer
        self._threads = Threads()
        self.owners = owners = partial(owners_of, root_descriptor)
        descriptors = shares_of_descriptors(owners)
        self._tree = Tree(root_descriptor, self._threads, descriptors.unlinked)
        self._caching = Caching(self._tree.inodes, shared)
        self._root_attributes = RootAttributes()
        self._files = Files(self._threads, descriptors.handles, root_descriptor)
        names, keeps = shares_of_names(owners), self._caching.keeps_names
        self._directories = Directories(self._tree, self._threads, descriptors.handles, names, keeps)
        # Without this the kernel would check by mode bits alone what the backing file system checks by lists.
        self.enable_acl = has_access_control_lists(descriptor_path(root_descriptor))

    def init(self) -> None:
        """What pyfuse3 calls at the beginning of the session."""
        self.when_begun()

    def close(self) -> None:
        """Closes all descriptors but the root's, after the mount has ended."""
        self._files.close()
        self._directories.close()
        self._tree.close()
        self._threads.close()

    def backing_path(self) -> bytes:
        """Where the backing directory is (or was, before it was mounted over) in the tree of all files."""
        return os.readlink(descriptor_path(self._root_descriptor))

    def is_waiting(self) -> bool:
        """Whether any request waits for a call in a thread."""
        return self._threads.are_busy

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
            status = await self._tree.status_of_name(parent, name)
        except FileNotFoundError:
            return self._caching.bound_missing(no_entry(), parent)
        return self._entry_of(self._tree.inodes.remember(parent, name, status), status)

    @_answered
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            await self._tree.forget(number, lookups)

    @_answered
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(parent_inode, name, partial(os.mknod, name, mode, rdev), ctx)

    @_answered
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(parent_inode, name, partial(os.mkdir, name, stat.S_IMODE(mode)), ctx)

    @_answered
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return await self._make(parent_inode, name, partial(os.symlink, target, name), ctx)

    @_answered
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        source = self._tree.inodes[inode]
        parent = self._tree.inodes[new_parent_inode]
        with await self._reference(source) as descriptor, await self._tree.directory(parent) as directory:
            status = await self._threads.run(parent, partial(link_name, descriptor, directory, new_name))
        return await self._made(parent, new_name, status)

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
        old = await self._rename(old_parent, name_old, new_parent, name_new, flags)
        old_path = self._tree.inodes.path(old_parent, name_old)
        new_path = self._tree.inodes.path(new_parent, name_new)
        if self._observer is None or old_path is None or new_path is None:
            return
        await self._observer.renamed(
            old_path,
            new_path,
            is_directory=stat.S_ISDIR(old.status.st_mode),
            writers=self._files.writers(old.inode) if old.inode is not None else 0,
            exchanged=flags == RENAME_EXCHANGE,
        )

    @_answered
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        record = self._tree.inodes[inode]
        with await self._tree.reference(record) as descriptor:
            return await self._threads.run(record, partial(os.readlink, b"", dir_fd=descriptor))

    # Attributes

    @_answered
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        record = self._tree.inodes[inode]
        handle = self._files.of_inode(record)
        status = await self._tree.status(record) if handle is None else os.fstat(handle.number)
        return self._attributes_of(record, status)

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
        opened = None if fh is None else self._files[fh].number
        # A change of the mode is one of the access control list too.
        with self._root_attributes.changing(inode == ROOT_NUMBER), await self._reference(record) as descriptor:
            call = partial(set_attributes, descriptor, attr, fields, opened, ctx.uid, ctx.gid)
            status = await self._threads.run(record, call, briefly=not fields.update_size)
        if fields.update_size and self._observer is not None and self._files.writers(record) == 0:
            for name in self._tree.inodes.paths(record):
                await self._observer.truncated(name)
        return self._attributes_of(record, status)

    @_answered
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        def get(path: bytes) -> bytes:
            return os.getxattr(path, name)

        if self._tree.inodes.lacks(inode, name):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        if inode == ROOT_NUMBER:
            return await self._root_attributes.get(name, partial(self._by_path, inode, get))
        return await self._by_path(inode, get)

    @_answered
    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._tree.inodes.note_given(inode, name)
        with self._root_attributes.changing(inode == ROOT_NUMBER):
            await self._by_path(inode, lambda path: set_attribute(path, name, value, _caller(ctx)))

    @_answered
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        return await self._by_path(inode, lambda path: names_for(path, _caller(ctx)))

    @_answered
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        with self._root_attributes.changing(inode == ROOT_NUMBER):
            await self._by_path(inode, lambda path: os.removexattr(path, name))

    @_answered
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        backing = await self._threads.run(self._root_descriptor, partial(os.fstatvfs, self._root_descriptor))
        return filesystem_statistics(backing)

    # Open files

    @_answered
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        record = self._tree.inodes[inode]
        with await self._reference(record) as reference:
            handle = await self._files.open(record, reference, flags, ctx)
        await self._opened(handle)
        return pyfuse3.FileInfo(fh=handle.number, keep_cache=self._caching.keeps_pages(record))

    @_answered
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        parent = self._tree.inodes[parent_inode]
        with await self._tree.directory(parent) as directory:
            descriptor, status, lacks = await self._files.create(parent, directory, name, mode, flags, ctx)
        inode = self._tree.appeared(parent, name, status, lacks)
        handle = self._files.adopt(descriptor, inode, flags, ctx)
        try:
            await self._opened(handle)
        except BaseException:
            self._tree.give_back(inode.number)
            raise
        return pyfuse3.FileInfo(fh=descriptor, keep_cache=self._caching.keeps_pages(inode)), self._entry_of(
            inode, status
        )

    @_answered
    async def read(self, fh: int, off: int, size: int) -> bytes:
        # pyfuse3 takes any buffer, and has answered before anything else runs.
        return cast(bytes, await self._files.read(fh, off, size))

    @_answered
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._files.write(fh, off, buf)

    @_answered
    async def flush(self, fh: int) -> None:
        await self._files.flush(fh)

    @_answered
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.sync(fh, datasync)

    @_answered
    async def release(self, fh: int) -> None:
        handle = self._files[fh]
        self._files.remove(handle)
        try:
            if self._observer is not None and handle.writable:
                await self._observer.writer_closed(
                    handle.inode.number,
                    self._tree.inodes.paths(handle.inode),
                    self._files.writers(handle.inode),
                )
        finally:
            await self._files.close_handle(handle)

    # Open directories

    @_answered
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        handle = await self._directories.open(self._tree.inodes[inode], ctx.uid)
        return handle.descriptor

    @_answered
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        handle = self._directories[fh]
        names = await self._directories.names(handle, start_id)
        statuses = self._directories.statuses(handle, names)
        for position in range(start_id, len(names)):
            name = names[position]
            if name in (b".", b".."):
                status = await self._status_of_dots(handle, name)
                # The kernel takes no reference to these two.
                accepted = pyfuse3.readdir_reply(token, name, attributes(status.st_ino, status), position + 1)
            else:
                found = await statuses.at(position)
                accepted = found is None or self._list(handle, name, found, position, token)
            if not accepted:
                break

    @_answered
    async def releasedir(self, fh: int) -> None:
        self._directories.release(fh)

    @_answered
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._directories.sync(fh, datasync)

    # Parts of the above

    def _entry_of(self, inode: Inode, status: os.stat_result) -> pyfuse3.EntryAttributes:
        entry = attributes(inode.number, status)
        entry.generation = self._tree.inodes.generation(inode)
        return self._caching.bound(entry, inode)

    async def _make(
        self, parent_inode: int, name: bytes, make: Callable[..., None], ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        parent = self._tree.inodes[parent_inode]
        with await self._tree.directory(parent) as directory:
            status = await self._threads.run(parent, partial(make_name, make, directory, name, ctx.uid, ctx.gid))
        return await self._made(parent, name, status)

    async def _made(self, parent: Inode, name: bytes, status: os.stat_result) -> pyfuse3.EntryAttributes:
        inode = self._tree.appeared(parent, name, status)
        path = self._tree.inodes.path(parent, name) if self._observer is not None else None
        if self._observer is not None and path is not None:
            try:
                await self._observer.created(path, status.st_mode)
            except BaseException:
                self._tree.give_back(inode.number)
                raise
        return self._entry_of(inode, status)

    async def _remove(self, parent: Inode, name: bytes, remove: Callable[..., None], *, is_directory: bool) -> None:
        with (
            await self._tree.directory(parent) as directory,
            await self._tree.departure(parent, directory, name) as departure,
        ):
            await self._threads.run(parent, partial(remove, name, dir_fd=directory))
            self._tree.departed(departure, parent, name)
        path = self._tree.inodes.path(parent, name)
        if self._observer is not None and path is not None:
            await self._observer.removed(path, is_directory)

    async def _rename(
        self, old_parent: Inode, old_name: bytes, new_parent: Inode, new_name: bytes, flags: int
    ) -> Departure:
        """Renames or exchanges; returns what had the old name."""
        with (
            await self._tree.directory(old_parent) as old_directory,
            await self._tree.directory(new_parent) as new_directory,
            await self._tree.departure(old_parent, old_directory, old_name) as old,
            await self._departure_if_there(new_parent, new_directory, new_name) as new,
        ):
            if flags == 0 and new is not None and os.path.samestat(old.status, new.status):
                # Two names of one file: by POSIX, nothing happens, and both stay.
                return old
            call = partial(renameat2, old_directory, old_name, new_directory, new_name, flags)
            await self._threads.run(old_parent, call)
            self._note_renamed(old, old_parent, old_name, new, new_parent, new_name, flags)
        return old

    def _note_renamed(
        self,
        old: Departure,
        old_parent: Inode,
        old_name: bytes,
        new: Departure | None,
        new_parent: Inode,
        new_name: bytes,
        flags: int,
    ) -> None:
        if flags != RENAME_EXCHANGE:
            if new is not None:
                self._tree.departed(new, new_parent, new_name)
            self._tree.renamed(old, old_parent, old_name, new_parent, new_name)
        elif new is not None and not os.path.samestat(old.status, new.status):
            self._tree.renamed(old, old_parent, old_name, new_parent, new_name)
            self._tree.renamed(new, new_parent, new_name, old_parent, old_name)

    async def _departure_if_there(
        self, parent: Inode, directory: int, name: bytes
    ) -> AbstractContextManager[Departure | None]:
        try:
            return await self._tree.departure(parent, directory, name)
        except FileNotFoundError:
            return nullcontext()

    def _attributes_of(self, inode: Inode, status: os.stat_result) -> pyfuse3.EntryAttributes:
        # The kernel knows the root by its own number; callers shall see the backing one.
        number = status.st_ino if inode is self._tree.inodes.root else inode.number
        return self._caching.bound(attributes(number, status), inode)

    async def _reference(self, inode: Inode) -> Descriptor:
        """A descriptor of the inode, whatever it is and if it still has a name, for calls that take a path to it."""
        handle = self._files.of_inode(inode)
        return handle.descriptor if handle is not None else await self._tree.reference(inode)

    async def _by_path(self, inode_number: int, call: Callable[[bytes], Result]) -> Result:
        inode = self._tree.inodes[inode_number]
        with await self._reference(inode) as descriptor:
            return await self._threads.run(inode, partial(call, descriptor_path(descriptor)))

    async def _opened(self, handle: FileHandle) -> None:
        """Tells of a new handle. If the observer will not have it, it is closed."""
        if self._observer is None or not handle.writable:
            return
        try:
            await self._observer.writer_opened(handle.inode.number)
        except BaseException:
            self._files.remove(handle)
            await self._files.close_handle(handle)
            raise

    def _list(
        self,
        handle: DirectoryHandle,
        name: bytes,
        status: os.stat_result,
        position: int,
        token: pyfuse3.ReaddirToken,
    ) -> bool:
        inode = self._tree.inodes.remember(handle.inode, name, status)
        accepted = pyfuse3.readdir_reply(token, name, self._entry_of(inode, status), position + 1)
        if not accepted:
            self._tree.give_back(inode.number)
        return accepted

    async def _status_of_dots(self, handle: DirectoryHandle, name: bytes) -> os.stat_result:
        # Never through the name "..": that of a directory in the root leads to the mount point, and if this is the
        # backing directory itself, into the mount: this would wait for its own answer.
        parent = handle.inode.parent
        if name == b".." and parent is not None:
            return await self._tree.status(parent)
        return os.fstat(handle.descriptor)


def _nothing() -> None:
    """Nothing is to be done then."""


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    return Caller(ctx.uid, ctx.gid, ctx.pid)
