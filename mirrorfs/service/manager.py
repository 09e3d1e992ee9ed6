"""Telling systemd what has changed, on a machine that it runs."""

from __future__ import annotations

import os
import subprocess

from mirrorfs.service import units

_SYSTEMCTL = "/usr/bin/systemctl"
_JOURNALCTL = "/usr/bin/journalctl"
_RUNS = "/run/systemd/system"
_SECONDS = 60.0


class ManagerFailed(Exception):
    """systemd could not be told; the message says what it answered."""


def is_running() -> bool:
    """Tell whether systemd runs this machine (sd_booted(3))."""
    return os.path.isdir(_RUNS)


def reload() -> None:
    """Have systemd read its units again. Raises ManagerFailed."""
    _systemctl("daemon-reload")


def stop_all_but_the_mount(name: str) -> None:
    """Stop the timers and the web page of one datastore. Raises ManagerFailed."""
    _systemctl("stop", *(units.instance(unit, name) for unit in (*units.TIMERS, units.PAGE)))


def state_of_units(lines: int) -> list[str]:
    """Return how it is with the units of mirrorfs and PBS, and so many lines of the journal. Raises ManagerFailed."""
    shown = _run(_SYSTEMCTL, "list-units", "--all", "--no-pager", "--full", "mirrorfs*", *units.PBS_UNITS)
    journal = _run(_JOURNALCTL, "--no-pager", f"--lines={lines}", "--output=short-iso", "--unit=mirrorfs*")
    return [*shown.splitlines(), *journal.splitlines()]


def _systemctl(*arguments: str) -> None:
    _run(_SYSTEMCTL, *arguments)


def _run(*command: str) -> str:
    shown = " ".join((os.path.basename(command[0]), *command[1:]))
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ManagerFailed(f"'{shown}' could not be run: {error}") from error
    if done.returncode != 0:
        raise ManagerFailed(f"'{shown}' failed: {done.stderr.strip()}")
    return done.stdout
