"""`mirrorfs replay run`: a bucket is brought up to date from what is left of a state directory."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import click
import rich.filesize

from mirrorfs.cli.errors import Failure
from mirrorfs.cli.mirror_of import SettingsOfDatastore
from mirrorfs.cli.options import PATH, StoreURL, store_options
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.retention_options import retention_options
from mirrorfs.cli.screen import Bar
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.cli.state_directories import STATE_DIRECTORY
from mirrorfs.database.errors import DatabaseError
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import begin_log, say
from mirrorfs.replay.listing import describe_damage
from mirrorfs.replay.run import Outcome, Progress, Replay, ReplayEnded, ReplayRefused, ReplaySettings
from mirrorfs.replication.settings import DEFAULT_PARALLEL, DEFAULT_RETRY_CEILING, RetentionSettings, UploaderSettings

_LINE_SECONDS = 10.0
_NAMED = 10
_NOISY = ("boto3", "botocore", "urllib3", "s3transfer")


@click.command("run", cls=SettingsOfDatastore, short_help="Bring a bucket up to date without a mount.")
@click.argument("state_dir", metavar="STATE_DIR", type=STATE_DIRECTORY)
@click.option("--datastore", required=True, type=DATASTORE, metavar="DIR", help="The datastore, wherever it lies now.")
@click.option(
    "--to",
    "address",
    envvar="MIRRORFS_REPLAY_RUN_TO",
    required=True,
    type=StoreURL(),
    metavar="URL",
    help="s3://BUCKET/NAME.",
)
@store_options
@click.option(
    "--from",
    "first",
    envvar="MIRRORFS_REPLAY_RUN_FROM",
    type=click.IntRange(1),
    metavar="SEQUENCE",
    help="Begin with this record, dealt with or not.",
)
@click.option(
    "--all", "everything", envvar="MIRRORFS_REPLAY_RUN_ALL", is_flag=True, help="Begin with the first record."
)
@click.option("--journal-only", is_flag=True, help="Do not compare the datastore as a whole.")
@click.option(
    "--work-dir",
    type=PATH,
    metavar="DIR",
    help="Keep the state of this run there. Then nothing in STATE_DIR is changed, which may be somebody else's.",
)
@click.option("--take-over", is_flag=True, help="Use the name in the bucket though another mirror or PBS has it.")
@click.option(
    "--allow-removals",
    is_flag=True,
    help="Remove from the bucket what the datastore does not hold any more, even if that is most of it.",
)
@retention_options
@click.option("--parallel", type=click.IntRange(1, 64), default=DEFAULT_PARALLEL, help="Uploads at the same time.")
@click.option(
    "--retry-ceiling",
    type=FiniteRange(1.0, 3600.0),
    default=DEFAULT_RETRY_CEILING,
    metavar="SECONDS",
    help="Longest wait between two tries to reach a store that is down.",
)
@click.option("--verbose", is_flag=True, help="Log more.")
def run(
    state_dir: str,
    datastore: str,
    address: StoreAddress,
    store: StoreOptions,
    first: int | None,
    everything: bool,
    journal_only: bool,
    work_dir: str | None,
    take_over: bool,
    allow_removals: bool,
    retention: RetentionSettings,
    parallel: int,
    retry_ceiling: float,
    verbose: bool,
) -> None:
    """Bring the bucket at URL up to date with the datastore in DIR, from the journal in STATE_DIR, without a mount.

    For a datastore whose host is gone: from a rescue system that has the disk and the state directory, or half of it,
    or a copy. Nobody may change the datastore meanwhile. What a mount would do at its start is done, by the same code:
    the journal's names are dealt with from where the mount was (or --from, or --all), then the whole datastore is
    compared with what the bucket is known to hold. What is gone from the datastore is removed from the bucket: give the
    --retention options that the mount had, if they do not stand in the settings file of DIR in /etc/mirrorfs. What
    stands there holds here too, the store's options only for the bucket that is named there.

    The bucket may be another one than the mount's, or an empty one: then the state for it lies in STATE_DIR/replay-...,
    and goes on there when the command is given again. It may be interrupted, and killed, at any time: the same command
    goes on. The journal is left as it is, for the next mount.

    \b
    Examples:
      mirrorfs replay run /root/state --datastore /mnt/rescued --to s3://backups/store1
      mirrorfs replay run /root/state --datastore /mnt/rescued --to s3://elsewhere/store1 --work-dir /root/work

    Exit codes: 0 the bucket is up to date; 1 it is not: it was refused or interrupted, or something cannot be mirrored
    as it is or is held (named on standard error); 2 wrong usage.
    """
    if first is not None and everything:
        raise click.UsageError("--from and --all exclude each other: --all begins with the first record")
    settings = ReplaySettings(
        UploaderSettings(
            datastore=os.path.realpath(datastore),
            state_directory="",
            root_descriptor=-1,
            bucket=address.bucket,
            prefix=address.prefix,
            store=store,
            parallel=parallel,
            retry_ceiling=retry_ceiling,
            take_over=take_over,
            allow_removals=allow_removals,
            verbose=verbose,
            retention=retention,
        ),
        first=1 if everything else first,
        only_journal=journal_only,
        work_directory=work_dir,
    )
    begin_log("replay", verbose=verbose)
    for noisy in _NOISY:
        logging.getLogger(noisy).setLevel(logging.WARNING)
    shown = shown_progress()
    with told_errors(), Replay(state_dir, settings, shown.tell) as replay:
        with shown.shown():
            outcome = replay.run()
        damage = describe_damage(replay.source)
    _conclude(outcome, address, damage)


@contextmanager
def told_errors() -> Iterator[None]:
    """Turn what ended a run into a Failure that says how to go on."""
    going_on = "What is mirrored stays; give the same command again to go on."
    try:
        yield
    except ReplayRefused as error:
        raise Failure(str(error)) from error
    except ReplayEnded as error:
        raise Failure(f"{str(error).rstrip('.')}. {going_on}") from error
    except DatabaseError as error:
        raise Failure(str(error)) from error
    except KeyboardInterrupt:
        raise Failure(f"Interrupted. {going_on}") from None


def _conclude(outcome: Outcome, address: StoreAddress, damage: list[str]) -> None:
    say(
        f"{address} is up to date: {outcome.published} snapshots; {outcome.objects} objects, "
        f"{rich.filesize.decimal(outcome.bytes)}, were sent."
        if not outcome.problems and not outcome.held
        else f"{address}: {outcome.published} snapshots; {outcome.objects} objects, "
        f"{rich.filesize.decimal(outcome.bytes)}, were sent."
    )
    say(*damage, err=True)
    lines = unsettled(outcome, "give the command again with --allow-removals")
    if lines:
        raise Failure(*lines)


def unsettled(outcome: Outcome, approval: str) -> list[str]:
    """Name what a run has left as it was, line by line; `approval` says how removals that are held can go on."""
    lines = []
    if outcome.problems:
        lines.append(f"{len(outcome.problems)} names cannot be mirrored as they are:")
        lines += _named([f"{problem.name}: {problem.reason}" for problem in outcome.problems])
    if outcome.held:
        lines.append(f"{len(outcome.held)} snapshots are gone from the datastore, and are held in the bucket:")
        lines += [*_named(outcome.held), f"  If they are to go, {approval}."]
    return lines


def _named(names: Sequence[str]) -> list[str]:
    more = [f"  and {len(names) - _NAMED} more"] if len(names) > _NAMED else []
    return [*(f"  {name}" for name in names[:_NAMED]), *more]


def shown_progress() -> Lines:
    """Return what shows how far a run is, as suits standard error."""
    return _Bar() if sys.stderr.isatty() else Lines()


class Lines:
    """For logs and pipes: a line now and then."""

    def __init__(self) -> None:
        self._said_at = 0.0

    def shown(self) -> AbstractContextManager[object]:
        """The context in which the progress is displayed."""
        return nullcontext()

    def tell(self, progress: Progress) -> None:
        """Show how far it is."""
        now = time.monotonic()
        if now - self._said_at >= _LINE_SECONDS:
            self._said_at = now
            say(f"{progress.phase}: {_describe(progress)}", err=True)


class _Bar(Lines):
    """For terminals: a bar that counts records of the journal."""

    def __init__(self) -> None:
        super().__init__()
        self._bar = Bar("asking the store")
        # A line for each published snapshot would tear the bar.
        logging.getLogger().setLevel(logging.WARNING)

    def shown(self) -> AbstractContextManager[object]:
        return self._bar

    def tell(self, progress: Progress) -> None:
        done = max(0, progress.read - progress.waiting)
        self._bar.update(progress.phase, completed=done, total=progress.last or None, state=_describe(progress))


def _describe(progress: Progress) -> str:
    sent = f"{progress.objects} objects sent, {rich.filesize.decimal(progress.bytes)}"
    parts = [f"record {progress.read} of {progress.last}", f"{progress.waiting} names to be looked at", sent]
    if progress.trouble is not None:
        parts.append(f"the store does not answer: {progress.trouble}")
    return ", ".join(parts)
