"""How many requests each user may have under way: only so many are served at a time, and who comes then waits."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from typing import Any

import pyfuse3

from mirrorfs.filesystem.shares import Shares

Handler = Callable[..., Awaitable[Any]]

_OPENING = ("open", "create", "opendir")
_BY_CALLER = (
    *_OPENING,
    "lookup",
    "getattr",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "symlink",
    "link",
    "unlink",
    "rmdir",
    "rename",
    "getxattr",
    "setxattr",
    "listxattr",
    "removexattr",
    "statfs",
)
# Of whoever has opened the file or directory: the kernel does not say who asks.
_BY_HANDLE = ("read", "write", "flush", "fsync", "readdir", "fsyncdir")
# What must not fail is not bounded: a handle is released once, and how many there are is bounded.
_RELEASING = ("release", "releasedir")


class Slots:
    """Takes a slot from `shares` for each request while it is under way, in the name of the user whose it is.

    Who has his share gets EAGAIN: if he waited instead, he would have the slot in which he waits.
    """

    def __init__(self, shares: Shares) -> None:
        self._shares = shares
        self._users: dict[int, int] = {}

    def bound(self, operations: pyfuse3.Operations) -> None:
        """Has these operations, from now on, carry out no more for a user than that."""
        for names, bounded in (
            (_BY_CALLER, self._by_caller),
            (_OPENING, self._opening),
            (_BY_HANDLE, self._by_handle),
            (_RELEASING, self._releasing),
        ):
            for name in names:
                setattr(operations, name, bounded(getattr(operations, name)))

    def _by_caller(self, handler: Handler) -> Handler:
        async def answer(*arguments: Any) -> Any:  # noqa: ANN401 - as pyfuse3 gives and takes them
            return await self._carry_out(arguments[-1].uid, handler, arguments)

        return answer

    def _by_handle(self, handler: Handler) -> Handler:
        async def answer(*arguments: Any) -> Any:  # noqa: ANN401
            return await self._carry_out(self._users.get(arguments[0], 0), handler, arguments)

        return answer

    def _opening(self, handler: Handler) -> Handler:
        async def answer(*arguments: Any) -> Any:  # noqa: ANN401
            opened = await handler(*arguments)
            info = opened[0] if isinstance(opened, tuple) else opened
            self._users[info.fh if isinstance(info, pyfuse3.FileInfo) else info] = arguments[-1].uid
            return opened

        return answer

    def _releasing(self, handler: Handler) -> Handler:
        async def answer(*arguments: Any) -> Any:  # noqa: ANN401
            # Before: the number may be another handle's when this is done.
            self._users.pop(arguments[0], None)
            return await handler(*arguments)

        return answer

    async def _carry_out(self, uid: int, handler: Handler, arguments: tuple[Any, ...]) -> Any:  # noqa: ANN401
        try:
            taken = self._shares.take(uid)
        except OSError:
            raise pyfuse3.FUSEError(errno.EAGAIN) from None
        try:
            return await handler(*arguments)
        finally:
            self._shares.give_back(uid, taken)
