"""The report of a drill, as JSON for programs and as Markdown for whoever signs it; and the notes of when what was."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mirrorfs
from mirrorfs import own_files
from mirrorfs.datastore.names import GroupId
from mirrorfs.datastore.quoting import cut
from mirrorfs.objectstore.url import StoreAddress
from mirrorfs.output import printable
from mirrorfs.recovery.drill import DrillReport
from mirrorfs.recovery.errors import RestoreError
from mirrorfs.recovery.moment import format_moment
from mirrorfs.steps import reach

_FORMAT = 1
_MOST_PROBLEMS = 1000
_LONGEST_NAME = 80
_LONGEST_NOTES = 64 * 1024 * 1024
LISTING_COMMAND = "find . -type f ! -name .lock | LC_ALL=C sort | tr '\\n' '\\0' | xargs -0 sha256sum"
"""What prints, in a restored datastore, the listing whose SHA-256 the report has."""


def as_json(report: DrillReport) -> dict[str, Any]:
    """Return what the JSON report holds; the keys are in `mirrorfs drill --help`."""
    restore, read = report.restore, report.read
    return {
        "format": _FORMAT,
        "good": report.is_good,
        "url": report.url,
        "store": report.store,
        "host": socket.gethostname(),
        "version": mirrorfs.__version__,
        "began": format_moment(int(report.began)),
        "ended": format_moment(int(report.ended)),
        "selection": report.selection.described(),
        "failure": report.failure,
        "snapshots": [
            {"path": drilled.snapshot.path, "size": drilled.size, "problem": drilled.problem}
            for drilled in report.snapshots
        ],
        "problems": [{"path": problem.path, "reason": problem.reason} for problem in report.problems[:_MOST_PROBLEMS]],
        "problems_left_out": max(0, len(report.problems) - _MOST_PROBLEMS),
        "bytes_downloaded": None if restore is None else restore.bytes_downloaded,
        "chunks_downloaded": None if restore is None else restore.chunks_downloaded,
        "restore_seconds": round(report.restore_seconds, 3),
        "restore_bytes_per_second": None
        if restore is None
        else _rate(restore.bytes_downloaded, report.restore_seconds),
        "files_read": None if read is None else read.files,
        "chunks_read": None if read is None else read.chunks,
        "bytes_read": None if read is None else read.bytes,
        "read_seconds": round(report.read_seconds, 3),
        "listing_sha256": None if read is None else read.listing_sha256,
        "listing_command": LISTING_COMMAND,
    }


def _rate(size: int, seconds: float) -> int | None:
    return round(size / seconds) if seconds else None


def as_markdown(report: DrillReport) -> str:
    """Return the report as a page."""
    value = as_json(report)
    verdict = "Passed" if report.is_good else "FAILED"
    good = sum(drilled.problem is None for drilled in report.snapshots)
    lines = [
        f"# Restore drill of {report.url}: {verdict}",
        "",
        f"{good} of {len(report.snapshots)} snapshots were restored from the object store, read back from disk, and "
        "every byte checked against the checksums of their backups.",
        *(["", f"**It did not come to its end: {_cell(report.failure)}**"] if report.failure else []),
        "",
        "| | |",
        "| --- | --- |",
        *(f"| {name} | {_cell(text)} |" for name, text in _facts(value).items()),
        "",
        "## Snapshots",
        "",
        "| snapshot | bytes before compression | result |",
        "| --- | ---: | --- |",
        *(
            f"| {_cell(one['path'])} | {one['size']} | {_cell(one['problem'] or 'good')} |"
            for one in value["snapshots"]
        ),
        "",
        *_problem_lines(value),
        "The SHA-256 is that of the listing which this command prints in a datastore restored with the same selection:",
        "",
        f"    {LISTING_COMMAND}",
    ]
    return "\n".join(lines) + "\n"


def _row(*cells: object) -> str:
    return f"| {' | '.join(_cell(str(cell)) for cell in cells)} |"


def _facts(value: Mapping[str, Any]) -> dict[str, str]:
    rate = value["restore_bytes_per_second"]
    return {
        "restored by": f"mirrorfs {value['version']} on {value['host']}",
        "from": value["store"],
        "began (UTC)": value["began"],
        "ended (UTC)": value["ended"],
        "downloaded": f"{value['bytes_downloaded']} bytes, {value['chunks_downloaded']} chunks, in "
        f"{value['restore_seconds']:.1f} s" + ("" if rate is None else f" ({rate / 1e6:.1f} MB/s)"),
        "read back": f"{value['bytes_read']} bytes, {value['chunks_read']} chunks, {value['files_read']} other files, "
        f"in {value['read_seconds']:.1f} s",
        "SHA-256 of the listing": str(value["listing_sha256"]),
    }


def _problem_lines(value: Mapping[str, Any]) -> list[str]:
    if not value["problems"]:
        return []
    more = value["problems_left_out"]
    return [
        "## What failed",
        "",
        *(f"- {_cell(problem['path'])}: {_cell(problem['reason'])}" for problem in value["problems"]),
        *([f"- and {more} more"] if more else []),
        "",
    ]


def _cell(text: str | None) -> str:
    # What comes from a bucket must neither end a cell nor be taken for Markdown or HTML.
    shown = printable(str(text))
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>|#!" else character for character in shown)


def keep_report(directory: Path, report: DrillReport, address: StoreAddress, group: GroupId | None) -> Path:
    """Write both forms into a directory, which is made where it is missing, and return the name of the Markdown.

    Raises RestoreError.
    """
    base = f"drill-{_file_name(address.prefix)}{'' if group is None else '-' + _file_name(group.path)}"
    stem = name = f"{base}-{format_moment(int(report.began)).replace(':', '').replace('-', '')}"
    try:
        own_files.make_directory(str(directory))
        number = 1
        while os.path.lexists(directory / f"{name}.json"):
            # Two in one second.
            number += 1
            name = f"{stem}-{number}"
        _write(directory / f"{name}.md", as_markdown(report).encode())
        _write(directory / f"{name}.json", json.dumps(as_json(report), indent=2).encode() + b"\n")
    except OSError as error:
        raise RestoreError(f"The report could not be written into {directory}: {_reason(error)}.") from error
    reach("drill.report-written")
    return directory / f"{name}.md"


def _file_name(text: str) -> str:
    return text.replace("/", "-")[:_LONGEST_NAME]


def _write(path: Path, data: bytes) -> None:
    """Write a file at once or not at all."""
    draft = f"{path}.new"
    with os.fdopen(own_files.new_file(draft), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _reason(error: OSError) -> str:
    return str(error) if isinstance(error, own_files.NotOwn) else error.strerror or str(error)


@dataclass(frozen=True, slots=True)
class Note:
    """When (Unix time) a group was drilled last, and whether all was good."""

    drilled: float
    good: bool


class DrillNotes:
    """Which groups of a bucket were drilled when, so that each has its turn."""

    def __init__(self, directory: Path, address: StoreAddress) -> None:
        """They lie in `directory`, in a file for each bucket and name."""
        self._directory = directory
        self._path = directory / f"drilled-{address.bucket}-{_file_name(address.prefix)}.json"
        self._url = str(address)
        self._notes: dict[str, Note] = {}

    def load(self) -> None:
        """Read what was noted. Raises RestoreError if that is not ours."""
        try:
            with open(own_files.open_file(str(self._path)), "rb") as file:
                value = json.loads(file.read(_LONGEST_NOTES))
            if value["format"] != _FORMAT or value["url"] != self._url:
                raise ValueError
            self._notes = {
                str(path): Note(float(note["drilled"]), bool(note["good"])) for path, note in value["groups"].items()
            }
        except FileNotFoundError:
            self._notes = {}
        except OSError as error:
            raise RestoreError(f"Cannot read when what was drilled: {_reason(error)} ({self._path}).") from error
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise RestoreError(
                f"{self._path} is not what a drill of {cut(self._url)} has noted: move it away, and every group has "
                "its turn again."
            ) from error

    @property
    def groups(self) -> Mapping[str, Note]:
        """What is noted of each group, by its path."""
        return self._notes

    def in_turn(self, groups: Sequence[GroupId]) -> list[GroupId]:
        """Return the groups in the order of their turns: those never drilled, then the longest ago."""
        return sorted(groups, key=lambda group: (self._drilled(group), group))

    def _drilled(self, group: GroupId) -> float:
        note = self._notes.get(group.path)
        return float("-inf") if note is None else note.drilled

    def note(self, group: GroupId, report: DrillReport) -> None:
        """Note that a group has been drilled. Raises RestoreError."""
        self._notes[group.path] = Note(report.ended, report.is_good)
        value = {
            "format": _FORMAT,
            "url": self._url,
            "groups": {
                path: {"drilled": note.drilled, "good": note.good} for path, note in sorted(self._notes.items())
            },
        }
        try:
            own_files.make_directory(str(self._directory))
            _write(self._path, json.dumps(value, indent=1).encode())
        except OSError as error:
            raise RestoreError(f"Cannot note in {self._path} what was drilled: {_reason(error)}.") from error
        reach("drill.noted")
