"""What the uploader process is told by the process that starts it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

DEFAULT_PARALLEL = 8
DEFAULT_RETRY_CEILING = 60.0


@dataclass(frozen=True, slots=True)
class UploaderSettings:
    """One line of JSON on the uploader's standard input. Holds no secret: credentials come from boto3's usual chain.

    `root_descriptor` is the backing directory, opened before the mount covered it and inherited; `retry_ceiling` is the
    longest wait between two tries, in seconds.
    """

    datastore: str
    state_directory: str
    root_descriptor: int
    bucket: str
    prefix: str
    endpoint_url: str | None = None
    profile: str | None = None
    region: str | None = None
    parallel: int = DEFAULT_PARALLEL
    retry_ceiling: float = DEFAULT_RETRY_CEILING
    take_over: bool = False
    allow_removals: bool = False
    verbose: bool = False

    def encode(self) -> bytes:
        """Write as one line."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @classmethod
    def decode(cls, line: bytes) -> UploaderSettings:
        """Read what `encode` wrote."""
        return cls(**json.loads(line))
