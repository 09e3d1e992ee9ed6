"""Named steps between which a crash may leave something half done, so that a test can kill a process at any of them.

A process that is started with `MIRRORFS_STEP_FILE=PATH` in its environment looks for that file at each step. Once it
stands there with the content `STEP N`, the process that reaches STEP for the Nth time since then removes the file, adds
the line `STEP PID` to `PATH.fired`, and ends by SIGKILL. The file has to appear complete, by a rename. Without the
variable a step costs one comparison.
"""

from __future__ import annotations

import os
import signal
import threading
from typing import Final

VARIABLE: Final = "MIRRORFS_STEP_FILE"

STEPS: Final[tuple[str, ...]] = (
    # The filesystem process, or both where databases are concerned.
    "mount.locked",
    "mount.before-serve",
    "mount.after-serve",
    "mount.registered",
    "mount.before-end",
    "mount.unmounted",
    "database.opened",
    "database.format-recorded",
    "database.before-growth",
    "database.after-growth",
    "journal.before-set-aside",
    "journal.file-set-aside",
    "journal.before-begin",
    "journal.before-close",
    "journal.synced",
    "recreation.records-written",
    "recreation.before-rename",
    "recreation.renamed",
    "session.before-rename",
    "session.after-rename",
    "interception.before-record",
    "interception.after-record",
    "durability.before-sync",
    "durability.after-syncfs",
    "durability.after-sync",
    "repair.before-record",
    "repair.before-reopen",
    "repair.after-reopen",
    "repair.recorded",
    "repair.ended",
    "chunkstore.marked",
    "chunkstore.before-attach",
    "chunkstore.attached",
    "chunkstore.events-read",
    "chunkstore.events-recorded",
    "chunkstore.before-detach",
    "chunkstore.detached",
    "trimming.before-trim",
    "trimming.after-trim",
    # The uploader.
    "uploader.state-opened",
    "uploader.ending",
    "claim.begun",
    "claim.bucket-forgotten",
    "claim.before-put",
    "claim.in-use-put",
    "claim.after-put",
    "claim.recorded",
    "watch.before-renewal",
    "watch.after-renewal",
    "watch.renewed",
    "watch.doubted",
    "watch.use-recorded",
    "probe.stored",
    "adoption.begun",
    "adoption.chunks-recorded",
    "adoption.contents-recorded",
    "adoption.snapshot-recorded",
    "adoption.before-end",
    "adoption.ended",
    "reconcile.begun",
    "reconcile.snapshots-listed",
    "reconcile.ended",
    "reconcile.chunk-names-begun",
    "reconcile.chunk-names-ended",
    "drain.record-read",
    "drain.records-listed",
    "position.before-save",
    "position.after-save",
    "state.before-commit",
    "state.after-commit",
    "chunk.before-intention",
    "chunk.before-put",
    "chunk.after-put",
    "chunk.recorded",
    "chunk.doubted",
    "chunk.staged",
    "chunk.replaced",
    "chunk.unstaged",
    "chunk.quarantine-recorded",
    "chunk-removal.before-doubt",
    "chunk-removal.before-delete",
    "chunk-removal.after-delete",
    "chunk-removal.recorded",
    "chunk-removal.refusals-over",
    "content.before-put",
    "content.after-put",
    "content.recorded",
    "content.before-delete",
    "content.after-delete",
    "content.forgotten",
    "publication.begun",
    "publication.chunks-put",
    "publication.file-put",
    "publication.before-commit",
    "publication.committed",
    "publication.before-manifest",
    "publication.manifest-put",
    "publication.recorded",
    "publication.extra-put",
    "publication.stale-deleted",
    "group.file-put",
    "group.file-deleted",
    "namespace.marker-put",
    "namespace.marker-deleted",
    "references.counted",
    "references.giving-back",
    "references.given-back",
    "removal.begun",
    "removal.manifest-deleted",
    "removal.before-release",
    "removal.released",
    "removal.files-deleted",
    "removal.recorded",
    "absences.held",
    "absences.strangers-held",
    "absences.let-go",
    "wave.recorded",
    "wave.approved",
    "wave.forgotten",
    "grace.begun",
    "grace.file-copied",
    "grace.marker-put",
    "grace.manifest-copied",
    "grace.handed-over",
    "grace.manifest-deleted",
    "grace.released",
    "grace.files-deleted",
    "grace.ended",
    "grace.adopted",
    "retention.refusal-recorded",
    "retention.refusal-over",
    "locks.chunks-recorded",
    "locks.snapshot-recorded",
    "problem.recorded",
    "problem.cleared",
    "foreign.recorded",
    # Whoever brings something back into a living datastore.
    "insertion.before-rename",
    "insertion.inserted",
    "insertion.before-end-of-quarantine",
    "into.staged",
    "into.before-placing",
    "into.placed",
    "into.before-finish",
    # Whoever gives a bucket to a PBS, or takes it back.
    "handover.before-mark",
    "handover.marked",
    "handover.before-giving-up",
    "handover.given-up",
    "handover.own-removed",
    "takeback.before-mark",
    "takeback.marked",
    # Whoever restores for a trial.
    "drill.scratch-made",
    "drill.restored",
    "drill.read",
    "drill.scratch-emptied",
    "drill.report-written",
    "drill.noted",
    # The uploader, and whoever else changes objects.
    "object.before-put",
    "object.after-put",
    "object.before-delete",
    "object.after-delete",
)

_file: Final = os.environ.get(VARIABLE)
_lock = threading.Lock()
_armed: tuple[str, int] | None = None
_reached = 0


def reach(step: str) -> None:
    """Say that `step` is reached; may be called in any thread. Returns, unless a test has armed this very moment."""
    if _file is not None:
        _look(_file, step)


def _look(path: str, step: str) -> None:
    global _armed, _reached
    with _lock:
        try:
            with open(path, encoding="ascii") as file:
                content, changed_at = file.read(), os.fstat(file.fileno()).st_ctime_ns
        except FileNotFoundError:
            _armed = None
            return
        wanted, number = content.split()
        if _armed != (content, changed_at):
            _armed, _reached = (content, changed_at), 0
        if step != wanted:
            return
        _reached += 1
        if _reached >= int(number):
            _end(path, step)


def _end(path: str, step: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        # Another process was there first: it fires once.
        return
    with open(f"{path}.fired", "a", encoding="ascii") as fired:
        fired.write(f"{step} {os.getpid()}\n")
    os.kill(os.getpid(), signal.SIGKILL)
