"""A local user without rights who does what he can to those who use the mount, and to those who read of it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.harness.accidents import accident, some_operations
from tests.harness.world import World

# Nobody's, on any machine.
HOSTILE_UID = 61001
_PLACE = "foreign-everybody"
_PROGRAM = Path(__file__).with_name("hostile_program.py").read_text()
# Any interpreter that every user may run: that of the tests may lie where only root may go.
_PYTHON = os.path.realpath(sys.executable)
_PATIENCE_SECONDS = 60.0
_CUT_OFF = "records are missing here: they could not be written"
_RECORD = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (mount|uploader|worker) [A-Z]+ ")


@dataclass(frozen=True, slots=True)
class Deeds:
    """What he has done: names made, files and directories held open, what was refused, and what he should not have
    been able to do."""

    made: int
    held: int
    refused: int
    reached: tuple[str, ...]


class HostileUser:
    """His process, while this is entered: it acts in a directory that everybody may write to, and holds what it got."""

    def __init__(self, place: Path, seed: int) -> None:
        # The directory is his by the descriptor alone: the way to it may be closed to him.
        self._process = subprocess.Popen(
            [_PYTHON, "-I", "-S", "-c", _PROGRAM, str(seed)],
            cwd=place,
            user=HOSTILE_UID,
            group=HOSTILE_UID,
            extra_groups=[],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def deeds(self) -> Deeds | None:
        """Wait until he holds what he could get; None if he was cut short, as by a mount that was killed."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            return None
        told: dict[str, Any] = json.loads(line)
        return Deeds(told["made"], told["held"], told["refused"], tuple(told["reached"]))

    def __enter__(self) -> HostileUser:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()


@accident(weight=4)
def hostile_user(world: World, choice: random.Random) -> None:
    """PBS must not notice, and whoever reads status and log must not be deceived."""
    place = world.datastore / _PLACE
    seed = choice.randrange(2**32)
    if not world.perform("place of everybody", [], lambda: _make_place(place), patience=_PATIENCE_SECONDS):
        return
    with HostileUser(place, seed) as user:
        deeds = user.deeds()
        some_operations(world, choice)
        world.statistics.violate(what_is_not_clean(world))
    if deeds is not None:
        world.statistics.violate(f"P4 a hostile user could {deed}" for deed in deeds.reached)
        world.statistics.count_fault("hostile user")
        world.statistics.checks["names made by a hostile user"] += deeds.made
        world.statistics.checks["files held open by a hostile user"] += deeds.held
        world.statistics.checks["attempts of a hostile user refused"] += deeds.refused
    if choice.random() < 0.5:
        some_operations(world, choice)
    world.perform("removal of what a hostile user left", [], lambda: shutil.rmtree(place), patience=_PATIENCE_SECONDS)


def _make_place(place: Path) -> None:
    place.mkdir(exist_ok=True)
    place.chmod(0o1777)


def what_is_not_clean(world: World) -> Iterator[str]:
    """What status and log show that steers a terminal, or is no record and looks like one."""
    world.statistics.checks["status and log seen to be clean"] += 1
    done = world.mirror.run("status", str(world.datastore))
    # Where a power cut has taken what was not yet on the disk, a file has zeros, and half lines around them.
    log = re.sub(r"[^\n]*\0[^\n]*", "", world.mirror.log)
    for name, text in (("status", done.stdout + done.stderr), ("log", log)):
        yield from (f"{name} shows {line!r}" for line in text.split("\n") if not is_clean(line))
    for line, following in pairwise([*log.split("\n"), ""]):
        # Records and what is indented below them; what libfuse itself says, and the harness of its variations.
        is_clean_line = _RECORD.match(line) or line.startswith((" ", "fuse:", "mutation "))
        # What a full disk has cut off is followed by a record that says so.
        is_cut_off = _RECORD.match(following) and following.endswith(_CUT_OFF)
        if line and not (is_clean_line or is_cut_off):
            yield f"the log has a line that is no record: {line!r}"
    told = world.mirror.run("status", str(world.datastore), "--json").stdout
    if told and not told.isascii():
        yield "the JSON of status is not ASCII"


def is_clean(line: str) -> bool:
    """Whether a line can be shown: no control or format characters, no separators but blanks."""
    return all(unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in line)
