"""`mirrorfs log`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.events import Changes, EventReader
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.options import PATH
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.state_directories import state_directory
from mirrorfs.cli.view_options import Moment
from mirrorfs.database.directory import StateDirectory
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.output import say, say_json
from mirrorfs.recovery.moment import TIME_FORMS


@click.command("log")
@click.argument("datastore", type=DATASTORE)
@click.option("--since", type=Moment(), metavar="TIME", help=f"Only what has happened since then: {TIME_FORMS}.")
@click.option("--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option("--state-dir", type=PATH, metavar="DIR", help="That of a mount which is gone, if it had one of its own.")
@click.option(
    "--json",
    "as_json",
    envvar="MIRRORFS_LOG_JSON",
    is_flag=True,
    help="One JSON object a line: time, event, level, message, and more.",
)
def command(datastore: str, since: float | None, follow: bool, state_dir: str | None, as_json: bool) -> None:
    """Show what has happened to the mirror of DATASTORE: what was published, removed and held, what was wrong.

    All of it is in the log as well, among much else. The last few megabytes are kept, also of mounts that have ended.

    \b
    Example:
      mirrorfs log store1 --since 1d
      mirrorfs log store1 --follow
      mirrorfs log store1 --json | jq 'select(.event == "problem")'

    Exit codes: 0 shown, 1 there is none, 2 wrong usage.
    """
    require_root("read what a mirror has noted")
    path = locate(datastore)
    directory = state_directory(path) if state_dir is None else StateDirectory(real_path(state_dir))
    reader = EventReader(directory.events_file)
    try:
        # Before it is read, so that nothing comes in between.
        changes = Changes(directory.path) if follow else None
        shown = _show(reader, since, as_json=as_json)
        if not shown and changes is None:
            raise Failure(f"nothing has been noted of {path} yet, in {directory.path}: has it been mounted?")
        while changes is not None:
            changes.wait()
            _show(reader, since, as_json=as_json)
    except FileNotFoundError:
        raise Failure(f"{path} has not been mounted yet: there is no {directory.path}") from None
    except KeyboardInterrupt:
        return


def _show(reader: EventReader, since: float | None, *, as_json: bool) -> bool:
    """Print what has come; tells whether there was anything, also if it is older than `since`."""
    found, before = False, reader.unreadable
    for event in reader.read():
        found = True
        if since is None or _time(event) >= since:
            _print(event, as_json=as_json)
    if reader.unreadable > before:
        say(f"({reader.unreadable - before} lines could not be read: the disk was full, or the power went)", err=True)
    return found


def _print(event: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        say_json(event)
    else:
        say(f"{event['time'][:19]}Z  {event['event']:18}  {event['message']}")


def _time(event: dict[str, Any]) -> float:
    try:
        return datetime.fromisoformat(event["time"]).timestamp()
    except (ValueError, OverflowError):
        # It is shown, whenever it was.
        return float("inf")
