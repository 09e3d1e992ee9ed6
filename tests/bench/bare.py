"""The floor: the plainest pass-through that pyfuse3 can serve, for the requests of listing snapshots and rewriting
their manifests. python -m tests.bench.bare PATH mounts it over PATH and serves in the foreground.

It has no thread and no journal, checks nothing, finds paths by inode in a dict, and remembers listings. It waits for
requests as mirrorfs does, and syncs when something is renamed, since a manifest may not be answered before.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

from mirrorfs.filesystem.attributes import attributes, filesystem_statistics, no_entry
from mirrorfs.filesystem.reading import read_in_a_row
from tests.harness.system_calls import SystemCalls

REQUESTS = "user.requests"
"""An attribute of the root: how many requests of which kinds there were, as JSON."""

# Handles for reading are numbers of inodes above this: nothing is opened before it is read.
_READING = 1 << 32


class Bare(pyfuse3.Operations):
    """Serves what is at "." when it begins. What the kernel may remember is the same as with mirrorfs."""

    def __init__(self) -> None:
        super().__init__()
        self._root = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
        self._paths = {pyfuse3.ROOT_INODE: b"."}
        self._listings: dict[int, list[tuple[bytes, EntryAttributes]]] = {}
        self._requests = Counter[str]()
        for kind in [name for name in vars(Bare) if not name.startswith("_")]:
            setattr(self, kind, self._counted(kind, getattr(self, kind)))

    def _counted(self, kind: str, answer: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        def counted(*arguments: object) -> Awaitable[Any]:
            self._requests[kind] += 1
            return answer(*arguments)

        return counted

    def _below(self, parent: int, name: bytes) -> bytes:
        return self._paths[parent] + b"/" + name

    def _found(self, parent: int, name: bytes) -> EntryAttributes:
        path = self._below(parent, name)
        status = os.lstat(path)
        self._paths[status.st_ino] = path
        return attributes(status.st_ino, status)

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._found(parent_inode, name)
        except FileNotFoundError:
            return no_entry()

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return attributes(inode, os.lstat(self._paths[inode]))

    async def setattr(
        self, inode: int, attr: EntryAttributes, fields: pyfuse3.SetattrFields, fh: int | None, ctx: RequestContext
    ) -> EntryAttributes:
        if not fields.update_mode:
            raise FUSEError(errno.EOPNOTSUPP)
        os.chmod(self._paths[inode], stat.S_IMODE(attr.st_mode))
        return attributes(inode, os.lstat(self._paths[inode]))

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        if name.decode() != REQUESTS:
            raise FUSEError(errno.ENODATA)
        return json.dumps(self._requests).encode()

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        return filesystem_statistics(os.fstatvfs(self._root))

    async def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: RequestContext
    ) -> None:
        os.rename(self._below(old_parent, old_name), self._below(new_parent, new_name))
        self._found(new_parent, new_name)
        for changed in (old_parent, new_parent):
            self._listings.pop(changed, None)
        SystemCalls().sync_file_system("rename", self._root)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        descriptor = os.open(self._below(parent_inode, name), flags | os.O_CREAT, stat.S_IMODE(mode))
        os.fchown(descriptor, ctx.uid, ctx.gid)
        self._listings.pop(parent_inode, None)
        return FileInfo(fh=descriptor, keep_cache=True), self._found(parent_inode, name)

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_ACCMODE == os.O_RDONLY:
            return FileInfo(fh=_READING + inode, keep_cache=True)
        return FileInfo(fh=os.open(self._paths[inode], flags), keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        descriptor = os.open(self._paths[fh - _READING], os.O_RDONLY)
        data = os.pread(descriptor, size, off)
        os.close(descriptor)
        return data

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return os.pwrite(fh, buf, off)

    async def flush(self, fh: int) -> None:
        # As mirrorfs has it: the kernel does not ask again.
        raise FUSEError(errno.ENOSYS)

    async def release(self, fh: int) -> None:
        if fh < _READING:
            os.close(fh)

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        if fh not in self._listings:
            self._listings[fh] = [(name, self._found(fh, name)) for name in os.listdir(self._paths[fh])]
        entries = self._listings[fh]
        for position in range(start_id, len(entries)):
            if not pyfuse3.readdir_reply(token, *entries[position], position + 1):
                break

    async def releasedir(self, fh: int) -> None:
        pass


if __name__ == "__main__":
    os.umask(0)
    os.chdir(sys.argv[1])
    read_in_a_row(lambda: False)
    pyfuse3.init(Bare(), sys.argv[1], {"default_permissions", "allow_other", "fsname=bare"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)
