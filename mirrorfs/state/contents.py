"""What the state remembers about the objects below `.cnt`: manifests, indexes, blobs and what groups have."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mirrorfs.state.entries import Entries, fields_form, path_key

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

_CONTENTS = b"contents"
DATABASES = (_CONTENTS,)


@dataclass(frozen=True, slots=True)
class ContentState:
    """What is known of an object below `.cnt`: a PUT was begun, or, if `confirmed`, size and checksum are as said."""

    path: str
    size: int
    crc32c: int
    confirmed: bool


_FORM = fields_form(ContentState)


class ContentRecords:
    """What is known of the objects below `.cnt`, by datastore path, inside one transaction of the state."""

    def __init__(self, transaction: Transaction, databases: Mapping[bytes, Database]) -> None:
        self._entries = Entries(transaction, databases[_CONTENTS], _FORM)

    def get(self, path: str) -> ContentState | None:
        """Tell what is known of the object of a datastore path."""
        return self._entries.get(path_key(path))

    def intend(self, paths: Iterable[str]) -> None:
        """Note that objects are about to be PUT or deleted; what was confirmed of them before holds no more."""
        for path in paths:
            self._entries.put(path_key(path), ContentState(path, 0, 0, False))

    def doubt_if_still(self, known: ContentState) -> bool:
        """Note that an object may have another content, if all that is known of it is `known`; tells whether it is."""
        if self.get(known.path) != known:
            return False
        self.intend([known.path])
        return True

    def confirm(self, path: str, size: int, crc32c: int) -> None:
        """Note that the store holds the object with this size in bytes and this checksum."""
        self._entries.put(path_key(path), ContentState(path, size, crc32c, True))

    def forget(self, paths: Iterable[str]) -> None:
        """Note that the objects are gone."""
        for path in paths:
            self._entries.delete(path_key(path))

    def all(self) -> Iterator[ContentState]:
        """Yield what is known of each object."""
        return self._entries.all()

    def below(self, path: str) -> Iterator[ContentState]:
        """Yield what is known of the objects whose path is `path` or lies in it; all if it is empty."""
        return self._entries.below(path, lambda content: content.path) if path else self.all()

    def after(self, path: str, maximum: int) -> list[ContentState]:
        """Return what is known of up to `maximum` objects that come after `path`, in the order of their keys here."""
        return [content for _, content in self._entries.after(path_key(path) if path else b"", maximum)]

    def count(self) -> int:
        """Count the objects known."""
        return self._entries.count()

    def forget_bucket(self) -> None:
        """Forget all objects."""
        self._entries.clear()
