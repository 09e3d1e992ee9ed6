"""A Debian that systemd runs: booted by systemd-nspawn(1), and heard and told by its own systemctl."""

from __future__ import annotations

import os
import select
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.service.debian import Debian, run
from tests.service_manager import ServiceManager

_END_SECONDS = 60.0
# What a mirror needs, and systemd-nspawn allows no container by itself.
_CALLS = "fanotify_init fanotify_mark open_by_handle_at name_to_handle_at @mount"


def can_boot() -> bool:
    """Whether systems can be booted here."""
    return os.geteuid() == 0 and shutil.which("systemd-nspawn") is not None and os.path.isdir("/sys/fs/cgroup/systemd")


class System:
    """A booted Debian. It has the network and the processors of this machine, mounts and processes of its own."""

    def __init__(self, debian: Debian, container: subprocess.Popen[bytes]) -> None:
        self._container = container
        self._root = debian.root

    @property
    def _init(self) -> int:
        (child,) = run("pgrep", "--parent", str(self._container.pid)).split()
        return int(child)

    def path(self, path: str) -> Path:
        """A path in it, as others reach it: what is mounted in it is seen, too."""
        return Path(f"/proc/{self._init}/root") / path.lstrip("/")

    def run(self, *command: str) -> str:
        """Run a command in it that must succeed, and return its output."""
        entered = ("nsenter", f"--target={self._init}", "--mount", "--pid", "--uts", "--ipc", "--root", "--wd")
        clean = ("env", "--ignore-environment", "PATH=/usr/sbin:/usr/bin", "LANG=C.UTF-8")
        return run(*entered, *clean, "DEBIAN_FRONTEND=noninteractive", *command)

    def show(self, unit: str, key: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", f"--property={key}", unit).strip()

    def go_on(self, *units: str) -> None:
        """Return when units are up that systemd is starting: jobs for the same are one."""
        self.run("systemctl", "start", *units)

    def lose_power(self) -> None:
        """Kill all of it at once."""
        # The container ends with its first process, and the kernel takes all others with that.
        descriptor = os.pidfd_open(self._init)
        try:
            os.kill(self._init, 9)
            assert select.select([descriptor], [], [], _END_SECONDS)[0]
        finally:
            os.close(descriptor)
        self._container.wait(_END_SECONDS)


@contextmanager
def booted(debian: Debian) -> Iterator[System]:
    """Boot a Debian that has systemd, and return when it is up; at the end its power is cut, if it still runs."""
    debian.leave()
    # The name of a temporary directory may have what that of a machine may not.
    name = debian.root.parent.name.replace("_", "0")
    notify = debian.root.with_name("notify")
    notify.unlink(missing_ok=True)
    manager = ServiceManager(notify)
    with debian.root.with_name("boot.log").open("ab") as output:
        container = subprocess.Popen(
            [
                *("systemd-nspawn", "--quiet", f"--directory={debian.root}", "--boot", "--register=no", "--keep-unit"),
                *("--capability=all", f"--system-call-filter={_CALLS}", f"--machine={name}"),
                *("--resolv-conf=off", "--bind=/dev/fuse", "--notify-ready=yes"),
                # Newer ones run without it only where control groups have one hierarchy.
                "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NOTIFY_SOCKET": str(notify), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "0"},
        )
    system = System(debian, container)
    try:
        try:
            while "READY=1" not in manager.hear().splitlines():
                continue
        finally:
            # It tells more than anybody reads, and would wait for who does not.
            manager.close()
        yield system
    finally:
        if container.poll() is None:
            system.lose_power()
