"""`mirrorfs notify`: trying whether somebody is told when something is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click
import trio

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mirror_of import understood
from mirrorfs.cli.notify_options import notify_settings
from mirrorfs.cli.settings_file import DATASTORE, settings_file
from mirrorfs.cli.state_directories import state_directory
from mirrorfs.database.directory import DirectoryLock
from mirrorfs.database.errors import DatabaseError, StateDirectoryBusy
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.notification import failure
from mirrorfs.notification.delivery import NotDelivered, ways
from mirrorfs.notification.event import trial_event
from mirrorfs.notification.told import ToldRecord
from mirrorfs.output import begin_log, say
from mirrorfs.service import units


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


@command.command("failed")
@click.argument("datastore", type=DATASTORE)
@click.argument("result")
@click.argument("how", nargs=-1)
def failed(datastore: str, result: str, how: tuple[str, ...]) -> None:
    """Tell that the mount of DATASTORE has failed. The unit mirrorfs@.service calls it when it has.

    RESULT and HOW are what systemd says ($SERVICE_RESULT, $EXIT_CODE, $EXIT_STATUS). It is an event "broken", told once
    by each way until the mount is up again and well. Nothing is told of the result "success".

    \b
    Example:
      mirrorfs notify failed store1 signal killed KILL

    Exit codes: 0 told, or nothing to be told; 1 one way could not; 2 wrong usage.
    """
    require_root("run what a mount would run")
    if result == failure.SUCCESS:
        return
    begin_log("notify")
    path = real_path(datastore)
    found = ways(notify_settings(understood(path).params))
    if not found:
        return
    file = settings_file(path)
    verdict = failure.failed(result, how, units.instance(units.MOUNT, "NAME" if file is None else file.name))
    with _notifier_of(path) as record:
        failures = trio.run(failure.tell, path, verdict, found, record)
    if failures:
        raise Failure(*failures)


@contextmanager
def _notifier_of(path: str) -> Iterator[ToldRecord | None]:
    """Keep the notifier of a new mount waiting, and give what was told; None if it works already."""
    directory = state_directory(path)
    try:
        directory.create()
        lock = DirectoryLock(directory, "notifier")
        lock.acquire()
    except StateDirectoryBusy:
        yield None
        return
    except DatabaseError as error:
        raise Failure(str(error)) from error
    try:
        yield ToldRecord(directory)
    finally:
        lock.release()
