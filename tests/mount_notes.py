"""What killed mounts leave in /run: a note each, which mirrorfs replaces at the next mount of the same directory."""

from __future__ import annotations

import json
from pathlib import Path

from mirrorfs.database.directory import RUNTIME_BASE


def drop_notes_of_ended_mounts() -> None:
    """Remove the notes of mounts whose process and datastore are gone: nobody will mount these again."""
    for note in Path(RUNTIME_BASE).glob("*.json"):
        try:
            mount = json.loads(note.read_bytes())
            is_gone = not Path(mount["datastore"]).exists() and not Path(f"/proc/{mount['pid']}").exists()
        except (OSError, ValueError, KeyError):
            # Somebody else's, or already removed, or of a mount that hangs.
            continue
        if is_gone:
            note.unlink(missing_ok=True)
