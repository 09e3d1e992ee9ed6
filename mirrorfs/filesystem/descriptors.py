"""Descriptors with several users: a number that a thread still works with must not be closed and given out again."""

import os
from collections.abc import Callable
from types import TracebackType


def descriptor_path(descriptor: int) -> bytes:
    """A path that leads to exactly what is open, also for O_PATH, symbolic links and unlinked files (proc(5))."""
    return b"/proc/self/fd/%d" % descriptor


class Descriptor:
    """An open descriptor that is closed when the last of its users lets it go. All of them are in the trio thread.

    A new one has no user yet: it belongs into a `with` statement, or into a table that calls `hold` and `let_go`.
    """

    __slots__ = ("_close", "_users", "number")

    def __init__(self, number: int, close: Callable[[int], None] = os.close) -> None:
        """`close` is what the end of a `with` statement does to the number if no user is left."""
        self.number = number
        self._close = close
        self._users = 0

    def hold(self) -> "Descriptor":
        """Adds a user."""
        self._users += 1
        return self

    def let_go(self) -> bool:
        """Takes a user away. If that was the last one, which the result says, it is for the caller to close it."""
        self._users -= 1
        return self._users == 0

    def release(self) -> None:
        """Takes a user away, and closes the descriptor if that was the last one."""
        if self.let_go():
            self._close(self.number)

    def __enter__(self) -> int:
        self._users += 1
        return self.number

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
