"""How a PBS is told of a datastore that was restored."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass

# pbs-api-types, ``DATASTORE_SCHEMA``: a safe identifier of 3 to 32 characters.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{2,31}")
_PLACEHOLDER = "NAME"


@dataclass(frozen=True, slots=True)
class Attachment:
    """What makes a directory a datastore of a PBS: a command (PBS 4, and 3.4), or an entry in a file (every PBS 3).

    `name` is a placeholder, and `is_named` false, where the name in the bucket is none that PBS takes.
    """

    name: str
    is_named: bool
    command: str
    entry: str


def attachment_of(path: str, name: str) -> Attachment:
    """How to attach the restored directory `path`, where it can be under the `name` that it has in the bucket."""
    name = name.rpartition("/")[2]
    is_named = _NAME.fullmatch(name) is not None
    name = name if is_named else _PLACEHOLDER
    path = os.path.abspath(path)
    command = f"proxmox-backup-manager datastore create {name} {shlex.quote(path)} --reuse-datastore true"
    return Attachment(name, is_named, command, f"datastore: {name}\n    path {path}\n")
