"""The machine on which a mirror runs: it is mounted and killed here, and the machine's own failures excuse what fails
because of them."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress

from tests.harness.disks import Disks
from tests.harness.mirror import Mirror
from tests.harness.statistics import Statistics
from tests.harness.steps import StepFile
from tests.harness.wall_clock import WallClock

_END_SECONDS = 60.0

REMOVALS_OPTION = "--allow-removals"
QUESTIONS = "mounts that asked whether removals were meant"
_POWER = "power"


class WorldEnded(Exception):
    """The world cannot go on; why was counted as a violation."""


@contextmanager
def _stopped(pid: int | None) -> Iterator[None]:
    if pid is None:
        yield
        return
    try:
        # It may just have been killed, by a step for one.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        yield
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


class Machine:
    """Holds one mirror, whose processes live with `disks`, `clock` and `steps`. One thread drives it, another may kill
    the mount or cut the power meanwhile."""

    def __init__(self, disks: Disks, clock: WallClock, steps: StepFile, mirror: Mirror, statistics: Statistics) -> None:
        self.disks, self.clock, self.steps, self.mirror = disks, clock, steps, mirror
        self._statistics = statistics
        self._trouble: set[str] = set()
        self._killed_mount = False
        self._fired_before = 0

    # -- the mount -----------------------------------------------------------------------------------------

    def mount(self) -> None:
        """Mount, unless it is. A mount that cannot be made breaks P2, unless a fault excuses it; raises WorldEnded."""
        if self.mirror.is_alive():
            return
        self._killed_mount = False
        sentence = self._mount_as_meant()
        if sentence is None:
            return
        if self._trouble or self.has_a_step_fired:
            # The state disk may be full, or a step have killed the process; both are over now.
            self.disarm_step()
            self.disks.make_room()
            self._trouble.clear()
            sentence = self._mount_as_meant()
        if sentence is not None:
            self._statistics.violate([f"P2 the mount fails: {sentence}"])
            raise WorldEnded(sentence)

    def mount_as_asked_for(self, answer: str | None) -> bool:
        """Mount anew, and say that removals are meant, if that is what `answer` asks; whether it was."""
        if answer is None or REMOVALS_OPTION not in answer:
            return False
        # The doubt came when the bucket had been read: the mount stands, and waits for an administrator.
        self.mirror.umount()
        self.mount()
        return True

    def _mount_as_meant(self) -> str | None:
        """Mount; when most snapshots are gone and no journal tells why, the mount asks, and it was meant."""
        sentence = self.mirror.mount()
        if sentence is None or REMOVALS_OPTION not in sentence:
            return sentence
        self._statistics.checks[QUESTIONS] += 1
        return self.mirror.mount(REMOVALS_OPTION)

    def kill_mount(self) -> None:
        """Kill the filesystem process; what is under way through it fails, and may."""
        self._killed_mount = True
        self.mirror.kill_mount()

    @contextmanager
    def without_mirror(self) -> Iterator[None]:
        """Nothing is mounted while this lasts; mounts again at the end. Raises WorldEnded."""
        sentence = self.mirror.umount() if self.mirror.is_alive() else None
        # One that others have unmounted may be about to end.
        if sentence is not None and not self.mirror.ends_within(_END_SECONDS):
            self._statistics.violate([f"P4 the mount cannot be taken away: {sentence}"])
            raise WorldEnded(sentence)
        self.mirror.detach_dead()
        yield
        self.mount()

    def uploader_stopped(self) -> AbstractContextManager[None]:
        """The uploader gets no processor time while this lasts."""
        return _stopped(self.mirror.uploader_pid())

    def filesystem_process_stopped(self) -> AbstractContextManager[None]:
        """The filesystem process gets no processor time while this lasts."""
        return _stopped(self.mirror.mount_pid())

    # -- faults --------------------------------------------------------------------------------------------

    @contextmanager
    def trouble(self, reason: str) -> Iterator[None]:
        """While this lasts, operations may fail: the disk itself does."""
        self._trouble.add(reason)
        try:
            yield
        finally:
            self._trouble.discard(reason)

    def excuses_failure(self) -> bool:
        """Whether what fails now may: the disk does, or an armed step, or we, have killed the filesystem process."""
        return bool(self._trouble) or self._killed_mount or not self.mirror.is_alive()

    def disarm_step(self) -> None:
        """Arm nothing any more, and count the steps that have killed."""
        self.steps.disarm()
        for step, _ in self.steps.fired[self._fired_before :]:
            self._statistics.count_fault(f"killed at step {step}")
            self._fired_before += 1

    @property
    def has_a_step_fired(self) -> bool:
        """Whether one has killed since the last `disarm_step`."""
        return len(self.steps.fired) > self._fired_before

    def calm(self) -> None:
        """End all faults of the machine."""
        self.disarm_step()
        self.clock.set_right()
        self.disks.heal()
        self._trouble.clear()

    # -- power ---------------------------------------------------------------------------------------------

    def lose_power(self) -> None:
        """The moment of a power cut: from here on nothing reaches the disks."""
        self._trouble.add(_POWER)
        self._killed_mount = True
        self.disks.lose_power()

    @property
    def has_power(self) -> bool:
        """Whether the disks take writes."""
        return _POWER not in self._trouble

    def restore_power(self, choice: random.Random) -> None:
        """Everything ends, what was not on the disks is gone in part or as a whole, and the machine boots."""
        self.mirror.kill_all()
        self._statistics.count_fault("power cut: writes lost", self.disks.restore_power(choice))
        self._pretend_another_boot()
        self._trouble.discard(_POWER)
        self._statistics.count_fault("power cut")

    def _pretend_another_boot(self) -> None:
        note = self.mirror.state / "journal" / "session.json"
        try:
            session = json.loads(note.read_text())
        except (FileNotFoundError, ValueError):
            return
        note.write_text(json.dumps({**session, "boot_id": "00000000-0000-4000-8000-000000000000"}))
