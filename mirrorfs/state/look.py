"""The state for whoever only looks: live, dead or a copy; nothing is written, no lock is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, TypeVar, cast

from mirrorfs.database.errors import DatabaseError
from mirrorfs.database.look import Look
from mirrorfs.state.state import DATABASES, FORMAT_VERSION, State, StateTransaction

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

Result = TypeVar("Result")


class LookedAtState(State):
    """A state that nobody can change by this object. An uploader may change it meanwhile: nothing in it is disturbed,
    and each answer is as of its own moment.
    """

    def __init__(self, directory: str) -> None:
        """Open the state in `directory`. Raises what Look raises; DatabaseError also if it is something else."""
        self._directory = directory
        self._look = Look(directory, format_version=FORMAT_VERSION)
        names = self._look.names()
        if names and not set(DATABASES) & set(names):
            self._look.close()
            raise DatabaseError(f"{directory} holds no state of mirrorfs: what it holds is called {names[0]!r}")

    def view(self, work: Callable[[StateTransaction], Result]) -> Result:
        """Run `work` on what the state holds now. Raises DatabaseCorrupt where that cannot be read."""
        databases = {name: cast("Database", name) for name in DATABASES}
        with self._said_to_be_damaged():
            return work(StateTransaction(cast("Transaction", self._look), databases))

    def update(self, work: Callable[[StateTransaction], Result]) -> NoReturn:
        """Refuse: nothing is changed by looking."""
        del work
        raise DatabaseError(f"the state in {self._directory} is only looked at, and cannot be changed")

    def close(self) -> None:
        """Close the state."""
        self._look.close()
