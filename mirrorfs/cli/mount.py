"""`mirrorfs mount`."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict

import click

from mirrorfs import interpreter, own_files
from mirrorfs.chunkstore.place import Choice
from mirrorfs.cli.durations import Duration, shown_duration
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.limit_options import limit_options
from mirrorfs.cli.listening import ListenAddress
from mirrorfs.cli.notify_options import notify_options
from mirrorfs.cli.options import PATH, StoreURL, store_options
from mirrorfs.cli.ranges import FiniteRange
from mirrorfs.cli.retention_options import retention_options
from mirrorfs.cli.setting import TakesEffect, setting
from mirrorfs.cli.settings_file import ARGUMENTS, DATASTORE, DatastoreCommand
from mirrorfs.database.directory import StateDirectory, default_state_directory
from mirrorfs.database.errors import DatabaseError
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.objectstore.rate_schedule import RateLimits
from mirrorfs.objectstore.url import StoreAddress, StoreOptions
from mirrorfs.output import LogFormat, say, say_json
from mirrorfs.replication.priority import DEFAULT_NICE, DiskPriority
from mirrorfs.replication.settings import (
    DEFAULT_PARALLEL,
    DEFAULT_RETRY_CEILING,
    DEFAULT_VERIFY_PERCENT,
    MOST_WORKERS,
    RetentionSettings,
    UploaderSettings,
    default_workers,
)
from mirrorfs.supervision.foreground import run_in_foreground
from mirrorfs.supervision.mount import MountRefused, check_paths
from mirrorfs.supervision.settings import Invocation, MountSettings, NotifySettings

WEB_ADDRESS = "127.0.0.1:9861"
"""Where the web page listens unless it is told something else."""


@click.command("mount", cls=DatastoreCommand)
@click.argument("datastore", type=DATASTORE)
@setting(
    "--to",
    "address",
    envvar="MIRRORFS_MOUNT_TO",
    type=StoreURL(),
    required=True,
    takes_effect=TakesEffect.MOUNT,
    metavar="s3://BUCKET/NAME",
    help="Where to mirror to.",
)
@store_options
@setting(
    "--mountpoint",
    type=PATH,
    metavar="DIR",
    takes_effect=TakesEffect.MOUNT,
    help="Mount here instead of over the datastore itself.",
)
@setting(
    "--state-dir",
    type=PATH,
    metavar="DIR",
    takes_effect=TakesEffect.MOUNT,
    help="Journal and state of this mirror. Default: a directory of the datastore's name in /var/lib/mirrorfs.",
)
@setting(
    "--foreground",
    is_flag=True,
    takes_effect=TakesEffect.ONCE,
    help="Stay in the foreground and log to standard error (for systemd).",
)
@setting("--parallel", type=click.IntRange(1, 64), default=DEFAULT_PARALLEL, help="Uploads at the same time.")
@setting(
    "--workers",
    type=click.IntRange(0, MOST_WORKERS),
    default=0,
    show_default=True,
    help="Processes that send chunks, each with its share of --parallel; 1: the uploader itself; 0: half as many as "
    "there are processors, at most 4.",
)
@setting(
    "--nice",
    type=click.IntRange(0, 19),
    default=DEFAULT_NICE,
    show_default=True,
    help="How far the uploader goes after other processes, as for nice(1); 0: it does not.",
)
@setting(
    "--disk-priority",
    type=click.Choice([priority.value for priority in DiskPriority]),
    default=DiskPriority.LOW.value,
    show_default=True,
    help="How the uploader shares the disk: after others (low), only when nobody else wants it (idle), or as they do.",
)
@setting(
    "--retry-ceiling",
    type=Duration(1.0, 3600.0, plain_seconds=True),
    default=shown_duration(DEFAULT_RETRY_CEILING),
    metavar="DURATION",
    help="Longest wait between two tries to reach a store that is down.",
)
@setting(
    "--verify-percent-per-day",
    type=FiniteRange(0.0, 100.0),
    default=DEFAULT_VERIFY_PERCENT,
    show_default=True,
    metavar="PERCENT",
    values="a number, 0 to 100; 0: nothing",
    help="Read so much of what the bucket holds again each day, check it, and send again what is damaged. 0: nothing.",
)
@setting(
    "--require-store",
    is_flag=True,
    takes_effect=TakesEffect.MOUNT,
    help="Do not mount when the store does not answer now.",
)
@setting(
    "--take-over",
    is_flag=True,
    takes_effect=TakesEffect.ONCE,
    help="Use the name in the bucket though another mirror or PBS has it.",
)
@setting(
    "--allow-removals",
    is_flag=True,
    takes_effect=TakesEffect.ONCE,
    help="Remove from the mirror what the datastore does not hold any more, even if that is most of it, and was not "
    "seen to go.",
)
@retention_options
@limit_options
@notify_options
@setting(
    "--chunk-store",
    type=click.Choice([choice.value for choice in Choice]),
    default=Choice.AUTO.value,
    takes_effect=TakesEffect.MOUNT,
    help="How PBS reaches its chunks. native: on the backing directory itself, at the disk's speed; fuse: through the "
    "mount, as all else; auto: native where kernel and file system can, else fuse ('mirrorfs status' tells which).",
)
@setting(
    "-o",
    "--options",
    "mount_options",
    envvar="MIRRORFS_MOUNT_OPTIONS",
    multiple=True,
    metavar="OPTIONS",
    takes_effect=TakesEffect.MOUNT,
    help="Mount options, as for mount(8).",
)
@setting(
    "--while-in-use",
    is_flag=True,
    takes_effect=TakesEffect.MOUNT,
    help="Mount although somebody has files of the datastore open for writing; what he writes to these is not seen.",
)
@setting("--verbose", is_flag=True, help="Log more.")
@setting(
    "--log-format",
    type=click.Choice([log_format.value for log_format in LogFormat]),
    default=LogFormat.TEXT.value,
    takes_effect=TakesEffect.MOUNT,
    help="One line an event either way: for people, or an object of JSON for what collects logs.",
)
@setting(
    "--web-listen",
    type=ListenAddress(),
    takes_effect=TakesEffect.PAGE,
    metavar="ADDRESS:PORT",
    help=f"Where the web page listens. 'mirrorfs install' has a service serve it when this is set; 'mirrorfs web' does "
    f"by hand, at {WEB_ADDRESS} if it is not. A mount itself serves none.",
)
@setting(
    "--web-require-token",
    is_flag=True,
    takes_effect=TakesEffect.PAGE,
    help="Have the web page demand its token on this machine too, which has other users.",
)
@click.option("--show-settings", hidden=True, metavar="DIR")
@click.pass_context
def command(
    context: click.Context,
    datastore: str,
    address: StoreAddress,
    store: StoreOptions,
    mountpoint: str | None,
    state_dir: str | None,
    foreground: bool,
    parallel: int,
    workers: int,
    nice: int,
    disk_priority: str,
    retry_ceiling: float,
    verify_percent_per_day: float,
    require_store: bool,
    take_over: bool,
    allow_removals: bool,
    retention: RetentionSettings,
    limits: RateLimits,
    notify: NotifySettings,
    chunk_store: str,
    mount_options: tuple[str, ...],
    while_in_use: bool,
    verbose: bool,
    log_format: str,
    web_listen: object,
    web_require_token: bool,
    show_settings: str | None,
) -> None:
    """Mount over DATASTORE and mirror it; returns when the mount is ready.

    The mount comes up also when the store is not reachable: replication then waits and goes on by itself.
    What the datastore holds already is mirrored too. Nothing in it is changed.

    Options may also stand in /etc/mirrorfs/NAME.toml, which 'mirrorfs config init' writes: then NAME alone is
    what DATASTORE is called. Flags win over the environment, the environment wins over the file.
    docs/settings.md has every key.

    \b
    Example:
      mirrorfs mount /mnt/datastore/store1 --to s3://backups/store1 --endpoint-url https://s3.example.com
      mirrorfs wait /mnt/datastore/store1
      mirrorfs umount /mnt/datastore/store1

    Exit codes: 0 mounted, 1 not mounted (the reason is on standard error), 2 wrong usage.
    """
    # The page's service is told.
    del web_listen, web_require_token
    require_root("mount a datastore, whose files belong to several users")
    datastore = real_path(datastore)
    directory = _state_directory(datastore, state_dir)
    uploader = UploaderSettings(
        datastore=datastore,
        state_directory=directory.path,
        root_descriptor=-1,
        bucket=address.bucket,
        prefix=address.prefix,
        store=store,
        parallel=parallel,
        workers=workers or default_workers(),
        nice=nice,
        disk_priority=disk_priority,
        retry_ceiling=retry_ceiling,
        verify_percent_per_day=verify_percent_per_day,
        take_over=take_over,
        allow_removals=allow_removals,
        verbose=verbose,
        log_format=log_format,
        retention=retention,
        limits=limits,
    )
    settings = MountSettings(
        mountpoint=datastore if mountpoint is None else real_path(mountpoint),
        uploader=uploader,
        mount_options=tuple(option for group in mount_options for option in group.split(",") if option),
        require_store=require_store,
        while_in_use=while_in_use,
        chunk_store=Choice(chunk_store),
        notify=notify,
        invocation=Invocation(context.meta[ARGUMENTS], os.getcwd()),
    )
    if show_settings is not None:
        # For a mount that reads its settings again: how the command would be understood now.
        say_json(asdict(settings))
        return
    try:
        # Before anything is made: the background process checks again, but has its log in the state directory.
        check_paths(settings)
    except MountRefused as refusal:
        raise Failure(str(refusal)) from refusal
    if foreground:
        error = run_in_foreground(settings, lambda note: _say_ready(settings, note))
    else:
        error = _run_in_background(settings, directory)
    if error is not None:
        raise Failure(error)


def _state_directory(datastore: str, given: str | None) -> StateDirectory:
    if given is None:
        return default_state_directory(datastore)
    try:
        return StateDirectory(own_files.resolved(given))
    except own_files.NotOwn as error:
        raise Failure(f"{error}. Or give another --state-dir") from error
    except NotADirectoryError as error:
        raise Failure(f"the state directory {given} is not a directory: give another --state-dir") from error
    except OSError as error:
        raise Failure(f"cannot use the state directory {given}: {error.strerror}") from error


def _say_ready(settings: MountSettings, note: str) -> None:
    if note:
        say(note, err=True)
    uploader = settings.uploader
    problem = StoreAddress(uploader.bucket, uploader.prefix).problem_for_pbs
    if problem is not None:
        say(f"{problem} mirrorfs can.", err=True)
    mirrored = "will be mirrored" if note else "mirrored"
    say(f"{settings.mountpoint} is mounted and {mirrored} to s3://{uploader.bucket}/{uploader.prefix}")


def _run_in_background(settings: MountSettings, directory: StateDirectory) -> str | None:
    """Start the mount in a fresh process, and return when it is ready or has failed (then with the reason)."""
    try:
        directory.create()
        log_descriptor = own_files.open_file(directory.log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    except (DatabaseError, own_files.NotOwn) as error:
        return str(error)
    except OSError as error:
        return f"cannot write the log {directory.log_file}: {error.strerror}"
    with os.fdopen(log_descriptor, "wb") as log:
        process = subprocess.Popen(
            interpreter.command("mirrorfs.supervision"),
            env=interpreter.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            cwd=interpreter.WORKING_DIRECTORY,
        )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as stdin:
        stdin.write(settings.encode())
    try:
        line = process.stdout.readline()
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    if not line:
        return f"the mount process ended before it was ready (exit code {process.wait()}): see {directory.log_file}"
    answer = json.loads(line)
    if "error" in answer:
        process.wait()
        return str(answer["error"])
    _say_ready(settings, answer["ready"])
    return None
