"""Group commit of the state: whoever has something to note shares one disk sync with all who wait at that moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import trio

from mirrorfs.state.state import State, StateTransaction
from mirrorfs.steps import reach

Result = TypeVar("Result")


@dataclass(slots=True)
class _Work:
    run: Callable[[StateTransaction], Any]
    finished: trio.Event = field(default_factory=trio.Event)
    result: Any = None
    error: BaseException | None = None


class CommittedState:
    """The state as the uploader uses it: what is known of datastore and bucket, and the only way to change that.

    `view` shows what is on stable storage. `run` must be running for `apply` to return.
    """

    def __init__(self, state: State) -> None:
        """Take over `state`, which nobody else may close."""
        self._state = state
        self._waiting: list[_Work] = []
        self._arrived = trio.Event()

    def view(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run `work` in a read transaction. Raises DatabaseError."""
        return self._state.view(work)

    async def apply(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run `work` in a write transaction; on return it is on stable storage.

        `work` runs in a thread, in the order of the calls, and may be run again after the database has grown.

        Raises:
            DatabaseError: the state could not be written; nothing of the work was stored.
        """
        entry = _Work(work)
        self._waiting.append(entry)
        self._arrived.set()
        await entry.finished.wait()
        if entry.error is not None:
            raise entry.error
        return cast(Result, entry.result)

    async def run(self) -> None:
        """Commit what comes, until cancelled; a failed commit ends it, since the state is then in doubt."""
        while True:
            await self._arrived.wait()
            self._arrived = trio.Event()
            batch, self._waiting = self._waiting, []
            try:
                results = await trio.to_thread.run_sync(self._commit, batch)
            except Exception as error:
                for entry in batch:
                    entry.error = error
                    entry.finished.set()
                raise
            reach("state.after-commit")
            for entry, result in zip(batch, results, strict=True):
                entry.result = result
                entry.finished.set()

    def _commit(self, batch: list[_Work]) -> list[Any]:
        reach("state.before-commit")
        return self._state.update(lambda transaction: [entry.run(transaction) for entry in batch])

    def close(self) -> None:
        """Close the state; what nobody has committed by then is not in it."""
        self._state.close()
