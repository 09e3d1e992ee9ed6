"""`mirrorfs replay`: the journal, listed, exported, imported and driven without a mount."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import IO, Any

import click

from mirrorfs import own_files
from mirrorfs.cli.errors import Failure
from mirrorfs.cli.options import PATH
from mirrorfs.cli.state_directories import STATE_DIRECTORY
from mirrorfs.cli.view_options import Moment
from mirrorfs.database.directory import StateDirectory
from mirrorfs.database.errors import DatabaseError
from mirrorfs.datastore.patterns import MalformedPattern
from mirrorfs.output import say, say_json
from mirrorfs.replay.exchange import Export, export_values, import_journal
from mirrorfs.replay.listing import Filter, Line, Listing, describe_damage
from mirrorfs.replay.names import KINDS, describe_knowledge
from mirrorfs.replay.source import Source, find_place

_LINES_AT_ONCE = 500
_STANDARD = "-"
_WITH_BUCKET = ("plan", "run")


class _Verbs(click.Group):
    """Imports what reaches for a bucket only when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_WITH_BUCKET]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _WITH_BUCKET:
            found: click.Command = getattr(importlib.import_module(f"mirrorfs.cli.replay_{cmd_name}"), cmd_name)
            return found
        return super().get_command(ctx, cmd_name)


@click.group("replay", cls=_Verbs, short_help="Look at a journal, keep it, or mirror what it names without a mount.")
def command() -> None:
    """Look at the journal of a mirror, keep a copy of it, or finish mirroring what it names without a mount.

    For the day on which a host died and its state directory, a copy, or half of it is left; and for whoever wants to
    know what mirrorfs saw. STATE_DIR is the state directory of a mirror (/var/lib/mirrorfs/NAME), in use or not; or the
    name of its datastore's settings file; or a directory that holds its journal or its state alone; or the file
    data.mdb of a journal. Looking changes nothing in it, and a mount that uses it notices nothing.

    \b
    Examples:
      mirrorfs replay list /var/lib/mirrorfs/mnt-datastore-store1 --pending
      mirrorfs replay export /var/lib/mirrorfs/mnt-datastore-store1 journal.jsonl
      mirrorfs replay plan /root/state --datastore /mnt/rescued
      mirrorfs replay run /root/state --datastore /mnt/rescued --to s3://backups/store1

    docs/replay.md says when to use what.
    """


@contextmanager
def opened(path: str) -> Iterator[Source]:
    """Open a source; what stands in the way becomes a Failure."""
    with told_errors(), Source(path, find_place(path)) as source:
        yield source


@contextmanager
def told_errors() -> Iterator[None]:
    """Turn what is wrong with a journal, a state or a file into a Failure."""
    try:
        yield
    except DatabaseError as error:
        raise Failure(str(error)) from error


# --- list


@command.command("list", short_help="List the records of a journal in order.")
@click.argument("state_dir", metavar="STATE_DIR", type=STATE_DIRECTORY)
@click.option(
    "--path",
    "patterns",
    envvar="MIRRORFS_REPLAY_LIST_PATH",
    multiple=True,
    metavar="GLOB",
    help="Only paths that match ('vm/100/*'; '*' also matches '/'). May be given more than once.",
)
@click.option(
    "--kind",
    "kinds",
    envvar="MIRRORFS_REPLAY_LIST_KIND",
    multiple=True,
    type=click.Choice(KINDS),
    metavar="KIND",
    help=f"Only names of this kind; may be given more than once. One of: {', '.join(KINDS)}.",
)
@click.option("--since", type=Moment(), metavar="TIME", help="Only records of this time or later (3d, 12h, RFC 3339).")
@click.option("--until", type=Moment(), metavar="TIME", help="Only records of this time or earlier.")
@click.option("--pending", is_flag=True, help="Only records that are not known to be dealt with.")
@click.option(
    "--state",
    "with_state",
    envvar="MIRRORFS_REPLAY_LIST_STATE",
    is_flag=True,
    help="Also what the state knows of each name. Without a journal: of each name that the state knows.",
)
@click.option("--json", "as_json", envvar="MIRRORFS_REPLAY_LIST_JSON", is_flag=True, help="JSON, one object a line.")
def list_(
    state_dir: str,
    patterns: tuple[str, ...],
    kinds: tuple[str, ...],
    since: float | None,
    until: float | None,
    pending: bool,
    with_state: bool,
    as_json: bool,
) -> None:
    """List the records of the journal in STATE_DIR in order: which names changed, when, and whether that is dealt with.

    A journal has one record for each name, the newest, and drops it some time after it is dealt with. Of a damaged
    journal everything is listed that can be read; where it cannot is said at the end. Times are UTC.

    \b
    Examples:
      mirrorfs replay list store1
      mirrorfs replay list /var/lib/mirrorfs/mnt-datastore-store1 --pending --kind manifest --since 2d
      mirrorfs replay list /root/copy-of-state --path 'vm/100/*' --state --json

    With --json the first object ("type": "journal") says what was found, then comes one for each record ("record"), and
    at last the counts ("summary"). docs/replay.md describes them.

    Exit codes: 0 listed, 1 it could not be read, is damaged, or nothing passes the filters; 2 wrong usage.
    """
    try:
        wanted = Filter(patterns, frozenset(kinds), since, until, pending)
    except MalformedPattern as error:
        raise click.BadParameter(str(error), param_hint="--path") from None
    with opened(state_dir) as source:
        if source.journal is None and not with_state:
            _refuse_without_journal(source)
        listing = Listing(source, wanted, with_state=with_state)
        (_list_json if as_json else _list_lines)(source, listing)
        damage = describe_damage(source)
    if damage:
        raise Failure(*damage)
    if not listing.listed and wanted.is_given:
        raise Failure(f"none of the {listing.records} records passes what --path, --kind, --since and so on ask for")


def _refuse_without_journal(source: Source) -> None:
    if source.journal_trouble is not None:
        raise Failure(*describe_damage(source))
    raise Failure(
        f"{source.path} holds a state, but no journal: which names changed last is not known. 'replay list --state' "
        "lists the names that the state knows"
    )


def _list_json(source: Source, listing: Listing) -> None:
    del source
    say_json(listing.head())
    for line in listing.lines():
        say_json(line.as_json())
    say_json(listing.summary())


def _list_lines(source: Source, listing: Listing) -> None:
    width = 8 if source.journal is None else max(8, len(str(source.journal.last_sequence())))
    say(f"{'SEQUENCE':>{width}}  {'TIME':<24}  {'KIND':<17}  {'DEALT WITH':<10}  PATH")
    lines = listing.lines()
    while batch := list(islice(lines, _LINES_AT_ONCE)):
        say(*(_row(line, width) for line in batch))
    say(*_counts(listing.summary()))


def _row(line: Line, width: int) -> str:
    record = line.record
    sequence, time = ("-", "-") if record is None else (str(record.sequence), format_time(record.time))
    dealt_with = "?" if line.dealt_with is None else "yes" if line.dealt_with else "no"
    known = "" if line.knowledge is None else f"  ({describe_knowledge(line.knowledge)})"
    path = os.fsdecode(line.path) or "(the whole datastore)"
    return f"{sequence:>{width}}  {time:<24}  {line.kind:<17}  {dealt_with:<10}  {path}{known}"


def format_time(moment: float) -> str:
    """Return a Unix time in UTC, to the millisecond."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _counts(summary: dict[str, Any]) -> list[str]:
    kinds = ", ".join(f"{count} {kind}" for kind, count in summary["kinds"].items())
    lines = [f"{summary['listed']} listed{f': {kinds}' if kinds else ''}"]
    if summary["pending"] is None:
        lines.append(f"{summary['records']} records; how many are dealt with is not known")
    else:
        lines.append(f"{summary['records']} records: {summary['dealt_with']} dealt with, {summary['pending']} pending")
    return lines


# --- export and import


@command.command("export", short_help="Write a journal to a text file.")
@click.argument("state_dir", metavar="STATE_DIR", type=STATE_DIRECTORY)
@click.argument("file", metavar="FILE", type=PATH)
def export(state_dir: str, file: str) -> None:
    """Write the journal in STATE_DIR to FILE, as JSON, one record a line. FILE "-" is standard output.

    `mirrorfs replay import` makes the same journal of it again. Of a damaged journal everything is written that can be
    read, and the last line says that it is not complete. FILE must not be there.

    \b
    Examples:
      mirrorfs replay export /var/lib/mirrorfs/mnt-datastore-store1 journal.jsonl
      mirrorfs replay export /var/lib/mirrorfs/mnt-datastore-store1 - | gzip > journal.jsonl.gz

    Exit codes: 0 written, 1 not written, or not all of the journal could be read; 2 wrong usage.
    """
    with opened(state_dir) as source:
        if source.journal is None:
            _refuse_without_journal(source)
        if file == _STANDARD:
            for value in export_values(source):
                say_json(value)
        else:
            _export_to(file, source)
        damage = describe_damage(source)
    if damage:
        raise Failure(*damage)


def _export_to(file: str, source: Source) -> None:
    if os.path.lexists(file):
        raise Failure(f"{file} is there already: give another name, or remove it first")
    draft = f"{file}.part"
    try:
        # Names in a journal are nobody's business.
        with os.fdopen(own_files.new_file(draft), "w", encoding="ascii") as stream:
            for value in export_values(source):
                stream.write(json.dumps(value) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
        os.rename(draft, file)
    except OSError as error:
        if os.path.isfile(draft):
            os.unlink(draft)
        raise Failure(f"cannot write {file}: {error.strerror}") from error
    say(f"{value['records']} records written to {file}")


@command.command("import", short_help="Make a journal of an exported one.")
@click.argument("state_dir", metavar="STATE_DIR", type=STATE_DIRECTORY)
@click.argument("file", metavar="FILE", type=PATH)
def import_(state_dir: str, file: str) -> None:
    """Make a journal in STATE_DIR of FILE, which `mirrorfs replay export` wrote. FILE "-" is standard input.

    STATE_DIR is made if it is not there, and must not hold a journal yet. A mount accepts the journal as if it had
    written it; so does `mirrorfs replay run`.

    \b
    Examples:
      mirrorfs replay import /var/lib/mirrorfs/mnt-datastore-store1 journal.jsonl
      zcat journal.jsonl.gz | mirrorfs replay import /var/lib/mirrorfs/mnt-datastore-store1 -

    Exit codes: 0 made; 1 not made, and then nothing of it is there; 2 wrong usage.
    """
    directory = StateDirectory(os.path.realpath(state_dir))
    with told_errors(), _reading(file) as stream:
        export = Export(stream, "standard input" if file == _STANDARD else file)
        count = import_journal(directory, export)
    say(f"{count} records are in the journal of {directory.path} now, numbered up to {export.head.sequence}")
    if not export.complete:
        say(
            "the journal that was exported was damaged, and is not complete here either: a mount, and 'replay run', "
            "compare the whole datastore and find what is missing",
            err=True,
        )


@contextmanager
def _reading(file: str) -> Iterator[IO[bytes]]:
    if file == _STANDARD:
        yield sys.stdin.buffer
        return
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as stream:
        yield stream
