"""`mirrorfs notify`: trying whether somebody is told when something is wrong."""

from __future__ import annotations

import click
import trio

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mirror_of import understood
from mirrorfs.cli.notify_options import notify_settings
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.notification.delivery import NotDelivered, ways
from mirrorfs.notification.event import trial_event
from mirrorfs.output import begin_log, say


@click.group("notify")
def command() -> None:
    """Try who is told when something is wrong with a mirror: notify.command and notify.mail in its settings file.

    \b
    Example:
      mirrorfs notify test store1
    """


@command.command("test")
@click.argument("datastore", type=DATASTORE)
def test(datastore: str) -> None:
    """Send an event "test" now, by each way that the settings file of DATASTORE names, or its mount was told.

    What the program prints is shown. It is tried once: the mount tries until it has worked, hourly at last.

    It runs with the rights of this shell. As a service the mount has fewer: NoNewPrivileges= and the other limits of
    its unit hold for the program too, so a setuid or setgid mailer may work here and not there. See docs/operating.md.

    \b
    Example:
      mirrorfs notify test store1

    Exit codes: 0 each way has worked, 1 one has not, or none is set; 2 wrong usage.
    """
    require_root("run what a mount would run")
    path = real_path(datastore)
    found = ways(notify_settings(understood(path).params))
    if not found:
        raise Failure(
            f"nobody is told: set 'mail' or 'command' in the table [notify] of the settings file of {path}, as "
            "docs/settings.md says, then 'mirrorfs reload'"
        )
    begin_log("notify")
    failed = []
    for way in found:
        try:
            trio.run(way.tell, trial_event(path))
        except NotDelivered as error:
            failed.append(f"notify.{way.name}: {error}")
        else:
            told = f", to {way.address}" if way.address is not None else ""
            say(f"notify.{way.name} has told it{told}: {way.arguments[0]} ended well")
    if failed:
        raise Failure(*failed)
