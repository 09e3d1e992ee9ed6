"""Shell patterns of paths in a datastore, as commands take them: `*` and `?` also match `/`."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

from mirrorfs.datastore.errors import DatastoreError

_UNCLOSED = re.compile(r"\[[!]?\]?[^\]]*\Z")


class MalformedPattern(DatastoreError):
    """A pattern that cannot match what it is meant to; the message says why."""


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A pattern of whole paths relative to the datastore, such as `vm/10*`. Raises MalformedPattern when made."""

    text: str

    def __post_init__(self) -> None:
        if self.text.startswith("/"):
            raise MalformedPattern(
                f"{self.text!r} begins with '/': paths are relative to the datastore, as in 'vm/100/*'"
            )
        if _UNCLOSED.search(self.text):
            raise MalformedPattern(f"{self.text!r} has a '[' without its ']'")

    def compiled(self) -> re.Pattern[bytes]:
        """What fully matches the paths that are meant, as the kernel has them."""
        return re.compile(fnmatch.translate(self.text).encode("utf-8", "surrogateescape"), re.DOTALL)


def is_pattern(text: str) -> bool:
    """Whether a text has a sign that no name of a datastore has, and that means something in a pattern."""
    return any(sign in text for sign in "*?[")
