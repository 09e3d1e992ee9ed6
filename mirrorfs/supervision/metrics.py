"""How the mounts of this machine are, as metrics in Prometheus' words, read from outside of them at each collection."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from mirrorfs import __version__
from mirrorfs.database.directory import StateDirectory
from mirrorfs.datastore.names import GroupId, NamespaceId, SnapshotId
from mirrorfs.filesystem.condition import Condition, NotAsked, condition_of
from mirrorfs.output import printable
from mirrorfs.replication.questions import Answer, ask
from mirrorfs.replication.waiting import needs_an_administrator
from mirrorfs.replication.work.items import ChunkItem, ForeignItem, SubtreeItem, item_of_problem, path_in_bucket
from mirrorfs.state.snapshots import SnapshotPhase
from mirrorfs.supervision.asking import failing_uploader
from mirrorfs.supervision.registry import RunningMount

_ANSWER_SECONDS = 5.0
_LABEL = "datastore"
# So many series at most come from names of others, for each mirror.
_MOST_GROUPS = 500
_PROBLEM_KINDS = ("chunk", "snapshot", "group", "namespace", "directory", "foreign", "bucket", "other")


@dataclass(frozen=True, slots=True)
class MountReading:
    """What was to be learnt of one mount: `answer` is the uploader's to `status`, None when it gave none in time."""

    datastore: str
    is_up: bool
    journal_broken_since: float | None
    answer: Answer | None
    failing: Sequence[str] = ()
    """The processes that die again and again."""
    event_overflows: int = 0
    event_queue: int = 0


def read_mount(datastore: str, mount: RunningMount | None) -> MountReading:
    """Ask the processes of a mount how it is; waits for a few seconds at most. `mount` None: it is not mounted."""
    label = printable(datastore)
    if mount is None:
        return MountReading(label, False, None, None)
    answer = _uploader_answer(mount)
    failing = [*([] if answer is None else answer.get("failing_processes", ())), *failing_uploader(mount, answer)]
    names = [str(one["process"]) for one in failing]
    return MountReading(
        label, _is_up(mount), mount.journal_broken_since, answer, names, mount.event_overflows, mount.event_queue
    )


def _is_up(mount: RunningMount) -> bool:
    try:
        return condition_of(mount.mountpoint, _ANSWER_SECONDS) is Condition.SERVING
    except NotAsked:
        # One mount that could not be asked must not cost what there is to tell of the others.
        return False


def _uploader_answer(mount: RunningMount) -> Answer | None:
    try:
        answer = ask(StateDirectory(mount.state_directory).control_socket, "status", _ANSWER_SECONDS)
    except (OSError, ValueError):
        return None
    return answer if "uploader" in answer else None


@dataclass(frozen=True, slots=True)
class Drilled:
    """When (Unix time) a group was drilled last, and whether all of it came back."""

    time: float
    good: bool


class MirrorCollector:
    """Reads the mounts anew at each collection; registered with a Prometheus registry."""

    def __init__(
        self,
        mounts: Callable[[], Iterable[tuple[str, RunningMount | None]]],
        drills: Callable[[Answer], Iterable[Drilled]] = lambda _: (),
    ) -> None:
        """`mounts` gives the datastores to tell of, with their mounts, None for one that is not mounted; `drills` what
        was drilled of the mirror that an answer is of.
        """
        self._mounts = mounts
        self._drills = drills

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of every mount."""
        readings = [read_mount(datastore, mount) for datastore, mount in self._mounts()]
        yield from _metrics_of_mounts(readings)
        answers = [(reading.datastore, reading.answer) for reading in readings if reading.answer is not None]
        for measure in _MEASURES:
            yield measure.metric(answers)
        yield _snapshots(answers)
        yield _problems(answers)
        yield _scrub(answers)
        yield from _groups(answers)
        yield from _drilled([(datastore, list(self._drills(answer))) for datastore, answer in answers])
        yield _info(answers)


@dataclass(frozen=True, slots=True)
class _Measure:
    """One number of the uploader's answer. It is left out where the answer has none: not yet, or not any more."""

    name: str
    documentation: str
    read: Callable[[Answer], float | None]
    is_counter: bool = False

    def metric(self, answers: Sequence[tuple[str, Answer]]) -> Metric:
        kind = CounterMetricFamily if self.is_counter else GaugeMetricFamily
        metric = kind(self.name, self.documentation, labels=[_LABEL])
        for datastore, answer in answers:
            value = self.read(answer)
            if value is not None:
                metric.add_metric([datastore], value)
        return metric


def _at(*keys: str) -> Callable[[Answer], float | None]:
    """Read the number (or truth, or time) below these keys."""

    def read(answer: Answer) -> float | None:
        value: Any = answer
        for key in keys:
            value = value.get(key) if isinstance(value, dict) else None
        return None if value is None else float(value)

    return read


def _oldest_problem(answer: Answer) -> float | None:
    return min((float(problem["since"]) for problem in answer["problems"]), default=None)


_MEASURES = (
    _Measure(
        "mirrorfs_uploader_start_time_seconds",
        "When the uploader was started, in seconds since the epoch.",
        _at("uploader", "started"),
    ),
    _Measure(
        "mirrorfs_uploader_refused",
        "1 if nothing is mirrored until an administrator has decided something ('mirrorfs status' says what).",
        lambda answer: float(answer["uploader"]["refused"] is not None),
    ),
    _Measure(
        "mirrorfs_bucket_looked_at_timestamp_seconds",
        "When the bucket was last seen to be this mirror's, in seconds since the epoch; missing if it was not yet.",
        _at("claim", "looked_at"),
    ),
    _Measure(
        "mirrorfs_bucket_is_current",
        "1 if the bucket was seen to be this mirror's since the last outage, so that what is published is known.",
        _at("claim", "is_current"),
    ),
    _Measure(
        "mirrorfs_needs_administrator",
        "1 if nothing is mirrored for a reason that an administrator could end ('mirrorfs status' says which).",
        lambda answer: float(needs_an_administrator(answer)),
    ),
    _Measure(
        "mirrorfs_store_requests_without_progress",
        "Requests to the store for which nothing has come or gone for half a minute.",
        lambda answer: float(len(answer["store"].get("requests_without_progress", ()))),
    ),
    _Measure(
        "mirrorfs_reconciled",
        "1 if the whole datastore has been looked through since the uploader was started.",
        lambda answer: float(answer.get("reconciled", False)),
    ),
    _Measure(
        "mirrorfs_lag_seconds",
        "Age of the oldest change that is not mirrored yet, 0 if all are.",
        _at("lag_seconds"),
    ),
    _Measure("mirrorfs_backlog_items", "Changes that are not mirrored yet, about.", _at("backlog", "items")),
    _Measure(
        "mirrorfs_backlog_bytes",
        "Bytes of the chunks that are known to be sent yet: at least so many.",
        _at("backlog", "bytes_at_least"),
    ),
    _Measure(
        "mirrorfs_journal_pending_records",
        "Records of the journal that are not dealt with yet.",
        _at("journal", "pending"),
    ),
    _Measure(
        "mirrorfs_snapshots_publishing",
        "Snapshots whose chunks are being sent.",
        lambda answer: float(len(answer["publishing"])) if "publishing" in answer else None,
    ),
    _Measure("mirrorfs_chunks", "Chunk objects that the bucket holds or is being sent.", _at("chunks")),
    _Measure(
        "mirrorfs_uploaded_bytes",
        "Bytes that were sent and confirmed since the uploader was started.",
        _at("uploaded", "bytes"),
        is_counter=True,
    ),
    _Measure(
        "mirrorfs_uploaded_objects",
        "Objects that were sent and confirmed since the uploader was started.",
        _at("uploaded", "objects"),
        is_counter=True,
    ),
    _Measure(
        "mirrorfs_store_up", "1 if nothing is known against the store, 0 if requests to it fail.", _at("store", "up")
    ),
    _Measure(
        "mirrorfs_store_changed_timestamp_seconds",
        "When mirrorfs_store_up last changed, or the uploader was started, in seconds since the epoch.",
        _at("store", "since"),
    ),
    _Measure(
        "mirrorfs_store_last_error_timestamp_seconds",
        "When a request last failed, in seconds since the epoch; missing if none has.",
        _at("store", "last_error_at"),
    ),
    _Measure(
        "mirrorfs_oldest_problem_timestamp_seconds",
        "Since when the oldest of mirrorfs_problems stands, in seconds since the epoch; missing if there is none.",
        _oldest_problem,
    ),
    _Measure(
        "mirrorfs_foreign_names",
        "Names in the datastore that are none of PBS's: passed through, never mirrored.",
        _at("foreign", "count"),
    ),
    _Measure(
        "mirrorfs_quarantined_chunks", "Chunks that PBS has found corrupt and renamed.", _at("quarantined", "count")
    ),
    _Measure(
        "mirrorfs_removals_held",
        "Snapshots that are gone from the datastore and wait for 'mirrorfs retention approve'.",
        lambda answer: float(len(answer["retention"]["held"])),
    ),
    _Measure(
        "mirrorfs_deleted_snapshots",
        "Removed snapshots that are kept for a while.",
        lambda answer: float(len(answer["retention"]["deleted"])),
    ),
    _Measure(
        "mirrorfs_deletions_refused",
        "Objects that the store does not let go for now.",
        _at("retention", "refused", "count"),
    ),
    _Measure(
        "mirrorfs_scrub_objects",
        "Objects of the bucket that were read again and checked since the uploader was started.",
        _at("scrub", "objects"),
        is_counter=True,
    ),
    _Measure(
        "mirrorfs_scrub_sent_again",
        "Of these, the ones that were damaged or gone and were sent again.",
        _at("scrub", "sent_again"),
        is_counter=True,
    ),
    _Measure(
        "mirrorfs_recovery_point_age_seconds",
        "Age of the oldest finished backup that is not in the bucket, 0 if all are.",
        _at("recovery_point", "age_seconds"),
    ),
    _Measure(
        "mirrorfs_backups_missing",
        "Finished backups that are not in the bucket.",
        _at("recovery_point", "missing"),
    ),
    _Measure("mirrorfs_workers", "Worker processes that send chunks and run now.", _at("workers", "running")),
    _Measure(
        "mirrorfs_workers_wanted",
        "Worker processes that are to send chunks; 0 where the uploader does it.",
        _at("workers", "wanted"),
    ),
    _Measure("mirrorfs_scrub_parts_never_read", "Parts of the bucket not read again yet.", _at("scrub", "never_read")),
    _Measure(
        "mirrorfs_store_clock_difference_seconds",
        "By how much the store's clock was ahead when it was asked last; missing if it was not.",
        _at("store", "clock_difference"),
    ),
)


def _metrics_of_mounts(readings: Sequence[MountReading]) -> Iterator[Metric]:
    mount_up = GaugeMetricFamily("mirrorfs_mount_up", "1 if the mount stands and answers.", labels=[_LABEL])
    uploader_up = GaugeMetricFamily("mirrorfs_uploader_up", "1 if the mount's uploader answers.", labels=[_LABEL])
    journal_broken = GaugeMetricFamily(
        "mirrorfs_journal_broken",
        "1 if changes are missing in the journal, because it cannot be written (is its disk full?).",
        labels=[_LABEL],
    )
    failing = GaugeMetricFamily(
        "mirrorfs_processes_failing", "Uploader and workers that die again and again.", labels=[_LABEL]
    )
    overflows = CounterMetricFamily(
        "mirrorfs_event_queue_overflows",
        "How often the kernel could not keep all events of changed chunks since the mount; names are compared then.",
        labels=[_LABEL],
    )
    queue = GaugeMetricFamily(
        "mirrorfs_event_queue_events",
        "Events on the file system of native chunks that the kernel held for the mount when it looked last, every 15 "
        "s; what is noted of them waits in mirrorfs_journal_pending_records.",
        labels=[_LABEL],
    )
    for reading in readings:
        mount_up.add_metric([reading.datastore], reading.is_up)
        uploader_up.add_metric([reading.datastore], reading.answer is not None)
        journal_broken.add_metric([reading.datastore], reading.journal_broken_since is not None)
        failing.add_metric([reading.datastore], len(reading.failing))
        overflows.add_metric([reading.datastore], reading.event_overflows)
        queue.add_metric([reading.datastore], reading.event_queue)
    yield from (mount_up, uploader_up, journal_broken, failing, overflows, queue)


def _snapshots(answers: Sequence[tuple[str, Answer]]) -> Metric:
    metric = GaugeMetricFamily(
        "mirrorfs_snapshots",
        "Snapshots of which something is in the bucket, by phase; those that are whole there are 'published'.",
        labels=[_LABEL, "phase"],
    )
    for datastore, answer in answers:
        phases = [str(snapshot["phase"]) for snapshot in answer["snapshots"]]
        _add_counts(metric, datastore, phases, [phase.value for phase in SnapshotPhase])
    return metric


def _problems(answers: Sequence[tuple[str, Answer]]) -> Metric:
    metric = GaugeMetricFamily(
        "mirrorfs_problems",
        "Sick objects: what cannot be mirrored as it is ('mirrorfs status' names each), by kind.",
        labels=[_LABEL, "kind"],
    )
    for datastore, answer in answers:
        kinds = [
            kind
            for problem in answer["problems"]
            for kind in [_kind_of_problem(str(problem["name"]))] * int(problem.get("count", 1))
        ]
        _add_counts(metric, datastore, kinds, _PROBLEM_KINDS)
    return metric


def _add_counts(metric: GaugeMetricFamily, datastore: str, found: Iterable[str], values: Iterable[str]) -> None:
    """Say how often each of the `values` was found, also of those that were not."""
    counts = Counter(found)
    for value in values:
        metric.add_metric([datastore, value], counts[value])


def _kind_of_problem(name: str) -> str:
    if path_in_bucket(name) is not None:
        return "bucket"
    match item_of_problem(name):
        case ChunkItem():
            return "chunk"
        case SnapshotId():
            return "snapshot"
        case GroupId():
            return "group"
        case NamespaceId():
            return "namespace"
        case SubtreeItem():
            return "directory"
        case ForeignItem():
            return "foreign"
        case _:
            return "other"


def _scrub(answers: Sequence[tuple[str, Answer]]) -> Metric:
    metric = GaugeMetricFamily(
        "mirrorfs_scrub_read_timestamp_seconds",
        "Since when all of a part of the bucket has been read again, in seconds since the epoch; missing until it was. "
        "Parts are 'files', 'deleted' (what is kept of removed snapshots), and the chunks whose digests begin with the "
        "same two digits.",
        labels=[_LABEL, "part"],
    )
    for datastore, answer in answers:
        for part, moment in answer.get("scrub", {}).get("parts", {}).items():
            if moment is not None:
                metric.add_metric([datastore, str(part)], float(moment))
    return metric


def _groups(answers: Sequence[tuple[str, Answer]]) -> Iterator[Metric]:
    newest = GaugeMetricFamily(
        "mirrorfs_group_newest_snapshot_timestamp_seconds",
        "When the newest backup of a group began that is in the bucket, in seconds since the epoch; of the first "
        f"{_MOST_GROUPS} groups by name.",
        labels=[_LABEL, "group"],
    )
    counted = GaugeMetricFamily("mirrorfs_groups", "Groups of which a snapshot is in the bucket.", labels=[_LABEL])
    for datastore, answer in answers:
        found = _newest_of_groups(answer)
        counted.add_metric([datastore], len(found))
        for group in sorted(found)[:_MOST_GROUPS]:
            newest.add_metric([datastore, printable(group)], found[group])
    yield from (newest, counted)


def _newest_of_groups(answer: Answer) -> dict[str, int]:
    newest: dict[str, int] = {}
    for one in answer["snapshots"]:
        if one["phase"] == SnapshotPhase.PUBLISHED.value:
            snapshot = SnapshotId.parse(one["snapshot"])
            path = snapshot.group.path
            newest[path] = max(newest.get(path, 0), snapshot.timestamp)
    return newest


def _drilled(drills: Sequence[tuple[str, Sequence[Drilled]]]) -> Iterator[Metric]:
    last = GaugeMetricFamily(
        "mirrorfs_drill_last_timestamp_seconds",
        "When a group of the mirror was drilled last on this machine, in seconds since the epoch; missing if none was.",
        labels=[_LABEL],
    )
    groups = GaugeMetricFamily(
        "mirrorfs_drilled_groups",
        "Groups by how their last drill on this machine went.",
        labels=[_LABEL, "result"],
    )
    for datastore, found in drills:
        if found:
            last.add_metric([datastore], max(one.time for one in found))
        _add_counts(groups, datastore, ["good" if one.good else "bad" for one in found], ("good", "bad"))
    yield from (last, groups)


def _info(answers: Sequence[tuple[str, Answer]]) -> Metric:
    metric = GaugeMetricFamily(
        "mirrorfs_mirror_info",
        "Always 1; where the datastore is mirrored to, and how what is sent is confirmed.",
        labels=[_LABEL, "bucket", "prefix", "confirmation", "version"],
    )
    for datastore, answer in answers:
        told = (answer["bucket"], answer["prefix"], answer["store"]["confirmation"])
        labels = [datastore, *(printable(str(text)) for text in told), __version__]
        metric.add_metric(labels, 1)
    return metric
