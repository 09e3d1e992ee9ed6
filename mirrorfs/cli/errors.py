"""How a command ends badly: one or two lines on standard error, exit code 1 (failure) or 2 (usage), no traceback."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

import click

from mirrorfs.filesystem.condition import NotAsked
from mirrorfs.output import printable, say
from mirrorfs.own_files import NotOwn


class Failure(click.ClickException):
    """What was asked for could not be done; exit code 1. Each argument is a line, whatever is in it."""

    exit_code = 1

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines

    def format_message(self) -> str:
        """Return the lines as they are shown."""
        return "\n".join(printable(line) for line in self.lines)


class _ShownError(click.ClickException):
    """An error of click's, such as wrong usage, whose text quotes what somebody else may have named."""

    def __init__(self, error: click.ClickException) -> None:
        super().__init__(error.message)
        self._error = error
        # An instance's own, because the kinds of errors differ in it.
        self.exit_code: int = error.exit_code  # type: ignore[misc]

    def show(self, file: IO[Any] | None = None) -> None:
        """Print it to standard error as click does, with its message on one line."""
        shown = io.StringIO()
        self._error.show(shown)
        message = self._error.format_message()
        say(*shown.getvalue().replace(message, printable(message)).rstrip("\n").split("\n"), err=True)


@contextmanager
def shown_errors() -> Iterator[None]:
    """Have click's errors printed by mirrorfs, so that nothing in them steers the terminal; give others' a sentence."""
    try:
        yield
    except (Failure, _ShownError):
        raise
    except (NotOwn, NotAsked) as error:
        raise Failure(str(error)) from error
    except click.ClickException as error:
        raise _ShownError(error) from error


def require_root(what: str) -> None:
    """Raise Failure unless the caller is root; `what` ends the sentence "only root can ..."."""
    if os.geteuid() != 0:
        raise Failure(f"only root can {what}: run it with sudo, or as root")
