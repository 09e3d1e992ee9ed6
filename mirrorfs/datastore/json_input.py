"""JSON that others wrote: read within bounds of its size, depth and number of values.

The bounds are looked at before anything is made of it: a list in a list takes 50 times its text in memory.
"""

from __future__ import annotations

import json
import re
import threading

from mirrorfs.datastore.errors import DatastoreError, contained

LARGEST_DEPTH = 32
MOST_VALUES = 100_000

# A string, whole or up to where the text breaks off (then without the group), or what structures are made of.
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+("?)|[\[\]{},]', re.DOTALL)
# PBS has numbers of 64 bits. What is converted digit by digit takes time that grows with the square of its length.
_MOST_DIGITS = 40
_LARGE = 256 * 1024
_alone = threading.Lock()


class MalformedJSON(DatastoreError):
    """It is not JSON, or not within the bounds; the message goes on with what was said before."""


def parse_json(data: bytes, *, maximum_size: int, most_values: int = MOST_VALUES) -> object:
    """Read JSON of at most ``maximum_size`` bytes and ``most_values`` values, nested to LARGEST_DEPTH at most.

    Raises MalformedJSON. Large ones are read one at a time, whatever number of threads ask.
    """
    if len(data) > maximum_size:
        raise MalformedJSON(f"is larger than {maximum_size} bytes")
    if len(data) <= _LARGE:
        return _parse(data, most_values)
    with _alone:
        return _parse(data, most_values)


def _parse(data: bytes, most_values: int) -> object:
    try:
        with contained("takes more memory than there is"):
            # Only UTF-8: the bounds are those of the text that is read in the end.
            text = data.decode("utf-8")
            _check_bounds(text, most_values)
            return json.loads(text, parse_int=_integer)
    except ValueError as error:
        raise MalformedJSON(f"is not JSON: {error}") from error


def _check_bounds(text: str, most_values: int) -> None:
    depth = values = strings = 0
    for token in _TOKEN.finditer(text):
        match text[token.start()]:
            case '"':
                if not token[1]:
                    raise MalformedJSON("is not JSON: a string does not end")
                strings += 1
            case "]" | "}":
                depth -= 1
            case ",":
                values += 1
            case _:
                depth += 1
                values += 1
        if depth > LARGEST_DEPTH:
            raise MalformedJSON(f"nests deeper than {LARGEST_DEPTH} levels")
        # A value is a string at most twice, by its name and by itself; else it is no JSON, and need not be read on.
        if values > most_values or strings > 2 * most_values + 1:
            raise MalformedJSON(f"has more than {most_values} values")


def _integer(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)
