"""How a command ends badly: one or two lines on standard error, exit code 1 (failure) or 2 (usage), no traceback."""

from __future__ import annotations

import click


class Failure(click.ClickException):
    """What was asked for could not be done; exit code 1."""

    exit_code = 1
