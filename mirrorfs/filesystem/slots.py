"""How many requests each user may have under way: only so many are served at a time, and who comes then waits."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pyfuse3

from mirrorfs.filesystem.shares import Shares

Handler = Callable[..., Awaitable[Any]]

MOST_REQUESTS = 512
"""Requests that are served at a time. One costs little while it waits; who comes when all are stuck waits with them."""

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
# Of nobody, and nobody waits for it.
_FORGETTING = ("forget",)


@dataclass(slots=True)
class Traffic:
    """The requests of a mount, as its event loop sees them."""

    under_way: int = 0
    """How many are being served; as long as they are `MOST_REQUESTS`, no other one is even read."""
    done: int = 0
    """How many have been served."""

    @property
    def is_full(self) -> bool:
        """Whether whoever asks for something now has to wait for others."""
        return self.under_way >= MOST_REQUESTS


class Slots:
    """Takes a slot from `shares` for each request while it is under way, in the name of the user whose it is.

    Who has his share gets EAGAIN: if he waited instead, he would have the slot in which he waits.
    """

    def __init__(self, shares: Shares, traffic: Traffic) -> None:
        self._shares = shares
        self._traffic = traffic
        self._users: dict[int, int] = {}

    def bound(self, operations: pyfuse3.Operations) -> None:
        """Has these operations, from now on, carry out no more for a user than that."""
        for names, bounded in (
            (_BY_CALLER, self._by_caller),
            (_OPENING, self._opening),
            (_BY_HANDLE, self._by_handle),
            (_RELEASING, self._releasing),
            ((*_BY_CALLER, *_BY_HANDLE, *_RELEASING, *_FORGETTING), self._counted),
        ):
            for name in names:
                setattr(operations, name, bounded(getattr(operations, name)))

    def _counted(self, handler: Handler) -> Handler:
        async def answer(*arguments: Any) -> Any:  # noqa: ANN401
            self._traffic.under_way += 1
            try:
                return await handler(*arguments)
            finally:
                self._traffic.under_way -= 1
                self._traffic.done += 1

        return answer

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
