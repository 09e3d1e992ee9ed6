"""Telling the service manager how it is with the mount: systemd's sd_notify(3) protocol, for units of Type=notify."""

from __future__ import annotations

import logging
import os
import socket

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
WATCHDOG = "WATCHDOG=1"

_MICROSECONDS = 1_000_000


class ServiceManager:
    """Whoever listens on NOTIFY_SOCKET; nobody, if the mount was not started by a service manager that does."""

    def __init__(self) -> None:
        """Take the variables out of the environment: processes that we start are not to speak for us."""
        self._address = os.environ.pop("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog_seconds(
            os.environ.pop("WATCHDOG_USEC", ""), os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        )
        """How long it waits for a WATCHDOG before it ends this process; None: it does not (sd_watchdog_enabled(3))."""

    def tell(self, state: str) -> None:
        """Send one state. Never blocks and raises nothing: the mount does not depend on being heard."""
        if not self._address:
            return
        # A leading @ stands for the zero byte of an abstract socket's name.
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.sendto(state.encode(), address)
        except OSError as error:
            log.warning("the service manager does not hear %s: %s", state, error)


def _watchdog_seconds(microseconds: str, process: str) -> float | None:
    if process != str(os.getpid()) or not (microseconds.isascii() and microseconds.isdecimal()):
        return None
    return int(microseconds) / _MICROSECONDS or None
