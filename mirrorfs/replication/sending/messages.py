"""What goes between the uploader and its worker processes: lines of JSON, believed no more than they have to be."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mirrorfs.objectstore.capabilities import StoreCapabilities
from mirrorfs.objectstore.url import StoreOptions
from mirrorfs.output import LogFormat
from mirrorfs.replication.sending.attempt import Attempt

READY = b"ready\n"
"""What a worker says first, on each of its connections."""
LONGEST_LINE = 64 * 1024
_LARGEST_NUMBER = 2**32


class BadMessage(ValueError):
    """A line that the other side would not have sent."""


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """One line on a worker's standard input. Holds no secret: credentials come from boto3's usual chain.

    `root_descriptor` is the backing directory, `connections` are descriptors of sockets, of which each gets a thread;
    all of them are inherited, as is `throttle`, the memory of the rates that all keep together.
    `log_format` is a value of LogFormat.
    """

    bucket: str
    prefix: str
    store: StoreOptions
    root_descriptor: int
    connections: tuple[int, ...]
    verbose: bool = False
    log_format: str = LogFormat.TEXT.value
    throttle: int | None = None

    def encode(self) -> bytes:
        """Write as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> WorkerSettings:
        """Read what `encode` wrote."""
        value = json.loads(line)
        parts = {"store": StoreOptions(**value["store"]), "connections": tuple(value["connections"])}
        return cls(**{**value, **parts})


def encode_order(digests: Sequence[bytes], capabilities: StoreCapabilities) -> bytes:
    """Have chunks sent to a store that honours what these say."""
    honoured = [
        capabilities.rejects_wrong_crc32c,
        capabilities.rejects_wrong_md5,
        capabilities.put_returns_crc32c,
        capabilities.head_returns_crc32c,
        capabilities.etag_is_md5,
    ]
    return _line({"digests": [digest.hex() for digest in digests], "honoured": honoured})


def decode_order(line: bytes) -> tuple[list[bytes], StoreCapabilities]:
    """Read what `encode_order` wrote; of the capabilities what concerns the putting of new objects."""
    order = json.loads(line)
    return [bytes.fromhex(digest) for digest in order["digests"]], StoreCapabilities(*order["honoured"])


def encode_attempts(attempts: Sequence[Attempt]) -> bytes:
    """Tell what came of the first chunks of an order."""
    return _line([[attempt.began, attempt.size, attempt.crc32c] for attempt in attempts])


def decode_attempts(line: bytes, most: int) -> list[Attempt]:
    """Read what `encode_attempts` wrote. Raises BadMessage, also where it is not of one to `most` chunks."""
    try:
        entries = json.loads(line)
    except (ValueError, RecursionError):
        raise BadMessage(f"no JSON: {line[:100]!r}") from None
    if not isinstance(entries, list) or not 1 <= len(entries) <= most:
        raise BadMessage(f"not what was asked for: {line[:100]!r}")
    return [_attempt(entry) for entry in entries]


def _attempt(entry: object) -> Attempt:
    match entry:
        case [bool(began), int(size), int(crc32c)] if 0 <= size < _LARGEST_NUMBER and 0 <= crc32c < _LARGEST_NUMBER:
            return Attempt(began, size, crc32c)
    raise BadMessage(f"no attempt: {str(entry)[:100]}")


def _line(value: Any) -> bytes:  # noqa: ANN401
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
