"""Garbage collection: the mark phase that moves every referenced chunk's atime, the sweep that reads all 65,536
directories and unlinks what is old."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

from tests.harness.formats import FormatError
from tests.harness.index_files import read_index
from tests.harness.names import BAD_CHUNK_NAME, CHUNK_NAME, chunk_path
from tests.harness.process_lock import stamp_now
from tests.harness.store import Store

DAY_SECONDS = 24 * 3600.0
SAFETY_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class GarbageCollection:
    """What a garbage collection did; sizes in bytes. removed: digests. missing: referenced and not there."""

    indexes: int
    removed: tuple[str, ...]
    removed_bad: tuple[str, ...]
    missing: tuple[str, ...]
    kept_chunks: int
    kept_bytes: int


def collect_garbage(
    store: Store, *, age_seconds: float = DAY_SECONDS, safety_seconds: float = SAFETY_SECONDS
) -> GarbageCollection:
    """Mark and sweep. A chunk goes when its atime is older than (start of the mark phase - age_seconds, or the
    oldest running index writer) - safety_seconds; with both at 0, all that nothing references goes.

    Raises DatastoreBusy while an index writer of another process or another collection runs.
    """
    with store.lock.exclusive(store.calls):
        start = _next_stamp()
        oldest_writer = store.lock.oldest_writer_start()
        cut_off = start - int(age_seconds * 1e9)
        if oldest_writer is not None:
            cut_off = min(cut_off, oldest_writer)
        indexes, missing = _mark(store)
        sweep = _Sweep(store, cut_off - int(safety_seconds * 1e9))
        sweep.run()
        outcome = GarbageCollection(
            indexes,
            tuple(sweep.removed),
            tuple(sweep.removed_bad),
            tuple(missing),
            sweep.kept_chunks,
            sweep.kept_bytes,
        )
        _write_status(store, outcome)
    return outcome


def _next_stamp() -> int:
    """A time by the clock of file times that all times set until now are before: the kernel stamps with a coarse
    clock, and sometimes with the fine one, which is ahead of it by up to a tick."""
    now = time.time_ns()
    while (stamp := stamp_now()) <= now:
        time.sleep(0.0005)
    return stamp


def _mark(store: Store) -> tuple[int, list[str]]:
    calls, count = store.calls, 0
    missing: dict[str, None] = {}
    for path in list(_index_paths(store, store.path)):
        try:
            index = read_index(calls, path)
        except FileNotFoundError:
            continue  # forgotten since it was listed
        except FormatError as error:
            raise OSError(f"garbage collection stops at {path}: {error}") from error
        count += 1
        for digest in dict.fromkeys(index.digests):
            chunk = store.at(chunk_path(digest))
            if not calls.touch("mark", chunk):
                missing[digest] = None
                for number in range(10):
                    calls.touch("mark", f"{chunk}.{number}.bad")
    return count, list(missing)


def _index_paths(store: Store, directory: str) -> Iterator[str]:
    """Walk the tree; what begins with a dot is not descended into."""
    calls = store.calls
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_DIRECTORY
    try:
        descriptor = calls.open("mark", directory, flags)
    except FileNotFoundError:
        return  # forgotten since it was listed
    with calls.closing("mark", descriptor):
        calls.stat_descriptor("mark", descriptor)
        for entry in calls.read_directory("mark", descriptor):
            path = f"{directory}/{entry.name}"
            if entry.name.startswith("."):
                continue
            if entry.name.endswith((".fidx", ".didx")):
                yield path
            elif entry.type == stat.S_IFDIR >> 12 or (entry.type == 0 and os.path.isdir(path)):
                yield from _index_paths(store, path)


class _Sweep:
    """Reads every chunk directory and unlinks old chunks in the middle of the listing."""

    def __init__(self, store: Store, cut_off: int) -> None:
        self._store, self._cut_off = store, cut_off
        self.removed: list[str] = []
        self.removed_bad: list[str] = []
        self.kept_chunks = self.kept_bytes = 0

    def run(self) -> None:
        calls = self._store.calls
        folder = calls.open_folder("sweep", self._store.at(".chunks"))
        with calls.closing("sweep", folder):
            for name in self._directory_names():
                inner = calls.open_folder("sweep", name, directory=folder)
                with calls.closing("sweep", inner):
                    self._sweep_directory(inner)

    def _directory_names(self) -> list[str]:
        if self._store.makes_chunk_directories:
            return sorted(os.listdir(self._store.at(".chunks")))
        return [f"{number:04x}" for number in range(0x10000)]

    def _sweep_directory(self, descriptor: int) -> None:
        calls = self._store.calls
        for entry in calls.read_directory("sweep", descriptor):
            is_bad = BAD_CHUNK_NAME.match(entry.name) is not None
            if not is_bad and not CHUNK_NAME.match(entry.name):
                continue
            status = calls.stat_link("sweep", entry.name, directory=descriptor)
            if status.st_atime_ns < self._cut_off:
                calls.unlink("sweep", entry.name, directory=descriptor)
                (self.removed_bad if is_bad else self.removed).append(entry.name)
            elif not is_bad:
                self.kept_chunks += 1
                self.kept_bytes += status.st_size


def _write_status(store: Store, outcome: GarbageCollection) -> None:
    facts = asdict(outcome)
    status = {
        "upid": "UPID:harness:0000043E:00057C76:00000015:6B030000:garbage_collection:store:root@pam:",
        "index-file-count": facts["indexes"],
        "disk-bytes": facts["kept_bytes"],
        "disk-chunks": facts["kept_chunks"],
        "removed-chunks": len(outcome.removed),
        "removed-bad": len(outcome.removed_bad),
    }
    store.replace("gc-status", ".gc-status", json.dumps(status).encode(), chown=True)
