"""`mirrorfs doctor`."""

from __future__ import annotations

import collections
import json
import os
import select
import signal
import time
import tomllib
from collections.abc import Callable, Iterator
from io import FileIO
from typing import NoReturn

import click

from mirrorfs import own_files
from mirrorfs.cli.errors import require_root
from mirrorfs.cli.secrets import Secrets
from mirrorfs.cli.settings_file import SETTINGS_BASE, KeyGivenTwice, parse_settings
from mirrorfs.database.directory import DEFAULT_BASE, StateDirectory
from mirrorfs.filesystem.condition import condition_of
from mirrorfs.output import say
from mirrorfs.replication.questions import ask
from mirrorfs.service import manager
from mirrorfs.supervision.registry import RunningMount, running_mounts
from mirrorfs.versions import versions

_LINES = 200
_ANSWER_SECONDS = 10.0
# A mount is given 20 to say whether it answers.
_SILENT_SECONDS = 30.0
_END_SECONDS = 1.0
_PIECE = 1 << 16
_KERNEL = (
    "/proc/sys/fs/nr_open",
    "/proc/sys/fs/fanotify/max_queued_events",
    "/proc/sys/fs/fanotify/max_user_marks",
    "/proc/loadavg",
)
_MEMORY = ("MemTotal", "MemAvailable", "SwapTotal", "Dirty")


@click.command("doctor", short_help="Collect what a report of a fault needs, without secrets.")
def command() -> None:
    """Print what a report of a fault needs: versions, the machine, mounts, settings, status and the last of the logs.

    Keys are taken out: those that this machine knows, what looks like one, and the arguments of notify.command.
    Names of hosts, paths, buckets and groups stay: read it before you send it. Nothing is changed, and nothing is sent.

    \b
    Example:
      mirrorfs doctor > report.txt

    Exit codes: 0 printed, 1 not printed, 2 wrong usage.
    """
    require_root("see what there is to tell")
    secrets = Secrets(os.environ, _arguments_of_commands())
    for heading, part in _PARTS:
        say("", f"== {heading}")
        for line in _lines_in_time(part):
            say(secrets.without(line))


def _arguments_of_commands() -> Iterator[str]:
    """Give what the programs that are told are given besides: the address of a web hook is its key."""
    if not os.path.isdir(SETTINGS_BASE):
        return
    for name in os.listdir(SETTINGS_BASE):
        if not name.endswith(".toml"):
            continue
        try:
            command = parse_settings(own_files.read_file(os.path.join(SETTINGS_BASE, name))).get("notify-command")
        except (OSError, KeyGivenTwice, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError):
            # The part about settings shows what is wrong with it.
            continue
        if isinstance(command, list):
            yield from (argument for argument in command[1:] if isinstance(argument, str))


def _lines_of(part: Callable[[], Iterator[str]]) -> Iterator[str]:
    """Give what a part tells; what goes wrong in one does not cost the others."""
    try:
        yield from part()
    except (OSError, ValueError) as error:
        yield f"(could not be told: {error})"


def _lines_in_time(part: Callable[[], Iterator[str]]) -> Iterator[str]:
    """Give what a part tells, as long as it tells anything: a disk that hangs is asked by a process of its own."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _tell(part, writing)
    os.close(writing)
    process = os.pidfd_open(child)
    try:
        with os.fdopen(reading, "rb", buffering=0) as told:
            yield from _lines_while_told(told)
    finally:
        # One that hangs with its disk ends with that, and is not waited for.
        signal.pidfd_send_signal(process, signal.SIGKILL)
        if select.select([process], [], [], _END_SECONDS)[0]:
            os.waitpid(child, 0)
        os.close(process)


def _tell(part: Callable[[], Iterator[str]], writing: int) -> NoReturn:
    try:
        # Line by line: what is told before a disk hangs is worth having.
        with os.fdopen(writing, "w", buffering=1, encoding="utf-8", errors="replace") as told:
            try:
                told.writelines(f"{line}\n" for line in _lines_of(part))
            except Exception as error:  # noqa: BLE001 - a defect, which belongs into the report
                told.write(f"(could not be told: {error!r})\n")
    finally:
        os._exit(0)


def _lines_while_told(told: FileIO) -> Iterator[str]:
    begun = b""
    while select.select([told], [], [], _SILENT_SECONDS)[0]:
        piece = told.read(_PIECE)
        if not piece:
            return
        *lines, begun = (begun + piece).split(b"\n")
        yield from (line.decode(errors="replace") for line in lines)
    yield f"(nothing more for {_SILENT_SECONDS:.0f} s: does a disk hang? The other parts follow)"


def _versions() -> Iterator[str]:
    yield time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    yield from (f"{name} {version}" for name, version in versions().items())


def _machine() -> Iterator[str]:
    yield from (line for line in _file("/etc/os-release") if line.startswith("PRETTY_NAME"))
    yield f"processors {os.cpu_count()}"
    yield from (line for line in _file("/proc/meminfo") if line.partition(":")[0] in _MEMORY)
    for path in _KERNEL:
        yield from (f"{path} {line}" for line in _file(path))


def _environment() -> Iterator[str]:
    yield from sorted(f"{name} is set" for name in os.environ if name.startswith(("AWS_", "MIRRORFS_", "HTTP")))


def _mount_table() -> Iterator[str]:
    yield from (line for line in _file("/proc/self/mountinfo") if "mirrorfs" in line)


def _settings() -> Iterator[str]:
    for name in sorted(os.listdir(SETTINGS_BASE)):
        path = os.path.join(SETTINGS_BASE, name)
        status = os.lstat(path)
        yield f"-- {path}: mode {status.st_mode & 0o7777:04o}, uid {status.st_uid}, {status.st_size} bytes"
        if name.endswith(".toml"):
            text = own_files.read_file(path).decode(errors="replace")
            yield from (line for line in text.splitlines() if line and not line.startswith("#"))


def _mounts() -> Iterator[str]:
    for mount in running_mounts():
        yield f"-- {mount.datastore} on {mount.mountpoint}, process {mount.pid}: {condition_of(mount.mountpoint).value}"
        yield f"chunks native: {mount.chunks_are_native} {mount.chunks_reason}"
        yield from _lines_of(lambda: _status(mount))  # noqa: B023 - used at once


def _status(mount: RunningMount) -> Iterator[str]:
    control = StateDirectory(mount.state_directory).control_socket
    yield from json.dumps(ask(control, "status", _ANSWER_SECONDS), indent=1).splitlines()


def _state_directories() -> list[str]:
    directories = {mount.state_directory for mount in running_mounts()}
    if os.path.isdir(DEFAULT_BASE):
        directories |= {entry.path for entry in os.scandir(DEFAULT_BASE) if entry.is_dir(follow_symlinks=False)}
    return sorted(directories)


def _state() -> Iterator[str]:
    for directory in _state_directories():
        room = os.statvfs(directory)
        yield f"-- {directory}: {room.f_bavail * room.f_frsize} bytes free"
        for where, _, names in os.walk(directory):
            for name in sorted(names):
                path = os.path.join(where, name)
                yield f"{os.lstat(path).st_size} {path}"


def _logs() -> Iterator[str]:
    for directory in _state_directories():
        path = StateDirectory(directory).log_file
        if os.path.lexists(path):
            yield f"-- {path}, the last {_LINES} lines"
            with os.fdopen(own_files.open_file(path), encoding="utf-8", errors="replace") as file:
                yield from (line.rstrip("\n") for line in collections.deque(file, _LINES))


def _service() -> Iterator[str]:
    if not manager.is_running():
        yield "systemd does not run here"
        return
    try:
        yield from manager.state_of_units(_LINES)
    except manager.ManagerFailed as error:
        yield str(error)


def _file(path: str) -> Iterator[str]:
    with open(path, encoding="utf-8", errors="replace") as file:
        yield from (line.rstrip("\n") for line in file)


_PARTS = (
    ("versions", _versions),
    ("machine", _machine),
    ("environment", _environment),
    ("mount table", _mount_table),
    ("settings", _settings),
    ("mounts", _mounts),
    ("state", _state),
    ("logs", _logs),
    ("service", _service),
)
