"""`mirrorfs metrics`."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import click
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from mirrorfs.cli.drill import NOTES_DIRECTORY
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.database.directory import DEFAULT_BASE
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.output import say
from mirrorfs.recovery.drill_report import DrillNotes, Note
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.replication.control import Answer
from mirrorfs.supervision.metrics import Drilled, MirrorCollector
from mirrorfs.supervision.registry import RunningMount, find, running_mounts

# Where 'mirrorfs install' has the timer's drills keep their reports.
_REPORTS = f"{DEFAULT_BASE}/reports"
_PORTS = range(1, 65536)


class ListenAddress(click.ParamType[tuple[str, int]]):
    """A parameter of the form ADDRESS:PORT, an IPv6 address in brackets."""

    name = "address"

    def convert(
        self, value: str | tuple[str, int], param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Take address and port apart; what is no such pair is a usage error."""
        if isinstance(value, tuple):
            return value
        address, _, port = value.rpartition(":")
        if not address or not (port.isascii() and port.isdigit()) or int(port) not in _PORTS:
            self.fail(f"{value!r} is not of the form ADDRESS:PORT, as 127.0.0.1:9860 or [::1]:9860", param, ctx)
        return address.removeprefix("[").removesuffix("]"), int(port)


@click.command("metrics")
@click.argument("datastore", type=DATASTORE, required=False)
@click.option(
    "--listen",
    type=ListenAddress(),
    metavar="ADDRESS:PORT",
    help="Serve them over HTTP, read anew at each request, until ended. Without authentication or TLS.",
)
def command(datastore: str | None, listen: tuple[str, int] | None) -> None:
    """Print metrics of DATASTORE in Prometheus' text format, or serve them.

    Without DATASTORE, those of all mounts that are up on this machine. A mount or an uploader that does not
    answer is not an error: mirrorfs_mount_up or mirrorfs_uploader_up is 0.

    \b
    Example:
      mirrorfs metrics > mirrorfs.new && mv mirrorfs.new /var/lib/prometheus/node-exporter/mirrorfs.prom
      mirrorfs metrics --listen 127.0.0.1:9860

    Exit codes: 0 they were printed, 1 ADDRESS:PORT cannot be used, 2 wrong usage.
    """
    require_root("ask a mirror for its metrics")
    path = None if datastore is None else real_path(datastore)
    registry = CollectorRegistry()
    registry.register(MirrorCollector(lambda: _mounts(path), _drilled))
    if listen is None:
        say(*generate_latest(registry).decode().rstrip("\n").split("\n"))
        return
    address, port = listen
    try:
        start_http_server(port, address, registry)
    except OSError as error:
        raise Failure(f"cannot listen on {address}, port {port}: {error.strerror}") from error
    say(f"serving metrics on {address}, port {port}, at /metrics", err=True)
    while True:
        signal.pause()


def _drilled(answer: Answer) -> Iterator[Drilled]:
    """Give what was drilled of a mirror: by hand, and by the service's timer, whose reports lie beside each other."""
    latest: dict[str, Note] = {}
    for directory in (Path(NOTES_DIRECTORY), *_directories_in(Path(_REPORTS))):
        notes = DrillNotes(directory, StoreAddress(answer["bucket"], answer["prefix"]))
        try:
            notes.load()
        except RestoreError:
            # 'mirrorfs drill' says what is wrong with it. It costs no other number.
            continue
        for group, note in notes.groups.items():
            if group not in latest or latest[group].drilled < note.drilled:
                latest[group] = note
    yield from (Drilled(note.drilled, note.good) for note in latest.values())


def _directories_in(path: Path) -> list[Path]:
    try:
        return sorted(one for one in path.iterdir() if one.is_dir())
    except OSError:
        return []


def _mounts(path: str | None) -> Iterator[tuple[str, RunningMount | None]]:
    if path is None:
        yield from ((mount.datastore, mount) for mount in running_mounts())
        return
    mount = find(path)
    yield (path if mount is None else mount.datastore), mount
