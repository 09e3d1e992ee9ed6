"""`mirrorfs status`."""

from __future__ import annotations

from typing import Any, NoReturn

import click

from mirrorfs.cli import status_watch
from mirrorfs.cli.durations import Duration
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.status_text import describe
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.output import say, say_json
from mirrorfs.own_files import NotOwn
from mirrorfs.replication.questions import Answer
from mirrorfs.replication.verdict import Word
from mirrorfs.replication.waiting import needs_an_administrator
from mirrorfs.supervision import asking
from mirrorfs.supervision.registry import RunningMount, running_mounts

_NOTES = {
    Condition.SERVING: "",
    Condition.DEAD: " (dead: its process was killed; mount it again)",
    Condition.SILENT: " (does not answer: its process is stopped, or the disk of the datastore hangs)",
    Condition.ABSENT: " (unmounted, but something keeps it: 'mirrorfs umount' ends it)",
}


@click.command("status")
@click.argument("datastore", type=DATASTORE, required=False)
@click.option(
    "--json",
    "as_json",
    envvar="MIRRORFS_STATUS_JSON",
    is_flag=True,
    help="One JSON object (documented in docs/status.md).",
)
@click.option(
    "--watch",
    is_flag=True,
    help="Show it until Ctrl-C, with rates and the snapshots on their way. Not on a terminal: a line at each change.",
)
@click.option(
    "--check",
    is_flag=True,
    help="One line and an exit code for Nagios, Checkmk and their kind: 0 well, 1 to be looked at, 2 to be mended.",
)
@click.option(
    "--warning",
    type=Duration(),
    default="1h",
    metavar="DURATION",
    help="The mirror is behind when a finished backup is not in the bucket for so long.",
)
@click.option(
    "--critical",
    type=Duration(),
    default="1d",
    metavar="DURATION",
    help="With --check: exit with 2 when a finished backup is not in the bucket for so long.",
)
def command(datastore: str | None, as_json: bool, watch: bool, check: bool, warning: float, critical: float) -> None:
    """Tell how the mirror of DATASTORE is, first in one word: healthy, behind, held, waiting or broken.

    Then come why and what to do, the recovery point (the age of the oldest finished backup that is not in the bucket),
    the backlog and how long it takes at the present rate, and what is wrong.
    Without DATASTORE, the mounts that are up on this machine are listed.

    \b
    Example:
      mirrorfs status /mnt/datastore/store1 --watch
      mirrorfs status /mnt/datastore/store1 --json | jq .problems
      mirrorfs status /mnt/datastore/store1 --check --warning 2h --critical 12h

    Exit codes: 0 all is well or being worked on; 1 not mounted, something cannot be mirrored, or nothing is for
    a reason that you could end; 2 wrong usage. An outage is being worked on for its first 15 minutes. With --check:
    0 healthy; 1 behind, held or waiting; 2 broken, later than --critical, not mounted, or without an answer.
    With --watch: 0 at Ctrl-C.
    """
    if watch and (check or datastore is None):
        raise click.UsageError("--watch shows one DATASTORE to a person: give one, and no --check")
    require_root("ask a mirror for its status")
    if datastore is None:
        _list_mounts(as_json)
        return
    path = locate(datastore)
    if check:
        _check(path, warning, critical)
    answer = _read(path, warning)
    if watch:
        status_watch.watch(answer, lambda: asking.read_status(path, warning), as_json=as_json)
        return
    if as_json:
        say_json(answer, indent=1)
    else:
        say(*describe(answer))
    if _is_to_be_mended(answer):
        raise SystemExit(1)


def _is_to_be_mended(answer: Answer) -> bool:
    """Tell whether the exit code of `status` is 1."""
    wrong = (answer["problems"], answer["failing_processes"], needs_an_administrator(answer))
    return any(wrong) or answer["journal_broken_since"] is not None


def _check(path: str, warning: float, critical: float) -> NoReturn:
    """Print the line of a plugin, and end with its exit code; whatever goes wrong is one too."""
    try:
        answer = _read(path, warning)
    except (Failure, NotOwn) as error:
        say(f"MIRRORFS CRITICAL - {error}")
        raise SystemExit(2) from None
    age = answer["recovery_point"]["age_seconds"]
    code = 2 if age > critical else Word(answer["word"]).exit_code
    backlog = answer.get("backlog", {}).get("bytes_at_least", 0)
    say(
        f"MIRRORFS {('OK', 'WARNING', 'CRITICAL')[code]} - {answer['word']}: {answer['why']} "
        f"| recovery_point={age:.0f}s;{warning:.0f};{critical:.0f};0 backlog={backlog}B;;;0"
    )
    raise SystemExit(code)


def _list_mounts(as_json: bool) -> None:
    mounts = running_mounts()
    if as_json:
        say_json([_mount_answer(mount) for mount in mounts], indent=1)
        return
    if not mounts:
        say("no mirrorfs is mounted")
    for mount in mounts:
        note = _NOTES[condition_of(mount.mountpoint)]
        say(f"{mount.datastore} on {mount.mountpoint}, process {mount.pid}{note}")


def _mount_answer(mount: RunningMount) -> dict[str, Any]:
    condition = condition_of(mount.mountpoint)
    return {
        "datastore": mount.datastore,
        "mountpoint": mount.mountpoint,
        "state_directory": mount.state_directory,
        "pid": mount.pid,
        "dead": condition is Condition.DEAD,
        "condition": condition.value,
    }


def _read(path: str, warning: float) -> Answer:
    try:
        return asking.read_status(path, warning)
    except asking.NoAnswer as error:
        raise Failure(str(error)) from None
