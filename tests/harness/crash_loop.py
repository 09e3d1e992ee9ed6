"""Does the uploader end again and again by an error that nobody expected? Whatever befell it, that breaks P2: it is
chance what is mirrored then."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

_FEWEST = 3
_END = re.compile(r"\S+ \S+ uploader CRITICAL ")
# Of a group of errors the lines stand behind bars, and it ends with a line of dashes.
_FRAME = " |+-"


def crash_loops(log: str) -> Iterator[str]:
    """Give a sentence for each error by which the uploader has ended several times, as the log of a mirror tells."""
    for error, count in Counter(_errors(log.splitlines())).items():
        if count >= _FEWEST:
            yield f"P2 crash loop: the uploader has ended {count} times by an error that nobody expected: {error}"


def _errors(lines: list[str]) -> Iterator[str]:
    """The last words of the traceback behind each record of an end."""
    for number, line in enumerate(lines):
        if not _END.match(line):
            continue
        error = line.partition("CRITICAL ")[2]
        for following in lines[number + 1 :]:
            if not following.startswith(" "):
                break
            error = following.strip(_FRAME) or error
        yield error
