"""What the PBS of this machine has in its configuration of datastores, for the commands that messages name."""

from __future__ import annotations

import os
import re

CONFIGURATION = "/etc/proxmox-backup/datastore.cfg"
_LIMIT_BYTES = 1024 * 1024

_header = re.compile(r"datastore:\s*([A-Za-z0-9_][A-Za-z0-9._-]*)")
_path = re.compile(r"\s+path\s+(\S.*?)")


def name_of_datastore(path: str, configuration: str = CONFIGURATION) -> str | None:
    """Return what the PBS of this machine calls the datastore in a directory; None if that cannot be told."""
    try:
        with open(configuration, "rb") as file:
            lines = file.read(_LIMIT_BYTES).decode(errors="surrogateescape").splitlines()
    except OSError:
        # No PBS runs here, or whoever asks may not read its configuration.
        return None
    name = None
    for line in lines:
        if line and not line[0].isspace():
            header = _header.fullmatch(line.rstrip())
            name = header and header[1]
        elif (found := _path.fullmatch(line.rstrip())) and os.path.normpath(found[1]) == os.path.normpath(path):
            return name
    return None
