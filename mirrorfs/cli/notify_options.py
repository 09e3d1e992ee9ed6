"""The options that say who is told when something is wrong with a mirror, and when."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click

from mirrorfs.cli.durations import Duration, shown_duration
from mirrorfs.cli.setting import TakesEffect, setting
from mirrorfs.datastore.quoting import quoted
from mirrorfs.supervision.settings import NotifySettings

_HOUR = 3600.0
_address = re.compile(r"[A-Za-z0-9_+.=][A-Za-z0-9_+.=-]{0,63}(@[A-Za-z0-9][A-Za-z0-9.-]{0,188})?")


class MailAddress(click.ParamType[str]):
    """A parameter that is one mail address, also one of this machine, as `root`."""

    name = "address"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Take it; what could be more than one address, or an option of sendmail's, is a usage error."""
        if _address.fullmatch(value) is None:
            self.fail(f"{quoted(value)} is not one mail address, as admin@example.com or root", param, ctx)
        return value


def notify_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the settings of the notifier, as one parameter `notify`."""

    @setting(
        "--notify-command",
        multiple=True,
        metavar="PROGRAM",
        values='a program by its absolute path; with arguments: ["/usr/local/bin/tell", "backup"]',
        takes_effect=TakesEffect.AT_ONCE,
        help="Run this when the mirror is broken, held, behind or well again: no shell, 1 minute at most, the event as "
        "JSON on standard input and in MIRRORFS_EVENT, MIRRORFS_WHY and so on. Give it again for each argument.",
    )
    @setting(
        "--notify-mail",
        type=MailAddress(),
        metavar="ADDRESS",
        takes_effect=TakesEffect.AT_ONCE,
        help="Send a mail to this address when it is so, by /usr/sbin/sendmail.",
    )
    @setting(
        "--notify-behind-after",
        type=Duration(60.0, 365 * 24 * _HOUR),
        default=shown_duration(24 * _HOUR),
        metavar="DURATION",
        takes_effect=TakesEffect.AT_ONCE,
        help="The mirror is told to be behind when a finished backup is not in the bucket for so long.",
    )
    @setting(
        "--notify-after",
        type=Duration(0.0, 24 * _HOUR),
        default=shown_duration(120.0),
        metavar="DURATION",
        takes_effect=TakesEffect.AT_ONCE,
        help="What is so must have been so for this long before it is told; what is over, too.",
    )
    @functools.wraps(command)
    def with_notify(**given: Any) -> None:  # noqa: ANN401
        names = ("notify_command", "notify_mail", "notify_behind_after", "notify_after")
        command(notify=notify_settings(given), **{name: value for name, value in given.items() if name not in names})

    return with_notify


def notify_settings(given: Mapping[str, Any]) -> NotifySettings:
    """Make the settings of values by the names of parameters. Raises UsageError."""
    command: Sequence[str] = given["notify_command"]
    if command and not command[0].startswith("/"):
        raise click.UsageError(
            f"notify.command must begin with the absolute path of a program, not with {quoted(command[0])}: no shell "
            'looks for it. With arguments it is a list: command = ["/usr/bin/logger", "-t", "mirrorfs"]'
        )
    if any("\0" in argument for argument in command):
        raise click.UsageError("notify.command has a zero byte in it, which no program can be given")
    return NotifySettings(tuple(command), given["notify_mail"], given["notify_behind_after"], given["notify_after"])
