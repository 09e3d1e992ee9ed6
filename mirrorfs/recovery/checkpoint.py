"""How far the reading of chunks has come, in a file, so that it can go on after an interruption."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mirrorfs import own_files
from mirrorfs.datastore.digests import DIGEST_SIZE
from mirrorfs.recovery.errors import RestoreError

_FORMAT = 1
_LARGEST_FILE = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """All chunks whose digests are not greater than `done_up_to` (hexadecimal, "" for none) have been looked at.

    `what` says what is verified, so that nothing else is gone on with; `salt` chooses the sample; `damaged` maps the
    digests of damaged chunks, in hexadecimal, to the reasons; `chunks` and `bytes` count what has been read.
    """

    what: Mapping[str, Any]
    salt: int = field(default_factory=lambda: random.SystemRandom().getrandbits(64))
    done_up_to: str = ""
    damaged: Mapping[str, str] = field(default_factory=dict)
    chunks: int = 0
    bytes: int = 0

    def advanced(self, done_up_to: str, damaged: Mapping[str, str], chunks: int, size: int) -> Checkpoint:
        """Return this with a later position."""
        return replace(self, done_up_to=done_up_to, damaged=dict(damaged), chunks=chunks, bytes=size)


class CheckpointFile:
    """Where a checkpoint is kept; None as path: nowhere."""

    def __init__(self, path: Path | None, what: Mapping[str, Any]) -> None:
        self._path = path
        self._what = what

    def load(self) -> Checkpoint:
        """Return what was saved, or a new beginning where nothing was.

        Raises:
            RestoreError: the file is none of ours, or is about something else.
        """
        if self._path is None:
            return Checkpoint(self._what)
        try:
            with open(own_files.open_file(str(self._path)), "rb") as file:
                data = file.read(_LARGEST_FILE)
        except FileNotFoundError:
            return Checkpoint(self._what)
        except OSError as error:
            raise RestoreError(f"cannot go on from {self._path}: {error.strerror}.") from error
        return self._parsed(data)

    def _parsed(self, data: bytes) -> Checkpoint:
        try:
            value = json.loads(data)
            if value.pop("format") != _FORMAT:
                raise RestoreError(f"{self._path} was written by another version of mirrorfs: begin with another file.")
            saved = Checkpoint(**value)
            bytes.fromhex(saved.done_up_to)
            if not _is_sound(saved):
                raise TypeError
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RestoreError(
                f"{self._path} is no file that an interrupted 'mirrorfs verify' has left: begin with another file."
            ) from error
        if saved.what != self._what:
            raise RestoreError(
                f"{self._path} is about another verification ({_described(saved.what)}): give the same URL and "
                "options, or begin with another file."
            )
        return saved

    def save(self, checkpoint: Checkpoint) -> None:
        """Save it in place of the one before, at once or not at all. Raises RestoreError."""
        if self._path is None:
            return
        draft = f"{self._path}.new"
        try:
            with open(own_files.new_file(draft), "w", encoding="utf-8") as file:
                json.dump({"format": _FORMAT, **asdict(checkpoint)}, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(draft, self._path)
        except OSError as error:
            raise RestoreError(f"cannot save in {self._path} how far it has come: {error.strerror}.") from error

    def remove(self) -> None:
        """Take the file away: everything has been looked at."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)


def _is_sound(saved: Checkpoint) -> bool:
    """Whether the parts are of the kinds that were saved."""
    return (
        all(isinstance(part, int) for part in (saved.salt, saved.chunks, saved.bytes))
        and isinstance(saved.what, dict)
        and isinstance(saved.damaged, dict)
        and all(len(bytes.fromhex(digest)) == DIGEST_SIZE for digest in saved.damaged)
        and all(isinstance(reason, str) for reason in saved.damaged.values())
    )


def _described(what: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in what.items() if value not in (None, [], False))
