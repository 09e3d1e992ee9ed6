"""`mirrorfs reconcile`."""

from __future__ import annotations

import click

from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.mounted import locate, require_serving
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.wait import describe_broken_journal, journal_broken_since
from mirrorfs.output import say, say_json
from mirrorfs.replication.questions import Answer, ask
from mirrorfs.supervision.registry import state_directory_of

_DIFFERENCES_FOUND = 3
_NAMED_PROBLEMS = 10
_WORDS = {
    "send": "to be sent to the bucket",
    "compare": "to be compared with the bucket",
    "delete": "to be deleted from the bucket",
    "none": "that cannot be mended from the datastore",
}


@click.command("reconcile")
@click.argument("datastore", type=DATASTORE)
@click.option("--deep", is_flag=True, help="Also list the bucket, and compare it with what it is thought to hold.")
@click.option("--dry-run", is_flag=True, help="Change nothing; print each difference, and what would be done.")
@click.option("--timeout", type=FiniteRange(min=0), metavar="SECONDS", help="Give up after so long.")
@click.option(
    "--json",
    "as_json",
    envvar="MIRRORFS_RECONCILE_JSON",
    is_flag=True,
    help="JSON, one object a line: with --dry-run each difference; at last the summary.",
)
def command(datastore: str, deep: bool, dry_run: bool, timeout: float | None, as_json: bool) -> None:
    """Compare DATASTORE with its mirror again now, and return when all that was found has been dealt with.

    The mirror does this by itself at each start. By hand it is for when the datastore was changed beneath the mount,
    and, with --deep, when somebody has changed or deleted objects in the bucket, or the store has lost some: they are
    sent again. Objects that are none of mirrorfs' are never touched; --deep --dry-run lists them too. The sizes of all
    objects are compared, the checksums of all but chunks.

    \b
    Example:
      mirrorfs reconcile /mnt/datastore/store1 --deep --dry-run
      mirrorfs reconcile /mnt/datastore/store1 --deep

    Exit codes: 0 all is well now (with --dry-run: no difference), 1 it could not be done, or something cannot be
    mirrored as it is (it is named on standard error), 2 wrong usage, 3 with --dry-run: there are differences.
    """
    require_root("have a mirror compared")
    path = locate(datastore)
    _refuse_without_mount(path)
    answer = _ask(path, {"deep": deep, "dry_run": dry_run}, timeout, as_json=as_json)
    if "error" in answer:
        raise Failure(f"nothing more was changed: {answer['error']}")
    if as_json:
        say_json(answer)
    else:
        say(*_describe(answer, dry_run=dry_run))
    if dry_run:
        raise SystemExit(_DIFFERENCES_FOUND if any(answer["differences"].values()) else 0)
    if answer["problems"]:
        raise Failure("some of it cannot be mirrored as it is:", *_problems(path, answer))


def _refuse_without_mount(path: str) -> None:
    require_serving(
        path,
        if_absent="only the mount knows what changes meanwhile, so mount it first ('mirrorfs mount' compares by "
        "itself, and makes a lost or damaged state anew)",
    )
    since = journal_broken_since(path)
    if since is not None:
        raise Failure(f"it cannot be known what is to be compared: {describe_broken_journal(since)}")


def _ask(path: str, arguments: dict[str, bool], timeout: float | None, *, as_json: bool) -> Answer:
    directory = state_directory_of(path)

    def tell(difference: Answer) -> None:
        if as_json:
            say_json(difference)
        else:
            say(_line(difference))

    try:
        return ask(directory.control_socket, "reconcile", timeout, arguments=arguments, told=tell)
    except TimeoutError:
        raise Failure(f"not everything is compared and dealt with after {timeout:g} s; see 'mirrorfs status'") from None
    except (ConnectionError, FileNotFoundError):
        raise Failure(
            f"the uploader of {path} does not run, or has ended meanwhile; the mount starts it again and backups go "
            f"on. Try again in a minute; if this lasts, see {directory.log_file}"
        ) from None


def _line(difference: Answer) -> str:
    if difference["remedy"] == "leave":
        return f"foreign  {difference['key']}: {difference['found']}; it is left alone"
    return f"{difference['remedy']:<7}  {difference['key']}: {difference['found']}"


def _describe(answer: Answer, *, dry_run: bool) -> list[str]:
    found = [f"{count} {_WORDS[remedy]}" for remedy, count in answer["differences"].items() if count]
    lines = [f"{'differences' if dry_run else 'found'}: {', '.join(found) if found else 'none'}"]
    foreign = answer["foreign_objects"]
    if foreign["count"]:
        lines.append(f"foreign objects, left alone: {foreign['count']}")
        if not dry_run:
            lines += [f"  {key}" for key in foreign["examples"]]
    return lines


def _problems(path: str, answer: Answer) -> list[str]:
    problems = answer["problems"]
    lines = [f"  {problem['name']}: {problem['reason']}" for problem in problems[:_NAMED_PROBLEMS]]
    if len(problems) > _NAMED_PROBLEMS:
        lines.append(f"  and {len(problems) - _NAMED_PROBLEMS} more, see 'mirrorfs status {path}'")
    return lines
