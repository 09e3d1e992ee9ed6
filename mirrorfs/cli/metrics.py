"""`mirrorfs metrics`."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

import click
from prometheus_client import CollectorRegistry, generate_latest, start_http_server

from mirrorfs.cli.drilled import last_drills
from mirrorfs.cli.errors import Failure, require_root
from mirrorfs.cli.listening import ListenAddress
from mirrorfs.cli.settings_file import DATASTORE
from mirrorfs.filesystem.mount_table import real_path
from mirrorfs.output import say
from mirrorfs.replication.questions import Answer
from mirrorfs.supervision.metrics import Drilled, MirrorCollector
from mirrorfs.supervision.registry import RunningMount, find, running_mounts


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

    Exit codes: 0 they were printed, or served until Ctrl-C; 1 ADDRESS:PORT cannot be used; 2 wrong usage.
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
    # That is how whoever has called it by hand ends it.
    with contextlib.suppress(KeyboardInterrupt):
        while True:
            signal.pause()


def _drilled(answer: Answer) -> Iterator[Drilled]:
    # What is wrong with a note, 'mirrorfs drill' says. It costs no other number.
    notes, _ = last_drills(answer)
    yield from (Drilled(note.drilled, note.good) for note in notes.values())


def _mounts(path: str | None) -> Iterator[tuple[str, RunningMount | None]]:
    if path is None:
        yield from ((mount.datastore, mount) for mount in running_mounts())
        return
    mount = find(path)
    yield (path if mount is None else mount.datastore), mount
