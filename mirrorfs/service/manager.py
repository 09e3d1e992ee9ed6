"""Telling systemd what has changed, on a machine that it runs."""

from __future__ import annotations

import os
import subprocess

from mirrorfs.service import units

_SYSTEMCTL = "/usr/bin/systemctl"
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


def stop_timers(name: str) -> None:
    """Stop the timers of one datastore. Raises ManagerFailed."""
    _systemctl("stop", *(units.instance(timer, name) for timer in units.TIMERS))


def _systemctl(*arguments: str) -> None:
    try:
        done = subprocess.run(
            [_SYSTEMCTL, *arguments], capture_output=True, text=True, errors="replace", check=False, timeout=_SECONDS
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ManagerFailed(f"'systemctl {' '.join(arguments)}' could not be run: {error}") from error
    if done.returncode != 0:
        raise ManagerFailed(f"'systemctl {' '.join(arguments)}' failed: {done.stderr.strip()}")
