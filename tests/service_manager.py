"""Runs units of systemd where no systemd runs: with the command, environment and rights that they name, and hears them.

What it does not do is filter system calls and address families.
"""

from __future__ import annotations

import shlex
import socket
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_HEARD_SECONDS = 120.0


@dataclass(frozen=True, slots=True)
class Unit:
    """What stands in a unit and its drop-ins, for one instance of it."""

    text: str
    instance: str

    def values(self, key: str) -> list[str]:
        """The words of all lines of a key."""
        pairs = [line.partition("=") for line in self.text.splitlines()]
        return [word.replace("%i", self.instance) for name, _, value in pairs if name == key for word in value.split()]

    def commands_before(self) -> list[list[str]]:
        """The commands that have to succeed before."""
        lines = self.text.replace("\\\n", " ").splitlines()
        commands = [line.removeprefix("ExecStartPre=") for line in lines if line.startswith("ExecStartPre=")]
        return [shlex.split(command.replace("$$", "$")) for command in commands]

    def command_after(self) -> list[str]:
        """The command that is run when it has ended, however it has."""
        lines = self.text.replace("\\\n", " ").splitlines()
        (command,) = (line.removeprefix("ExecStopPost=-") for line in lines if line.startswith("ExecStopPost="))
        return shlex.split(command.replace("$$", "$").replace("%i", self.instance))

    def rights(self) -> list[str]:
        """The command that runs another one with the unit's rights."""
        names = ",".join(f"+{word.removeprefix('CAP_').lower()}" for word in self.values("CapabilityBoundingSet"))
        return ["setpriv", "--no-new-privs", "--inh-caps=-all", f"--bounding-set=-all,{names}", "--"]


class ServiceManager:
    """Listens at a path for what services say of themselves, as sd_notify(3) has it."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(_HEARD_SECONDS)
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self, unit: Unit, environment: dict[str, str], log: IO[bytes], *, root: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start what the unit has, in a system of its own if there is a root. `environment` has NOTIFY_SOCKET."""
        begin = [*(["chroot", str(root)] if root else []), *unit.rights()]
        for command in unit.commands_before():
            subprocess.run([*begin, *command], env=environment, stderr=log, check=True)
        self.process = subprocess.Popen(
            [*begin, *unit.values("ExecStart")],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            umask=int(unit.values("UMask")[0], 8),
        )
        return self.process

    def hear(self) -> str:
        """What is said next."""
        return self._socket.recv(100).decode()

    def hear_that_it_is_ready(self) -> None:
        """Return when it says so; nothing that says so fails."""
        while (said := self.hear()) != "READY=1":
            assert said in ("WATCHDOG=1", "STOPPING=1"), said

    def hear_nothing(self, seconds: float) -> bool:
        """Whether it is silent for so long, after what it has said already."""
        self._socket.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                self._socket.recv(100)
        self._socket.settimeout(seconds)
        try:
            self._socket.recv(100)
        except TimeoutError:
            return True
        finally:
            self._socket.settimeout(_HEARD_SECONDS)
        return False

    def close(self) -> None:
        """End what it has started, and hear no more."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self._socket.close()


def environment_of(text: str) -> dict[str, str]:
    """What a file of an EnvironmentFile= sets."""
    lines = (line.strip() for line in text.splitlines())
    return {key: value for key, equals, value in (line.partition("=") for line in lines if line[:1] != "#") if equals}


def clean_environment() -> dict[str, str]:
    """What systemd gives each service."""
    return {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "LANG": "C.UTF-8"}
