"""A wall clock that jumps: for the processes of a mirror only, never for this machine."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock_shim.c")


class WallClock:
    """The wall clock of all processes started with `environment`. Its files stand in a private directory."""

    def __init__(self, directory: Path) -> None:
        """Compile the library that is preloaded; raises CalledProcessError when there is no C compiler."""
        self._library = directory / "clock.so"
        self._offset_path = directory / "clock-offset"
        self.jumps = 0
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-O1", "-o", str(self._library), str(_SOURCE), "-ldl"],
            check=True,
            capture_output=True,
        )
        self._write(0.0)

    def environment(self) -> dict[str, str]:
        """What a process must be started with to live by this clock."""
        return {"LD_PRELOAD": str(self._library), "HARNESS_CLOCK_FILE": str(self._offset_path)}

    def jump_to(self, offset_seconds: float) -> None:
        """Set how far this clock is ahead of the machine's."""
        self.jumps += 1
        self._write(offset_seconds)

    def set_right(self) -> None:
        """Let it show the machine's time again."""
        self._write(0.0)

    def _write(self, offset: float) -> None:
        # In place: the running processes have it mapped.
        descriptor = os.open(self._offset_path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(descriptor, struct.pack("<d", offset), 0)
        finally:
            os.close(descriptor)
