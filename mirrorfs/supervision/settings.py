"""What a mount is told by the command that starts it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field

from mirrorfs.chunkstore.place import Choice
from mirrorfs.replication.settings import UploaderSettings


@dataclass(frozen=True, slots=True)
class Invocation:
    """How `mirrorfs mount` was called: its arguments, and the working directory by which their paths are meant."""

    arguments: tuple[str, ...]
    directory: str


@dataclass(frozen=True, slots=True)
class NotifySettings:
    """Who is told when something is wrong with the mirror, and when.

    `command` is a program and its arguments, without a shell; `mail` an address. `behind_after`: the recovery point is
    told when it is older than so many seconds. `after`: what is so is told when it has been so for so many seconds.
    """

    command: tuple[str, ...] = ()
    mail: str | None = None
    behind_after: float = 86400.0
    after: float = 120.0

    @property
    def is_set(self) -> bool:
        """Whether there is anybody to tell."""
        return bool(self.command) or self.mail is not None


@dataclass(frozen=True, slots=True)
class MountSettings:
    """Everything a mount is told. Holds no secret.

    `uploader` carries the datastore (an absolute path without symlinks) and the state directory; its root descriptor is
    filled in when the datastore has been opened. `while_in_use`: mount although somebody has files of the datastore
    open for writing, whose changes will not be seen. `invocation`: how to find out what the settings are now, None if
    they cannot change.
    """

    mountpoint: str
    uploader: UploaderSettings
    mount_options: tuple[str, ...] = ()
    require_store: bool = False
    while_in_use: bool = False
    chunk_store: Choice = Choice.AUTO
    notify: NotifySettings = field(default_factory=NotifySettings)
    invocation: Invocation | None = None

    def encode(self) -> bytes:
        """Write as JSON."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> MountSettings:
        """Read what `encode` wrote."""
        value = json.loads(data)
        value["uploader"] = UploaderSettings.from_json(value["uploader"])
        value["mount_options"] = tuple(value["mount_options"])
        value["chunk_store"] = Choice(value["chunk_store"])
        value["notify"] = NotifySettings(**{**value["notify"], "command": tuple(value["notify"]["command"])})
        if value["invocation"] is not None:
            value["invocation"] = Invocation(tuple(value["invocation"]["arguments"]), value["invocation"]["directory"])
        return cls(**value)
