"""How a mirror is brought to say that it is done: by waiting, and by what an administrator has to do meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

from tests.harness.administrator import Administrator
from tests.harness.machine import Machine
from tests.harness.statistics import Statistics

# What a store refused to delete is asked for again after an hour, if it does not say when it may be.
_UNTIL_ASKED_AGAIN = 3700.0
_WAVES_OF_REMOVALS = 5
_MENDED_BY_NOW = ("the store refuses it: ", "Input/output error")
_TIMES_TO_ASK_AGAIN = 12
_UNTIL_REQUEST_SECONDS = 30.0


class Completion:
    """For a mirror that no fault befalls any more. It gets `seconds` each time to become done.

    It may lock what it stores for `locked_for` seconds, and then does not ask for it sooner.
    """

    def __init__(
        self, machine: Machine, administrator: Administrator, statistics: Statistics, seconds: float, locked_for: float
    ) -> None:
        self._machine, self._mirror = machine, machine.mirror
        self._administrator, self._statistics, self._seconds = administrator, statistics, seconds
        self._until_asked_again = _UNTIL_ASKED_AGAIN + locked_for

    def reach(self) -> str | None:
        """Wait, and do what has to be done; None, or what the mirror says of why it is not done.

        More than one wave of removals may be held, since what is approved makes others go that were not held yet.
        """
        answer = self._wait()
        for _ in range(_WAVES_OF_REMOVALS):
            self._statistics.violate(self._administrator.look())
            if not self._administrator.held:
                break
            self._administrator.approve()
            answer = self._wait()
        if self._administrator.refused():
            self._ask_again_what_was_refused()
            answer = self._wait()
        return answer

    def _wait(self) -> str | None:
        answer = self._mirror.wait(self._seconds)
        if not self._mirror.is_alive() or (answer is not None and self._machine.has_a_step_fired):
            self._machine.mount()
            answer = self._mirror.wait(self._seconds)
        if self._machine.mount_as_asked_for(answer):
            answer = self._mirror.wait(self._seconds)
        if answer is not None and any(sentence in answer for sentence in _MENDED_BY_NOW):
            # Neither does any more: whoever has ended the cause says so, or waits until it is tried again.
            self._mirror.reconcile()
            answer = self._mirror.wait(self._seconds)
        return answer

    def _ask_again_what_was_refused(self) -> None:
        """Nothing is refused any more, but the mirror asks only when its clock says that it is time.

        While its clock is so far ahead no store takes its requests, so the clock is right again as soon as one was
        made; each time at least one thing that was refused is asked for again.
        """
        refused = self._administrator.refused()
        for _ in range(_TIMES_TO_ASK_AGAIN):
            self._machine.clock.jump_to(self._until_asked_again)
            reconciling = threading.Thread(target=self._mirror.reconcile)
            reconciling.start()
            self._wait_for_a_request(reconciling)
            self._machine.clock.set_right()
            reconciling.join()
            self._mirror.wait(self._seconds)
            refused = self._administrator.refused()
            if not refused:
                break
        self._statistics.checks["refused deletions asked for again"] += 1
        self._statistics.violate(
            f"P2 {refusal['name']}: not deleted when an hour and its lock were over: {refusal['reason']}"
            for refusal in refused
        )

    def _wait_for_a_request(self, reconciling: threading.Thread) -> None:
        """Until the store has refused one because of the clock, or it is plain that none is made."""
        deadline = time.monotonic() + _UNTIL_REQUEST_SECONDS
        while reconciling.is_alive() and time.monotonic() < deadline and self._is_store_up():
            reconciling.join(0.1)

    def _is_store_up(self) -> bool:
        store: dict[str, Any] = self._mirror.status().get("store", {"up": True})
        return bool(store["up"])
