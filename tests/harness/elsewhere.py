"""Another machine: what runs there has another host name, and sees the same disks."""

from __future__ import annotations

import subprocess

from tests.harness.mirror import PROGRAM, Mirror

HOST = "clone"
_SCRIPT = f'hostname {HOST} && exec "$0" "$@"'
_COMMAND_SECONDS = 180.0


def run_elsewhere(mirror: Mirror, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a command of mirrorfs as if this machine were called HOST. Raises subprocess.TimeoutExpired."""
    return subprocess.run(
        ["unshare", "--uts", "sh", "-c", _SCRIPT, *PROGRAM, *arguments],
        env=mirror.environment(),
        capture_output=True,
        text=True,
        timeout=_COMMAND_SECONDS,
        check=False,
        stdin=subprocess.DEVNULL,
    )
