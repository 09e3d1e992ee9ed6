"""The disks of a world, one for the datastore and one for the mirror's state, and the path at which PBS works."""

from __future__ import annotations

import os
import random
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Self

from tests.harness.fault_disk import FaultDisk

_DATA_BYTES = 256 * 1024**2
_STATE_BYTES = 96 * 1024**2


class Disks:
    """Use it in a with statement. `datastore` is made, and is a mount of its own from `backing`, so that what is
    behind a mirror over it stays to be seen."""

    def __init__(self, base: Path, datastore: Path) -> None:
        """`base` is a private directory."""
        self.data = FaultDisk(base / "data-disk", size=_DATA_BYTES)
        self.state = FaultDisk(base / "state-disk", size=_STATE_BYTES)
        self.datastore = datastore
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for disk in (self.data, self.state):
                stack.callback(disk.stop)
                disk.start()
            self.datastore.mkdir()
            stack.callback(_unmount, self.datastore)
            self.backing.mkdir()
            self._bind()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def backing(self) -> Path:
        """The datastore's directory itself, on its disk."""
        return self.data.mountpoint / "datastore"

    def sync(self) -> None:
        """Have all that was written to the datastore on its disk."""
        _run("sync", "--file-system", str(self.backing))

    def lose_power(self) -> None:
        """From here on nothing reaches the disks."""
        self.data.lose_power()
        self.state.lose_power()

    def restore_power(self, choice: random.Random) -> int:
        """Take what is mounted over the datastore away, and mount both disks again; gives how many writes are lost."""
        _unmount(self.datastore)
        lost = sum(disk.restore_power(choice).lost_writes for disk in (self.data, self.state))
        self._bind()
        return lost

    def make_room(self) -> None:
        """Neither is full any more."""
        self.state.free()
        self.data.free()

    def heal(self) -> None:
        """End all faults but a power cut."""
        self.make_room()
        for disk in (self.data, self.state):
            disk.heal_reads()
            disk.speed_up()

    def _bind(self) -> None:
        _run("mount", "--bind", str(self.backing), str(self.datastore))
        _run("mount", "--make-private", str(self.datastore))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=30)


def _unmount(path: Path) -> None:
    """Take every mount from a path, whatever state it is in."""
    while os.path.ismount(path) or _is_dead(path):
        done = subprocess.run(["umount", "--lazy", str(path)], capture_output=True, check=False, timeout=30)
        if done.returncode != 0:
            return


def _is_dead(path: Path) -> bool:
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
