"""`mirrorfs wait`."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Any

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate, require_serving
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.output import say
from mirrorfs.replication.questions import Answer, ask
from mirrorfs.supervision.registry import find, state_directory_of

# An uploader that died is started again within this time, or something is wrong for longer.
_RESTART_SECONDS = 90.0
_PAUSE_SECONDS = 0.5
_STATUS_SECONDS = 5.0
_NAMED_PROBLEMS = 10


@click.command("wait")
@click.argument("datastore", type=DATASTORE)
@click.option("--timeout", type=FiniteRange(min=0), metavar="SECONDS", help="Give up after so long.")
def command(datastore: str, timeout: float | None) -> None:
    """Return when everything that exists now in DATASTORE is published, confirmed by the store.

    \b
    Example:
      mirrorfs wait /mnt/datastore/store1 --timeout 3600 && echo safe

    Exit codes: 0 everything is published, 1 the timeout has passed, or something cannot be published as it
    is (it is named on standard error), 2 wrong usage.
    """
    require_root("ask a mirror how far it is")
    wait_until_published(locate(datastore), timeout)
    say(f"everything in {datastore} is published")


def wait_until_published(path: str, timeout: float | None) -> None:
    """Wait for the uploader of a mounted datastore. Raises Failure when something is not published."""
    require_serving(path)
    since = journal_broken_since(path)
    if since is not None:
        raise Failure(f"it is not known what is published: {describe_broken_journal(since)}")
    answer = ask_patiently(path, timeout)
    if "error" in answer:
        raise Failure(f"nothing is mirrored: {answer['error']}")
    problems = answer["problems"]
    if problems:
        raise Failure("some of it cannot be published:", *lines_of_problems(path, problems))


def journal_broken_since(path: str) -> float | None:
    """Tell since when (seconds since the epoch) the journal of a mount cannot be written; None if it can."""
    mount = find(path)
    return None if mount is None else mount.journal_broken_since


def describe_broken_journal(since: float) -> str:
    """Say what is wrong with the journal, and what follows."""
    time_of_failure = datetime.fromtimestamp(since, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        f"the journal cannot be written since {time_of_failure} (is the disk of the state directory full?); "
        "when it can, the whole datastore is reconciled"
    )


def ask_patiently(path: str, timeout: float | None) -> Answer:
    """Ask for the end of the work at hand; again when the uploader dies meanwhile: it is started again by the mount."""
    deadline = None if timeout is None else time.monotonic() + timeout
    lost_at: float | None = None
    while True:
        left = None if deadline is None else max(0.001, deadline - time.monotonic())
        try:
            return ask(state_directory_of(path).control_socket, "wait", left)
        except TimeoutError:
            raise Failure(f"not everything is published after {timeout:g} s: {_why(path)}") from None
        except (ConnectionError, FileNotFoundError):
            now = time.monotonic()
            lost_at = now if lost_at is None else lost_at
            if now - lost_at > _RESTART_SECONDS:
                raise Failure(f"the uploader of {path} does not run: see the log of the mount") from None
            if deadline is not None and now >= deadline:
                raise Failure(f"the uploader of {path} was not reached within {timeout:g} s") from None
            # There is no event to wait for: it is another process's child that is being started.
            time.sleep(_PAUSE_SECONDS)


def _why(path: str) -> str:
    try:
        answer = ask(state_directory_of(path).control_socket, "status", _STATUS_SECONDS)
    except (TimeoutError, ConnectionError, FileNotFoundError):
        return f"the uploader does not answer, see 'mirrorfs status {path}'"
    store = answer["store"]
    if store["up"] and answer.get("waiting") is not None:
        return f"{answer['waiting']['because']}"
    if store["up"]:
        return f"it goes on, see 'mirrorfs status {path}'"
    return f"the store is not usable. {store['last_error']}"


def lines_of_problems(path: str, problems: list[dict[str, Any]]) -> list[str]:
    """Name what cannot be mirrored as it is, the first of it."""
    lines = [f"  {problem['name']}: {problem['reason']}" for problem in problems[:_NAMED_PROBLEMS]]
    if len(problems) > _NAMED_PROBLEMS:
        lines.append(f"  and {len(problems) - _NAMED_PROBLEMS} more, see 'mirrorfs status {path}'")
    return lines
