"""Asking both processes of a mount how it is: what `mirrorfs status` shows, and whoever else judges a mirror judges by.

What only the filesystem process knows stands in the registry, so that it is told also when that process is busy.
"""

from __future__ import annotations

import time
from dataclasses import asdict
from typing import Any

from mirrorfs.chunkstore.place import is_attached
from mirrorfs.filesystem.condition import Condition, condition_of
from mirrorfs.filesystem.mount_table import is_mounted
from mirrorfs.replication.questions import Answer, ask
from mirrorfs.replication.verdict import verdict
from mirrorfs.restarts import WELL_AFTER, Failing
from mirrorfs.supervision.registry import RunningMount, find, is_served, state_directory_of

ANSWER_SECONDS = 10.0


class NoAnswer(Exception):
    """There is no mount, or one of its processes does not answer; the text is a sentence that says so."""


class UploaderSilent(NoAnswer):
    """The mount serves, but its uploader does not answer, or is just being started again: that may pass."""


class UploaderHangs(UploaderSilent):
    """The uploader is there, but has not answered in time."""


def require_serving(path: str, *, if_absent: str = "'mirrorfs status' lists what is mounted") -> None:
    """Return if a mirrorfs is mounted at `path` and answers.

    When it returns, everything that was closed before has been recorded: the filesystem answers in order.

    Raises:
        NoAnswer: it is not so. `if_absent` is what to do where nothing is mounted.
        NotAsked: nobody could be made to ask.
    """
    match condition_of(path):
        case Condition.ABSENT:
            lingering = lingering_at(path)
            if lingering is not None:
                raise NoAnswer(describe_lingering(lingering))
            raise NoAnswer(f"no mirrorfs is mounted on {path}: {if_absent}")
        case Condition.DEAD:
            raise NoAnswer(f"the filesystem process of {path} was killed: mount it again, nothing is lost")
        case Condition.SILENT:
            raise NoAnswer(describe_silence(path))


def describe_silence(path: str) -> str:
    """Say that a mount does not answer, why that may be, and where to look."""
    mount = find(path)
    process = "its process" if mount is None else f"its process {mount.pid}"
    return (
        f"the mount on {path} does not answer: {process} is stopped, or the disk of the datastore hangs. Nothing is "
        f"lost. See the kernel's log, and {state_directory_of(path).log_file}"
    )


def lingering_at(path: str) -> RunningMount | None:
    """Return the mount that was at `path`, is not to be seen there any more, and whose process lives."""
    mount = find(path)
    return mount if mount is not None and not is_mounted(mount.mountpoint) and is_served(mount) else None


def describe_lingering(mount: RunningMount) -> str:
    """Say that a mount is not to be seen, but lives, and how it is ended."""
    return (
        f"{mount.mountpoint} was unmounted, but its process {mount.pid} still runs, because a copy of the mount or an "
        f"open file keeps it: 'mirrorfs umount {mount.datastore}' ends it"
    )


def ask_for_status(path: str, seconds: float = ANSWER_SECONDS) -> Answer:
    """Return the whole answer to `status` of what is mounted at `path`, in docs/status.md; without a verdict.

    Raises:
        NoAnswer, UploaderSilent: there is none, and why.
        NotAsked, own_files.NotOwn: it could not be asked.
    """
    require_serving(path)
    directory = state_directory_of(path)
    try:
        answer = ask(directory.control_socket, "status", seconds)
    except (ConnectionError, FileNotFoundError):
        raise UploaderSilent(
            f"the uploader of {path} does not run at this moment; the mount starts it again and backups go on. "
            f"If this lasts, see {directory.log_file}"
        ) from None
    except TimeoutError:
        raise UploaderHangs(f"the uploader of {path} has not answered within {seconds:g} s") from None
    if "uploader" not in answer:
        raise UploaderSilent(f"the uploader of {path} does not tell: {answer.get('error', 'it is of another version')}")
    mount = find(path)
    return {
        **answer,
        "journal_broken_since": None if mount is None else mount.journal_broken_since,
        "chunk_store": _chunk_store(path, mount),
        "failing_processes": [*answer.get("failing_processes", ()), *failing_uploader(mount, answer)],
    }


def read_status(path: str, behind_after: float) -> Answer:
    """Return what docs/status.schema.json says: the answer of `ask_for_status`, judged; raises as that does.

    A mirror is behind when its recovery point is older than `behind_after` seconds. Waits for some seconds at most.
    """
    answer = ask_for_status(path)
    judged = verdict(answer, behind_after)
    return {"word": judged.word.value, "why": judged.why, "to_do": judged.to_do, **answer}


def failing_uploader(mount: RunningMount | None, answer: Answer | None) -> list[dict[str, Any]]:
    """Tell how it is with an uploader that dies again and again; nothing where it has lived for long, as it says."""
    failing: Failing | None = None if mount is None else mount.uploader_failing
    if failing is None or (answer is not None and time.time() - answer["uploader"]["started"] >= WELL_AFTER):
        return []
    return [asdict(failing)]


def _chunk_store(path: str, mount: RunningMount | None) -> dict[str, Any]:
    overflows = 0 if mount is None else mount.event_overflows
    if is_attached(path):
        return {"in_use": "native", "reason": "", "event_overflows": overflows}
    reason = "it is not known why" if mount is None else mount.chunks_reason
    reason = reason or "something has unmounted .chunks from it"
    return {"in_use": "fuse", "reason": reason, "event_overflows": overflows}
