"""Asking a mount to read its settings again, and hearing what has come of it: a signal, and a socket for the answer.

Whoever asks listens on a socket in the state directory (root's own) and sends SIGHUP; the mount tells what it did to
whoever listens there. So SIGHUP alone does the same, with the log as the only answer.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from dataclasses import asdict, dataclass

from mirrorfs import own_files
from mirrorfs.database.directory import StateDirectory
from mirrorfs.replication.control import listening_socket
from mirrorfs.replication.questions import connect
from mirrorfs.supervision.changes import Changes
from mirrorfs.supervision.registry import RunningMount, is_served

log = logging.getLogger(__name__)

_TELLING_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What has changed; or, with nothing changed, the sentence why the settings stay as they are."""

    changes: Changes
    error: str | None = None


class NoAnswer(Exception):
    """The mount has not told what came of it, or is gone."""


def ask_to_reload(mount: RunningMount, seconds: float) -> Outcome:
    """Have a mount read its settings again, and return what it says. Raises NoAnswer, OSError."""
    path = StateDirectory(mount.state_directory).reload_socket
    with listening_socket(path) as listening:
        try:
            _hang_up(mount)
            listening.settimeout(seconds)
            connection, _ = listening.accept()
        except (ProcessLookupError, TimeoutError):
            raise NoAnswer from None
        finally:
            own_files.take_away(path)
    with connection, connection.makefile("rb") as stream:
        connection.settimeout(_TELLING_SECONDS)
        return _parsed(stream.read())


def _hang_up(mount: RunningMount) -> None:
    """Send SIGHUP. Raises ProcessLookupError where the process is gone."""
    process = os.pidfd_open(mount.pid)
    try:
        # Looked at after the process is held, so that no other can have its number.
        if not is_served(mount):
            raise ProcessLookupError(mount.pid)
        signal.pidfd_send_signal(process, signal.SIGHUP)
    finally:
        os.close(process)


def answer_request(directory: StateDirectory, outcome: Outcome) -> None:
    """Tell whoever has asked by `ask_to_reload`, if anybody has; raises nothing."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_TELLING_SECONDS)
            connect(connection, directory.reload_socket)
            connection.sendall(json.dumps(asdict(outcome)).encode())
    except FileNotFoundError:
        log.debug("nobody has asked but by the signal")
    except OSError as error:
        log.warning("nobody can be told what came of reading the settings again: %s", error)


def _parsed(data: bytes) -> Outcome:
    try:
        value = json.loads(data)
    except ValueError:
        raise NoAnswer from None
    return Outcome(Changes(**{name: tuple(keys) for name, keys in value["changes"].items()}), value["error"])
