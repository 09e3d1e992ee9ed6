"""How a command ends badly: one or two lines on standard error, exit code 1 (failure) or 2 (usage), no traceback."""

from __future__ import annotations

import os

import click


class Failure(click.ClickException):
    """What was asked for could not be done; exit code 1."""

    exit_code = 1


def require_root(what: str) -> None:
    """Raise Failure unless the caller is root; `what` ends the sentence "only root can ..."."""
    if os.geteuid() != 0:
        raise Failure(f"only root can {what}: run it with sudo, or as root")
