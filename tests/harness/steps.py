"""Killing a mount or an uploader at a step that the product names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mirrorfs.steps import STEPS, VARIABLE

_OF_COMMANDS = ("recreation.", "insertion.", "into.", "handover.", "takeback.", "drill.")
MOUNT_STEPS = tuple(step for step in STEPS if not step.startswith(_OF_COMMANDS))
"""The steps that a mount or its uploader may reach; at the others the tests of single commands kill."""


@dataclass(frozen=True, slots=True)
class StepFile:
    """The file that arms a step; processes that are to obey it are started with `environment`."""

    path: Path

    @property
    def environment(self) -> dict[str, str]:
        """What has a process look for the file."""
        return {VARIABLE: str(self.path)}

    def arm(self, step: str, number: int = 1) -> None:
        """Have the process killed that reaches `step` for the `number`th time from now on."""
        prepared = self.path.with_name(f"{self.path.name}.new")
        prepared.write_text(f"{step} {number}")
        os.replace(prepared, self.path)

    def disarm(self) -> None:
        """Have nobody killed, unless it has happened already."""
        self.path.unlink(missing_ok=True)

    @property
    def fired(self) -> list[tuple[str, int]]:
        """The steps at which a process was killed so far, with its id."""
        try:
            lines = self.path.with_name(f"{self.path.name}.fired").read_text().splitlines()
        except FileNotFoundError:
            return []
        return [(step, int(pid)) for step, pid in (line.split() for line in lines)]
