"""What cannot be mirrored, and why: kept in the state for `status`, logged when it begins, changes and ends."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from mirrorfs.datastore.errors import DatastoreError
from mirrorfs.datastore.quoting import cut
from mirrorfs.objectstore.errors import ConfirmationFailed, StoreRejected
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.state.problems import Problem
from mirrorfs.steps import reach

log = logging.getLogger(__name__)


class CannotMirror(Exception):
    """Something in the datastore, or the store's answer about it, keeps one item from being mirrored.

    Attributes:
        name: the datastore path that is concerned.
        reason: a sentence for the administrator.
        chunks: digests whose repair may end the problem.
    """

    def __init__(self, name: str, reason: str, chunks: tuple[bytes, ...] = ()) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason
        self.chunks = chunks


class Problems:
    """The register of problems."""

    def __init__(self, state: CommittedState) -> None:
        self._state = state

    @asynccontextmanager
    async def noting(self, name: str) -> AsyncIterator[None]:
        """Have whatever keeps the work in it from being done become a problem of `name`, or of what it is about."""
        try:
            yield
        except CannotMirror as failure:
            await self.note(failure.name, failure.reason)
            if failure.name != name:
                await self.clear(name)
        except (StoreRejected, ConfirmationFailed, DatastoreError) as error:
            await self.note(name, str(error))
        except OSError as error:
            await self.note(name, f"it cannot be read: {error.strerror}")
        except (MemoryError, RecursionError, OverflowError) as error:
            # Whatever it was, it was asked for by this one input: the others are not to wait for it.
            log.exception("%s asks for more than this process can give", cut(name))
            await self.note(name, f"it asks for more than this process can give ({type(error).__name__})")

    async def note(self, name: str, reason: str) -> None:
        """Register why `name` cannot be mirrored; says so in the log unless that is known."""
        known = self._state.view(lambda transaction: transaction.problems.get(name))
        if known is not None and known.reason == reason:
            return
        problem = Problem(name, reason, known.since if known is not None else time.time())
        await self._state.apply(lambda transaction: transaction.problems.set(problem))
        reach("problem.recorded")
        log.error("%s cannot be mirrored: %s", name, reason)

    async def clear(self, name: str) -> None:
        """Register that all is well with `name`."""
        if self._state.view(lambda transaction: transaction.problems.get(name)) is None:
            return
        await self._state.apply(lambda transaction: transaction.problems.clear(name))
        reach("problem.cleared")
        log.info("%s is all right again", name)

    def names(self, below: str = "") -> list[str]:
        """Return the names with problems, of those that lie in the directory `below`."""
        names = [problem.name for problem in self._state.view(lambda transaction: list(transaction.problems.all()))]
        directory = f"{below}/" if below else ""
        return [name for name in names if name.startswith(directory) and name != f"{below}/"]
