"""What cannot be mirrored, and why: kept in the state for `status`, logged when it begins, changes and ends."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.quoting import cut
from mirrorfs.events import EventName, about
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.refused import RefusedObjects
from mirrorfs.state.problems import Problem
from mirrorfs.steps import reach

log = logging.getLogger(__name__)


class CannotMirror(Exception):
    """Something in the datastore, or the store's answer about it, keeps one item from being mirrored.

    Attributes:
        name: the datastore path that is concerned.
        reason: a sentence for the administrator.
        chunks: digests whose repair may end the problem.
        code: the store's word for why it refuses the object, "" where it is not the store that refuses it.
    """

    def __init__(self, name: str, reason: str, chunks: tuple[bytes, ...] = (), code: str = "") -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
        self.chunks = chunks
        self.code = code


class Problems:
    """The register of problems."""

    def __init__(self, state: CommittedState) -> None:
        self._state = state
        self.refused = RefusedObjects()

    def refusal(
        self,
        name: str,
        error: StoreRejected | ConfirmationFailed,
        *,
        size: int | None = None,
        chunks: tuple[bytes, ...] = (),
    ) -> CannotMirror:
        """Make what the store said of an object of `name` a failure; the same words of many are one condition.

        `size` is how many bytes the object has, where that is known.
        """
        if not isinstance(error, StoreRejected) or not error.code:
            return CannotMirror(name, str(error), chunks)
        words = f"{error} It is tried again after a growing pause"
        reason = self.refused.reason_of(error.code, words, size if error.concerns_size else None)
        return CannotMirror(name, reason, chunks, error.code)

    def foreseen(self, name: str, size: int, chunks: tuple[bytes, ...] = ()) -> CannotMirror | None:
        """Return why an object of `size` bytes would be refused as others were, None if it is to be tried."""
        found = self.refused.foresees(size)
        return None if found is None else CannotMirror(name, found[1], chunks, found[0])

    @asynccontextmanager
    async def noting(self, name: str) -> AsyncIterator[None]:
        """Have whatever keeps the work in it from being done become a problem of `name`, or of what it is about."""
        try:
            yield
        except CannotMirror as failure:
            await self.note(failure.name, failure.reason, failure.code)
            if failure.name != name:
                await self.clear(name)
        except (StoreRejected, ConfirmationFailed) as error:
            refusal = self.refusal(name, error)
            await self.note(name, refusal.reason, refusal.code)
        except DatastoreError as error:
            await self.note(name, str(error))
        except OSError as error:
            await self.note(name, f"it cannot be read: {error.strerror}")
        except (MemoryError, RecursionError, OverflowError) as error:
            # Whatever it was, it was asked for by this one input: the others are not to wait for it.
            log.exception("%s asks for more than this process can give", cut(name))
            await self.note(name, f"it asks for more than this process can give ({type(error).__name__})")

    async def note(self, name: str, reason: str, code: str = "") -> None:
        """Register why `name` cannot be mirrored; says so in the log unless that is known.

        `code` is that of a CannotMirror. What the store refuses for one reason has one line in the log.
        """
        is_told = bool(code) and not self.refused.add(code, name)
        known = self._state.view(lambda transaction: transaction.problems.get(name))
        if known is not None and known.reason == reason:
            return
        problem = Problem(name, reason, known.since if known is not None else time.time())
        await self._state.apply(lambda transaction: transaction.problems.set(problem))
        reach("problem.recorded")
        if not is_told:
            log.error("%s cannot be mirrored: %s", name, reason, extra=about(EventName.PROBLEM, name=name))

    async def clear(self, name: str) -> list[str]:
        """Register that all is well with `name`; returns those that may be well now because of that."""
        was_refused = name in self.refused
        others = self.refused.remove(name)
        if self._state.view(lambda transaction: transaction.problems.get(name)) is None:
            return others
        await self._state.apply(lambda transaction: transaction.problems.clear(name))
        reach("problem.cleared")
        if not was_refused:
            log.info("%s is all right again", name, extra=about(EventName.PROBLEM_ENDED, name=name))
        return others

    def names(self, below: str = "") -> list[str]:
        """Return the names with problems, of those that lie in the directory `below`."""
        names = [problem.name for problem in self._state.view(lambda transaction: list(transaction.problems.all()))]
        directory = f"{below}/" if below else ""
        return [name for name in names if name.startswith(directory) and name != f"{below}/"]
