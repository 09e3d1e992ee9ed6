"""`mirrorfs retention`: what an administrator decides about leaving the bucket."""

from __future__ import annotations

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate, require_serving
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.output import say, say_json
from mirrorfs.replication.questions import ask
from mirrorfs.supervision.registry import state_directory_of

_ANSWER_SECONDS = 60.0


@click.group("retention", short_help="Approve of removals that are held.")
def command() -> None:
    """Decide about snapshots that are gone from a datastore and whose removal from the bucket is held.

    Held is what was not seen to go and does not look like a prune, and, with `mirrorfs mount
    --retention-max-delete-fraction`, a wave of removals that is larger than that share of the snapshots in a day:
    `mirrorfs status` names them and says why, and the bucket keeps them.

    \b
    Example:
      mirrorfs status /mnt/datastore/store1
      mirrorfs retention approve /mnt/datastore/store1
      mirrorfs retention approve /mnt/datastore/store1 vm/100
    """


@command.command("approve")
@click.argument("datastore", type=DATASTORE)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option(
    "--json", "as_json", envvar="MIRRORFS_RETENTION_APPROVE_JSON", is_flag=True, help="Print JSON instead of lines."
)
def approve(datastore: str, paths: tuple[str, ...], as_json: bool) -> None:
    """Approve of every removal in DATASTORE that is held now: these snapshots go from the bucket.

    With PATHs, only of snapshots, groups or namespaces of these names, as `mirrorfs status` shows them (vm/100,
    ns/customers, vm/100/2026-01-01T00:00:00Z).

    Where removed snapshots are kept for a while (--retention-delete-after), they are kept from then on. What is not to
    go must be brought back into the datastore first (mirrorfs restore), and is never touched then.

    \b
    Example:
      mirrorfs retention approve /mnt/datastore/store1
      mirrorfs retention approve /mnt/datastore/store1 vm/100 ns/customers

    Exit codes: 0 approved, also if nothing was held; 1 it could not be done, or nothing is held below the PATHs; 2
    wrong usage.
    """
    require_root("decide about removals")
    path = locate(datastore)
    require_serving(path, if_absent="mount it first, what is held stays held")
    directory = state_directory_of(path)
    try:
        below = [_in_datastore(given, path) for given in paths]
        answer = ask(directory.control_socket, "approve", _ANSWER_SECONDS, arguments={"below": below})
    except (ConnectionError, FileNotFoundError, TimeoutError):
        raise Failure(
            f"the uploader of {path} does not answer; the mount starts it again if it has ended. Try again in a "
            f"minute; if this lasts, see {directory.log_file}"
        ) from None
    if "error" in answer:
        raise Failure(f"nothing was approved: {answer['error']}")
    if paths and not answer["approved"]:
        raise Failure(
            f"nothing was approved: no removal is held below {', '.join(paths)}, see 'mirrorfs status {path}'"
        )
    if as_json:
        say_json(answer)
        return
    for snapshot in answer["approved"]:
        say(f"approved  {snapshot}")
    if not answer["approved"] and not paths:
        say("no removal is held")


def _in_datastore(given: str, datastore: str) -> str:
    """Return a path as the mirror knows it; one with the datastore's own path in front is meant the same."""
    return given.removeprefix(f"{datastore}/").strip("/")
