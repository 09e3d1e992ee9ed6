"""How entries of the state are keyed and read."""

from __future__ import annotations

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any, TypeVar

from mirrorfs.database.errors import DatabaseCorrupt

# LMDB keys end at 511 bytes; longer paths keep this much of themselves, so that a prefix still finds them.
LONGEST_PLAIN_KEY = 480
SHARED_KEY_PREFIX = 440

Result = TypeVar("Result")


def decoded(stored: bytes, make: Callable[[Any], Result]) -> Result:
    """Make something of an entry's JSON. Raises DatabaseCorrupt."""
    try:
        return make(json.loads(stored))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DatabaseCorrupt(f"an entry of the state is damaged: {error}") from error


def path_key(path: str) -> bytes:
    """Return the key under which an entry about a path, or about an object's key, is found."""
    # LMDB knows no empty key; "." is no path in a datastore.
    encoded = path.encode("utf-8", "surrogateescape") or b"."
    if len(encoded) <= LONGEST_PLAIN_KEY:
        return encoded
    return encoded[:SHARED_KEY_PREFIX] + b"\0" + sha256(encoded).digest()[:24]
