"""What has been told, kept in the state directory, so that a restart of mirrorfs tells nothing twice."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection

from mirrorfs import own_files
from mirrorfs.database.directory import StateDirectory
from mirrorfs.replication.verdict import Word

log = logging.getLogger(__name__)


class ToldRecord:
    """The words that each way of telling has told and not taken back. Its methods block, and raise nothing.

    A way is known by whom it tells: another address has not been told anything yet.
    """

    def __init__(self, directory: StateDirectory) -> None:
        self._path = directory.told_file
        self._told: dict[str, list[str]] = {}

    def load(self, ways: Collection[str]) -> None:
        """Read it; what cannot be read is as if nothing had been told. Other ways than these are forgotten."""
        try:
            value = json.loads(own_files.read_file(self._path))
            told = {str(way): [Word(word).value for word in words] for way, words in value.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            log.warning("what has been told is not known (%s): what is wrong now is told once more", error)
            return
        self._told = {way: words for way, words in told.items() if way in ways}

    def told(self, way: str) -> list[Word]:
        """Return what a way of telling has told."""
        return [Word(word) for word in self._told.get(way, [])]

    def set(self, way: str, told: Collection[Word]) -> None:
        """Keep what a way of telling has told by now."""
        self._told[way] = sorted(word.value for word in told)
        try:
            with os.fdopen(own_files.new_file(f"{self._path}.tmp"), "w", encoding="utf-8") as file:
                json.dump(self._told, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(f"{self._path}.tmp", self._path)
        except OSError as error:
            log.error("what has been told cannot be noted, and may be told again after a restart: %s", error)
