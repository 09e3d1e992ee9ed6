"""`mirrorfs replay plan`: what `mirrorfs replay run` would do about each name, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
import trio

from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mirror_of import SettingsOfDatastore
from mirrorfs.cli.options import StoreURL, store_options
from mirrorfs.cli.replay import opened
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.state_directories import STATE_DIRECTORY
from mirrorfs.database.errors import DatabaseError
from mirrorfs.objectstore.errors import StoreError
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import say, say_json
from mirrorfs.replay.listing import damage_as_json, describe_damage
from mirrorfs.replay.plan import Plan, PlanSettings, Step
from mirrorfs.replay.run import ReplayEnded
from mirrorfs.replay.source import Source
from mirrorfs.replication.ownership.claim import ClaimUnreadable
from mirrorfs.replication.settings import UploaderSettings

_UNKNOWN = "unknown"
_WORDS = {
    "send": "to be sent",
    "compare": "to be compared with the bucket",
    "delete": "to be deleted from the bucket",
    "none": "that cannot be mirrored as they are",
    "nothing": "with nothing to be done",
    "leave": "left alone",
}


@click.command("plan", cls=SettingsOfDatastore, short_help="Tell what a run would do, and why.")
@click.argument("state_dir", metavar="STATE_DIR", type=STATE_DIRECTORY)
@click.option("--datastore", required=True, type=DATASTORE, metavar="DIR", help="The datastore, wherever it lies now.")
@click.option(
    "--to",
    "address",
    envvar="MIRRORFS_REPLAY_PLAN_TO",
    type=StoreURL(),
    metavar="URL",
    help="s3://BUCKET/NAME, which is asked what it holds. Default: what the state knows of its bucket is believed.",
)
@store_options
@click.option(
    "--from",
    "first",
    envvar="MIRRORFS_REPLAY_PLAN_FROM",
    type=click.IntRange(1),
    metavar="SEQUENCE",
    help="Begin with this record, dealt with or not.",
)
@click.option(
    "--all", "everything", envvar="MIRRORFS_REPLAY_PLAN_ALL", is_flag=True, help="Begin with the first record."
)
@click.option("--journal-only", is_flag=True, help="Do not compare the datastore as a whole.")
@click.option("--take-over", is_flag=True, help="Plan for a run with --take-over.")
@click.option("--json", "as_json", envvar="MIRRORFS_REPLAY_PLAN_JSON", is_flag=True, help="JSON, one object a line.")
def plan(
    state_dir: str,
    datastore: str,
    address: StoreAddress | None,
    store: StoreOptions,
    first: int | None,
    everything: bool,
    journal_only: bool,
    take_over: bool,
    as_json: bool,
) -> None:
    """Tell what `mirrorfs replay run` would do now about each name, and why. Nothing is changed.

    First come the names of the journal, from where the mount was (or --from, or --all), then those that comparing the
    whole datastore finds beside them. Chunks are not read: a damaged one is found when it is to be sent. Works on a
    mount that runs, too. A snapshot "to be deleted" may be held or kept, as retention says.

    \b
    Examples:
      mirrorfs replay plan /root/state --datastore /mnt/rescued
      mirrorfs replay plan /root/state --datastore /mnt/rescued --to s3://elsewhere/store1 --json

    Exit codes: 0 the plan was told, 1 it could not be, or not all of the journal could be read; 2 wrong usage.
    """
    if first is not None and everything:
        raise click.UsageError("--from and --all exclude each other: --all begins with the first record")
    with opened(state_dir) as source:
        settings = PlanSettings(
            _uploader(source, os.path.realpath(datastore), address, store, take_over=take_over),
            asks_store=address is not None,
            first=1 if everything else first,
            only_journal=journal_only,
        )
        with Plan(source, settings) as made, told_errors_of_plan():
            trio.run(made.tell, _say_json if as_json else _say)
        if as_json:
            say_json(_summary(made, source))
        else:
            say(*made.notes, *_describe(made))
        damage = describe_damage(source)
    if damage:
        raise Failure(*damage)


def _uploader(
    source: Source, datastore: str, address: StoreAddress | None, store: StoreOptions, *, take_over: bool
) -> UploaderSettings:
    known = source.identity
    return UploaderSettings(
        datastore=datastore,
        state_directory="",
        root_descriptor=-1,
        bucket=address.bucket if address is not None else _UNKNOWN if known is None else known.bucket,
        prefix=address.prefix if address is not None else _UNKNOWN if known is None else known.prefix,
        store=store,
        take_over=take_over,
    )


@contextmanager
def told_errors_of_plan() -> Iterator[None]:
    """Turn what keeps a plan from being made into a Failure."""
    failures: list[Exception] = []
    try:
        yield
    except* (StoreError, ClaimUnreadable, DatabaseError, ReplayEnded) as group:
        failures.extend(group.exceptions)
    if failures:
        raise Failure(f"the plan is not complete: {failures[0]}") from failures[0]


async def _say(step: Step) -> None:
    sequence = "-" if step.record is None else str(step.record.sequence)
    say(f"{sequence:>8}  {step.action:<7}  {step.name or '(the whole datastore)'}: {step.why}")


async def _say_json(step: Step) -> None:
    say_json(step.as_json())


def _summary(made: Plan, source: Source) -> dict[str, Any]:
    return {
        "type": "summary",
        "actions": {action: made.counts[action] for action in _WORDS},
        "notes": made.notes,
        "damage": damage_as_json(source),
    }


def _describe(made: Plan) -> list[str]:
    counts = [f"{made.counts[action]} {words}" for action, words in _WORDS.items() if made.counts[action]]
    return [f"steps: {', '.join(counts) if counts else 'none'}"]
