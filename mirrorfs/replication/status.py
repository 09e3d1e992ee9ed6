"""What the uploader tells about itself."""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import asdict
from typing import Any

import trio

from mirrorfs.datastore.names import chunk_path
from mirrorfs.datastore.tree import Tree
from mirrorfs.journal.journal import JournalReader
from mirrorfs.replication.engine import Engine
from mirrorfs.replication.mirror import Mirror
from mirrorfs.replication.recovery_point import MissingBackups, missing_backups
from mirrorfs.replication.settings import RetentionSettings, UploaderSettings
from mirrorfs.replication.waiting import BEFORE_THE_FIRST_ANSWER, waiting_answer
from mirrorfs.replication.work.commits import CommittedState
from mirrorfs.replication.work.drain import Drain
from mirrorfs.replication.work.refused import folded
from mirrorfs.replication.work.worklist import Worklist
from mirrorfs.state.retention import DeletedPhase, HeldFor, HeldRemoval, RetentionRecords
from mirrorfs.state.snapshots import SnapshotPhase
from mirrorfs.state.state import StateTransaction

_RATE_SECONDS = 60.0
_EXAMPLES = 20


class UploaderStatus:
    """Collects the answer to `status`; its keys are documented in docs/status.md and only ever added to."""

    def __init__(self, settings: UploaderSettings, engine: Engine, state: CommittedState) -> None:
        self.phase = BEFORE_THE_FIRST_ANSWER
        self.refused: str | None = None
        self._settings = settings
        self._engine = engine
        self._store = engine.bucket.store
        self._state = state
        self._clock = engine.mirror.clock
        self._watch = engine.watch
        self._started = time.time()
        self._samples: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])

    async def answer(self, tree: Tree) -> dict[str, Any]:
        """Tell what is known before the mirror runs."""
        answer = self._known()
        published = {one["snapshot"] for one in answer["snapshots"] if one["phase"] == SnapshotPhase.PUBLISHED.value}
        missing = await trio.to_thread.run_sync(missing_backups, tree, published)
        return {**answer, "recovery_point": _recovery_point_answer(missing, time.time())}

    @property
    def problems(self) -> list[dict[str, Any]]:
        """What cannot be mirrored as it is."""
        problems: list[dict[str, Any]] = self._known()["problems"]
        return problems

    def _known(self) -> dict[str, Any]:
        return {
            "datastore": self._settings.datastore,
            "bucket": self._settings.bucket,
            "prefix": self._settings.prefix,
            "store_options": asdict(self._settings.store),
            "uploader": {"pid": os.getpid(), "started": self._started, "phase": self.phase, "refused": self.refused},
            "waiting": waiting_answer(self._store.condition, self.phase, self._started, time.time()),
            "store": self._store_answer(),
            "claim": self._claim_answer(),
            "uploaded": self._uploaded_answer(),
            "workers": self._workers_answer(),
            "failing_processes": [asdict(failing) for failing in self._engine.failing_workers],
            **self._state.view(lambda transaction: _state_answer(transaction, self._settings.retention)),
        }

    async def full_answer(
        self, tree: Tree, journal: JournalReader, worklist: Worklist, drain: Drain, mirror: Mirror
    ) -> dict[str, Any]:
        """Tell everything."""
        position = drain.position
        chunks = worklist.waiting_chunks()
        sizes = await trio.to_thread.run_sync(lambda: [_size(tree, digest) for digest in chunks])
        publishing = {snapshot.path: remaining for snapshot, remaining in mirror.publication.remaining.items()}
        oldest = await trio.to_thread.run_sync(journal.oldest_time, position)
        pending = await trio.to_thread.run_sync(journal.pending, position)
        answer = await self.answer(tree)
        size, rate = sum(sizes), answer["uploaded"]["bytes_per_second"]
        return {
            **answer,
            "reconciled": drain.reconciled,
            "lag_seconds": max(0.0, time.time() - oldest) if oldest is not None else 0.0,
            "journal": {"pending": pending},
            "backlog": {
                "items": max(pending, len(worklist)) + sum(publishing.values()),
                "bytes_at_least": size,
                "drain_seconds": size / rate if rate > 0 else 0.0 if size == 0 else None,
            },
            "publishing": publishing,
            "locks_obstacle": mirror.locks.obstacle,
            "scrub": mirror.scrub.answer(),
        }

    def _claim_answer(self) -> dict[str, Any]:
        """Tell whether what is said of the bucket is known to be true, or only was before the last outage."""
        condition = self._store.condition
        is_current = condition.is_up and self._watch.has_looked_since(condition.since)
        return {"looked_at": self._watch.looked_at, "is_current": is_current}

    def _store_answer(self) -> dict[str, Any]:
        condition = self._store.condition
        error = condition.last_error
        return {
            "place": self._store.place,
            "up": condition.is_up,
            "since": condition.since,
            "last_error": None if error is None else str(error),
            "last_error_at": condition.last_error_at,
            "confirmation": self._store.capabilities.confirmation.value,
            "conditional_puts": self._store.capabilities.conditional_puts,
            "versioned": self._store.capabilities.versioned,
            "object_lock": self._store.capabilities.object_lock is not None,
            "clock_difference": self._clock.difference,
            "clock_is_trusted": self._clock.is_trusted,
            "does_without": dict(self._store.done_without),
            "requests_without_progress": [
                {"request": request, "seconds": seconds} for request, seconds in self._engine.requests_without_progress
            ],
        }

    def _workers_answer(self) -> dict[str, int]:
        workers = self._engine.workers
        return {"wanted": len(workers), "running": sum(worker.is_running for worker in workers)}

    def _uploaded_answer(self) -> dict[str, Any]:
        now, sent = time.monotonic(), self._store.uploaded_bytes
        self._samples.append((now, sent))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_SECONDS:
            self._samples.popleft()
        (then, sent_then), elapsed = self._samples[0], now - self._samples[0][0]
        del then
        return {
            "objects": self._store.uploaded_objects,
            "bytes": sent,
            "bytes_per_second": (sent - sent_then) / elapsed if elapsed > 0 else 0.0,
        }


def _recovery_point_answer(missing: MissingBackups, now: float) -> dict[str, Any]:
    age = 0.0 if missing.finished is None else max(0.0, now - missing.finished)
    return {"missing": missing.count, "oldest": missing.oldest, "finished": missing.finished, "age_seconds": age}


def _size(tree: Tree, digest: bytes) -> int:
    try:
        return tree.chunk_size(digest) or 0
    except OSError:
        # A disk that fails is when the rest is asked for most.
        return 0


def _state_answer(transaction: StateTransaction, settings: RetentionSettings) -> dict[str, Any]:
    count, examples = transaction.foreign.examples(_EXAMPLES)
    return {
        "snapshots": [
            {"snapshot": path, "phase": snapshot.phase.value, "since": snapshot.since}
            for path, snapshot in transaction.snapshots.all()
        ],
        "chunks": transaction.chunks.count(),
        "problems": [
            {"name": problem.name, "reason": problem.reason, "since": problem.since, "count": problem.count}
            for problem in folded((one.name, one.reason, one.since) for one in transaction.problems.all())
        ],
        "foreign": {"count": count, "examples": [os.fsdecode(path) for path in examples]},
        "quarantined": _quarantined_answer(transaction),
        "retention": _retention_answer(transaction.retention, settings),
    }


def _quarantined_answer(transaction: StateTransaction) -> dict[str, Any]:
    count, chunks = transaction.quarantine.examples(_EXAMPLES)
    examples = [
        {"chunk": chunk_path(chunk.digest), "since": chunk.since, "bucket_has_a_good_copy": chunk.has_good_copy}
        for chunk in chunks
    ]
    return {"count": count, "examples": examples}


def _held_answer(removal: HeldRemoval, settings: RetentionSettings) -> dict[str, Any]:
    goes_at = removal.since + settings.unseen_after if removal.reason is HeldFor.UNSEEN else None
    return {"snapshot": removal.path, "since": removal.since, "reason": removal.reason.value, "goes_at": goes_at}


def _retention_answer(retention: RetentionRecords, settings: RetentionSettings) -> dict[str, Any]:
    held = [removal for removal in retention.all_held() if not removal.approved]
    deleted = [snapshot for snapshot in retention.all_deleted() if snapshot.phase is DeletedPhase.KEPT]
    count, refusals = retention.refusals(_EXAMPLES)
    return {
        "held": [_held_answer(removal, settings) for removal in held],
        "deleted": [
            {"snapshot": snapshot.path, "deleted": snapshot.deleted, "until": snapshot.until} for snapshot in deleted
        ],
        "refused": {
            "count": count,
            "examples": [
                {"name": refusal.key, "reason": refusal.reason, "retry_at": refusal.retry_at} for refusal in refusals
            ],
        },
    }
