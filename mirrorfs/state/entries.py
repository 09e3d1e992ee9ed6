"""How entries of the state are keyed, written and read: what all records, of whatever subject, have in common."""

from __future__ import annotations

import itertools
import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mirrorfs.database.errors import DatabaseCorrupt

if TYPE_CHECKING:
    from mirrorfs.database.environment import Database, Transaction

META = b"meta"
"""The database of single values, which the records of several subjects share."""

# LMDB keys end at 511 bytes; longer paths keep this much of themselves, so that a prefix still finds them.
LONGEST_PLAIN_KEY = 480
SHARED_KEY_PREFIX = 440

_TIME = struct.Struct(">d")

Result = TypeVar("Result")
Value = TypeVar("Value")


def path_key(path: str) -> bytes:
    """Return the key under which an entry about a path, or about an object's key, is found."""
    # LMDB knows no empty key; "." is no path in a datastore.
    encoded = path.encode("utf-8", "surrogateescape") or b"."
    if len(encoded) <= LONGEST_PLAIN_KEY:
        return encoded
    return encoded[:SHARED_KEY_PREFIX] + b"\0" + sha256(encoded).digest()[:24]


@dataclass(frozen=True, slots=True)
class Form(Generic[Value]):
    """How values of a kind are written as bytes and read from them; `read` raises DatabaseCorrupt."""

    write: Callable[[Value], bytes]
    read: Callable[[bytes], Value]


def json_form(make: Callable[[Any], Value], take: Callable[[Value], Any]) -> Form[Value]:
    """Return the form of values that are kept as JSON: `take` gives what json knows, `make` makes a value of it."""
    return Form(lambda value: json.dumps(take(value)).encode(), lambda stored: _decoded(stored, make))


def fields_form(kind: type[Value]) -> Form[Value]:
    """Return the form of a dataclass whose fields are all known to json."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return json_form(lambda stored: kind(**stored), lambda value: {name: getattr(value, name) for name in names})


def time_form(about: str) -> Form[float]:
    """Return the form of a Unix time; `about` says in the error what the entry is about."""
    return Form(_TIME.pack, lambda stored: float(unpacked(stored, _TIME, about)[0]))


BYTES: Form[bytes] = Form(bytes, bytes)
TEXT: Form[str] = Form(str.encode, bytes.decode)


def unpacked(stored: bytes, layout: struct.Struct, about: str) -> tuple[Any, ...]:
    """Return the fields of a packed entry. Raises DatabaseCorrupt."""
    if len(stored) != layout.size:
        raise DatabaseCorrupt(f"the state's entry for {about} is damaged: it has {len(stored)} bytes")
    return layout.unpack(stored)


def _decoded(stored: bytes, make: Callable[[Any], Result]) -> Result:
    try:
        return make(json.loads(stored))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatabaseCorrupt(f"an entry of the state is damaged: {error}") from error


class Entries(Generic[Value]):
    """The entries of one named database, inside one transaction; all that read them raise DatabaseCorrupt."""

    def __init__(self, transaction: Transaction, database: Database, form: Form[Value]) -> None:
        self._transaction = transaction
        self._database = database
        self._form = form

    def get(self, key: bytes) -> Value | None:
        """Return the value under a key, None if there is none."""
        stored = self._transaction.get(key, db=self._database)
        return None if stored is None else self._form.read(stored)

    def put(self, key: bytes, value: Value) -> None:
        """Store a value in place of what is under the key."""
        self._transaction.put(key, self._form.write(value), db=self._database)

    def delete(self, key: bytes) -> bool:
        """Delete what is under a key; tells whether there was anything."""
        return bool(self._transaction.delete(key, db=self._database))

    def clear(self) -> None:
        """Delete everything."""
        self._transaction.drop(self._database, delete=False)

    def count(self) -> int:
        """Count the entries, without reading them."""
        return int(self._transaction.stat(self._database)["entries"])

    def all(self) -> Iterator[Value]:
        """Yield every value, in the order of the keys."""
        for _, stored in self._transaction.cursor(db=self._database):
            yield self._form.read(stored)

    def starting_with(self, prefix: bytes) -> Iterator[tuple[bytes, Value]]:
        """Yield the keys that start with `prefix`, and their values."""
        cursor = self._transaction.cursor(db=self._database)
        if not cursor.set_range(prefix):
            return
        for key, stored in cursor:
            if not key.startswith(prefix):
                return
            yield key, self._form.read(stored)

    def below(self, path: str, path_of: Callable[[Value], str]) -> Iterator[Value]:
        """Yield the values under path keys whose path is `path` or lies in it."""
        for _, value in self.starting_with(path_key(path)[:SHARED_KEY_PREFIX]):
            found = path_of(value)
            if found == path or found.startswith(path + "/"):
                yield value

    def after(self, key: bytes, maximum: int) -> list[tuple[bytes, Value]]:
        """Return up to `maximum` keys that come after `key`, which may be empty, and their values."""
        cursor = self._transaction.cursor(db=self._database)
        # No key stands between the two.
        if not cursor.set_range(key + b"\0"):
            return []
        return [(found, self._form.read(stored)) for found, stored in itertools.islice(cursor, maximum)]

    def first(self, maximum: int) -> list[tuple[bytes, Value]]:
        """Return up to `maximum` keys with their values, as examples."""
        return self.after(b"", maximum)

    def key_starts(self, length: int) -> Iterator[bytes]:
        """Yield each start of `length` bytes that keys have, once, without looking at the keys between."""
        cursor = self._transaction.cursor(db=self._database)
        following = 0
        while following < 1 << 8 * length and cursor.set_range(following.to_bytes(length, "big")):
            start = cursor.key()[:length]
            yield start
            following = int.from_bytes(start, "big") + 1
