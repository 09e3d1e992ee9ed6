"""How far a state has come: with the journal, with taking in what was in the bucket, with comparing itself to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from mirrorfs.journal.journal import Position
from mirrorfs.state.entries import BYTES, META, Entries, fields_form

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_POSITION_KEY = b"position"
_ADOPTED_KEY = b"adopted"
_INSPECTING_KEY = b"inspecting"
_SET = b"1"

_POSITION = fields_form(Position)


class ProgressRecords:
    """How far the state has come, inside one transaction of it."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._position = Entries(transaction, databases[META], _POSITION)
        self._marks = Entries(transaction, databases[META], BYTES)

    def position(self) -> Position | None:
        """Tell how far the journal has been dealt with."""
        return self._position.get(_POSITION_KEY)

    def set_position(self, position: Position) -> None:
        """Note how far the journal has been dealt with."""
        self._position.put(_POSITION_KEY, position)

    def adopted(self) -> bool:
        """Tell whether what stood in the bucket before this state began has been taken into it."""
        return self._marks.get(_ADOPTED_KEY) is not None

    def set_adopted(self) -> None:
        """Note that the bucket's content has been taken in."""
        self._marks.put(_ADOPTED_KEY, _SET)

    def inspecting(self) -> bool:
        """Tell whether a comparison of this state with the bucket was begun and has not ended."""
        return self._marks.get(_INSPECTING_KEY) is not None

    def set_inspecting(self, inspecting: bool) -> None:
        """Note that a comparison of this state with the bucket begins, or that it has ended."""
        if inspecting:
            self._marks.put(_INSPECTING_KEY, _SET)
        else:
            self._marks.delete(_INSPECTING_KEY)

    def forget_bucket(self) -> None:
        """Note that nothing of the bucket is taken in or being compared."""
        self._marks.delete(_ADOPTED_KEY)
        self._marks.delete(_INSPECTING_KEY)
