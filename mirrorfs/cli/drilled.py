"""When each group of a mirror was restored for a trial last, by hand or by the service's timer."""

from __future__ import annotations

from pathlib import Path

from mirrorfs.cli.drill import NOTES_DIRECTORY
from mirrorfs.database.directory import DEFAULT_BASE
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.recovery.drill_report import DrillNotes, Note
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.replication.questions import Answer

# Where 'mirrorfs install' has the timer's drills keep their reports, beside each other.
_REPORTS = f"{DEFAULT_BASE}/reports"


def last_drills(answer: Answer) -> tuple[dict[str, Note], str | None]:
    """Return the last note of each group, by its path, and what is wrong with notes that cannot be read.

    `answer` is the mirror's to `status`.
    """
    latest: dict[str, Note] = {}
    problem = None
    for directory in (Path(NOTES_DIRECTORY), *_directories_in(Path(_REPORTS))):
        notes = DrillNotes(directory, StoreAddress(answer["bucket"], answer["prefix"]))
        try:
            notes.load()
        except RestoreError as error:
            problem = str(error)
            continue
        for group, note in notes.groups.items():
            if group not in latest or latest[group].drilled < note.drilled:
                latest[group] = note
    return latest, problem


def _directories_in(path: Path) -> list[Path]:
    try:
        return sorted(one for one in path.iterdir() if one.is_dir())
    except OSError:
        return []
