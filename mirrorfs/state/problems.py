"""What the state remembers about names in the datastore that cannot be mirrored: problems, and what PBS never made."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorfs.state.entries import BYTES, Entries, fields_form, path_key

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_PROBLEMS = b"problems"
_FOREIGN = b"foreign"
DATABASES = (_PROBLEMS, _FOREIGN)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something cannot be mirrored now: `name` is a path in the datastore, `reason` a sentence."""

    name: str
    reason: str
    since: float


_FORM = fields_form(Problem)


class ProblemRecords:
    """What cannot be mirrored now, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._entries = Entries(transaction, databases[_PROBLEMS], _FORM)

    def get(self, name: str) -> Problem | None:
        """Tell why `name` cannot be mirrored, None if nothing is known against it."""
        return self._entries.get(path_key(name))

    def set(self, problem: Problem) -> None:
        """Note why something cannot be mirrored."""
        self._entries.put(path_key(problem.name), problem)

    def clear(self, name: str) -> bool:
        """Note that all is well with `name`; tells whether a problem was known."""
        return self._entries.delete(path_key(name))

    def all(self) -> Iterator[Problem]:
        """Yield everything that cannot be mirrored now."""
        return self._entries.all()


class ForeignRecords:
    """The names in the datastore that PBS would not make, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._entries = Entries(transaction, databases[_FOREIGN], BYTES)

    def set(self, path: bytes, present: bool) -> None:
        """Note whether a name that PBS would not make stands in the datastore."""
        key = path_key(path.decode("utf-8", "surrogateescape"))
        if present:
            self._entries.put(key, path)
        else:
            self._entries.delete(key)

    def has(self, path: bytes) -> bool:
        """Tell whether a name is noted."""
        return self._entries.get(path_key(path.decode("utf-8", "surrogateescape"))) is not None

    def replace(self, paths: Iterable[bytes]) -> None:
        """Note all the names in the datastore that PBS would not make, and forget the earlier ones."""
        self._entries.clear()
        for path in paths:
            self.set(path, True)

    def examples(self, maximum: int) -> tuple[int, list[bytes]]:
        """Count the names that PBS would not make, and return up to `maximum` of them."""
        return self._entries.count(), [path for _, path in self._entries.first(maximum)]
