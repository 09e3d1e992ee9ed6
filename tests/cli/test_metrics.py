"""Metrics count what is wrong, and are given whatever is wrong."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as text_string_to_openmetrics_families
from prometheus_client.parser import text_string_to_metric_families

from mirrorfs.chunkstore.place import InUse
from mirrorfs.cli import drilled, metrics
from mirrorfs.filesystem.condition import Condition, NotAsked
from mirrorfs.supervision import metrics as collection
from mirrorfs.supervision import registry
from mirrorfs.supervision.registry import Registration, RunningMount

ANSWER: dict[str, Any] = {
    "datastore": "/srv/a",
    "bucket": "b",
    "prefix": "n",
    "uploader": {"pid": 7, "started": 1000.0, "phase": "mirroring", "refused": None},
    "store": {
        "place": "s3://b",
        "up": True,
        "since": 1001.0,
        "last_error": "no route to host",
        "last_error_at": 1002.0,
        "confirmation": "put-checksum",
        "clock_difference": -7.5,
    },
    "claim": {"looked_at": 1003.0, "is_current": False},
    "uploaded": {"objects": 12, "bytes": 3456, "bytes_per_second": 1.0},
    "snapshots": [
        {"snapshot": "vm/1/2026-01-01T00:00:00Z", "phase": "published", "since": 1.0},
        {"snapshot": "vm/1/2026-01-02T00:00:00Z", "phase": "published", "since": 1.0},
        {"snapshot": "vm/1/2026-01-03T00:00:00Z", "phase": "removing", "since": 1.0},
    ],
    "chunks": 99,
    "problems": [
        {"name": f".chunks/abcd/{'abcd' * 16}", "reason": "it is not sound", "since": 500.0},
        {"name": f".chunks/ffff/{'f' * 64}", "reason": "it is not sound", "since": 400.0},
        {"name": "vm/1/2026-01-04T00:00:00Z", "reason": "one of its chunks cannot be sent", "since": 600.0},
        {"name": "vm/1", "reason": "owner cannot be used", "since": 600.0},
        {"name": "vm/2/", "reason": "the directory cannot be listed", "since": 600.0},
        {"name": f"in the bucket: .chunks/abcd/{'abcd' * 16}", "reason": "it is missing in the bucket", "since": 600.0},
    ],
    "recovery_point": {"missing": 2, "oldest": "vm/1/x", "finished": 1.0, "age_seconds": 60.5},
    "workers": {"wanted": 2, "running": 1},
    "failing_processes": [{"process": "worker 2", "deaths": 3, "since": 1.0, "last": "exit code 1"}],
    "foreign": {"count": 3, "examples": []},
    "quarantined": {"count": 4, "examples": []},
    "retention": {
        "held": [{"snapshot": "vm/1/2026-01-06T00:00:00Z", "since": 1.0}],
        "deleted": [{"snapshot": f"vm/1/2026-02-0{day}T00:00:00Z", "deleted": 1.0, "until": 2.0} for day in (1, 2)],
        "refused": {"count": 5, "examples": []},
    },
    "reconciled": True,
    "lag_seconds": 4.5,
    "journal": {"pending": 6},
    "backlog": {"items": 8, "bytes_at_least": 4096},
    "publishing": {"vm/1/2026-01-05T00:00:00Z": 5},
    "scrub": {
        "percent_per_day": 1.0,
        "parts": {"00": None, "01": 700.0, "files": 800.0},
        "never_read": 1,
        "oldest": 700.0,
        "objects": 11,
        "sent_again": 2,
        "refusal": None,
    },
}


QUIET = {
    "mirrorfs_processes_failing": 0,
    "mirrorfs_event_queue_overflows_total": 0,
    "mirrorfs_event_queue_events": 0,
}


@pytest.fixture
def datastore(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A directory that is noted as a mount of this machine, and taken for one."""
    monkeypatch.setattr(registry, "RUNTIME_BASE", str(tmp_path / "run"))
    monkeypatch.setattr(registry, "is_mounted", lambda _: True)
    monkeypatch.setattr(collection, "condition_of", lambda *_: Condition.SERVING)
    path = os.path.realpath(tmp_path / "datastore")
    for directory in (path, tmp_path / "state"):
        os.mkdir(directory)
    registration = Registration(RunningMount(path, path, str(tmp_path / "state"), os.getpid()))
    registration.begin()
    monkeypatch.setattr(drilled, "NOTES_DIRECTORY", str(tmp_path / "drills"))
    monkeypatch.setattr(drilled, "_REPORTS", str(tmp_path / "reports"))
    yield path
    registration.end()


@contextmanager
def answering(state: Path, answer: bytes) -> Iterator[None]:
    """Play an uploader that answers one question."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(state / "control.sock"))
        listener.listen()
        listener.settimeout(20)

        def answer_once() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=answer_once)
        thread.start()
        yield
        thread.join()


def values(text: str) -> dict[str, float]:
    """The samples of Prometheus' text format, as its own parser reads it, by name and labels but the datastore."""
    found = {}
    for family in text_string_to_metric_families(text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(value for name, value in sorted(sample.labels.items()) if name != "datastore")
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def printed(*arguments: str) -> str:
    result = CliRunner().invoke(metrics.command, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def _drilled(directory: Path, groups: dict[str, tuple[float, bool]]) -> None:
    directory.mkdir(parents=True)
    noted = {path: {"drilled": drilled, "good": good} for path, (drilled, good) in groups.items()}
    file = directory / "drilled-b-n.json"
    file.write_text(json.dumps({"format": 1, "url": "s3://b/n", "groups": noted}))
    file.chmod(0o600)


@pytest.mark.parametrize("named", [True, False])
def test_everything_that_the_status_tells_is_counted(datastore: str, tmp_path: Path, named: bool) -> None:
    registration = Registration(RunningMount(datastore, datastore, str(tmp_path / "state"), os.getpid()))
    registration.begin()
    registration.set_chunk_store(InUse(True, ""), 3)
    registration.set_event_queue(7)
    _drilled(tmp_path / "drills", {"vm/1": (100.0, True), "vm/2": (200.0, True)})
    _drilled(tmp_path / "reports" / "store1", {"vm/2": (300.0, False)})
    with answering(tmp_path / "state", json.dumps(ANSWER).encode() + b"\n"):
        text = printed(*([datastore] if named else []))
    assert f'mirrorfs_mount_up{{datastore="{datastore}"}} 1.0' in text
    found = values(text)
    assert found.pop(next(name for name in found if name.startswith("mirrorfs_mirror_info{b,put-checksum,n,"))) == 1
    assert found == {
        "mirrorfs_mount_up": 1,
        "mirrorfs_uploader_up": 1,
        "mirrorfs_journal_broken": 0,
        "mirrorfs_processes_failing": 1,
        "mirrorfs_event_queue_overflows_total": 3,
        "mirrorfs_event_queue_events": 7,
        "mirrorfs_recovery_point_age_seconds": 60.5,
        "mirrorfs_backups_missing": 2,
        "mirrorfs_workers": 1,
        "mirrorfs_workers_wanted": 2,
        "mirrorfs_groups": 1,
        "mirrorfs_group_newest_snapshot_timestamp_seconds{vm/1}": 1767312000,
        "mirrorfs_drill_last_timestamp_seconds": 300,
        "mirrorfs_drilled_groups{good}": 1,
        "mirrorfs_drilled_groups{bad}": 1,
        "mirrorfs_uploader_start_time_seconds": 1000,
        "mirrorfs_uploader_refused": 0,
        "mirrorfs_needs_administrator": 0,
        "mirrorfs_store_requests_without_progress": 0,
        "mirrorfs_reconciled": 1,
        "mirrorfs_lag_seconds": 4.5,
        "mirrorfs_backlog_items": 8,
        "mirrorfs_backlog_bytes": 4096,
        "mirrorfs_journal_pending_records": 6,
        "mirrorfs_snapshots_publishing": 1,
        "mirrorfs_chunks": 99,
        "mirrorfs_uploaded_bytes_total": 3456,
        "mirrorfs_uploaded_objects_total": 12,
        "mirrorfs_store_up": 1,
        "mirrorfs_store_changed_timestamp_seconds": 1001,
        "mirrorfs_store_last_error_timestamp_seconds": 1002,
        "mirrorfs_oldest_problem_timestamp_seconds": 400,
        "mirrorfs_bucket_looked_at_timestamp_seconds": 1003,
        "mirrorfs_bucket_is_current": 0,
        "mirrorfs_foreign_names": 3,
        "mirrorfs_quarantined_chunks": 4,
        "mirrorfs_removals_held": 1,
        "mirrorfs_deleted_snapshots": 2,
        "mirrorfs_deletions_refused": 5,
        "mirrorfs_store_clock_difference_seconds": -7.5,
        "mirrorfs_scrub_objects_total": 11,
        "mirrorfs_scrub_sent_again_total": 2,
        "mirrorfs_scrub_parts_never_read": 1,
        "mirrorfs_scrub_read_timestamp_seconds{01}": 700,
        "mirrorfs_scrub_read_timestamp_seconds{files}": 800,
        "mirrorfs_snapshots{adopted}": 0,
        "mirrorfs_snapshots{committed}": 0,
        "mirrorfs_snapshots{published}": 2,
        "mirrorfs_snapshots{removing}": 1,
        "mirrorfs_snapshots{released}": 0,
        "mirrorfs_problems{chunk}": 2,
        "mirrorfs_problems{snapshot}": 1,
        "mirrorfs_problems{group}": 1,
        "mirrorfs_problems{namespace}": 0,
        "mirrorfs_problems{directory}": 1,
        "mirrorfs_problems{foreign}": 0,
        "mirrorfs_problems{bucket}": 1,
        "mirrorfs_problems{other}": 0,
    }


def test_names_of_others_make_so_many_series_and_no_more(datastore: str, tmp_path: Path) -> None:
    published = [
        {"snapshot": f"vm/{number}/2026-01-01T00:00:00Z", "phase": "published", "since": 1.0} for number in range(700)
    ]
    with answering(tmp_path / "state", json.dumps({**ANSWER, "snapshots": published}).encode() + b"\n"):
        found = values(printed(datastore))
    assert found["mirrorfs_groups"] == 700
    assert sum(name.startswith("mirrorfs_group_newest") for name in found) == 500


def test_notes_of_drills_that_are_none_cost_no_other_number(datastore: str, tmp_path: Path) -> None:
    (tmp_path / "drills").mkdir()
    (tmp_path / "drills" / "drilled-b-n.json").write_text("nonsense")
    with answering(tmp_path / "state", json.dumps(ANSWER).encode() + b"\n"):
        found = values(printed(datastore))
    assert (found["mirrorfs_drilled_groups{good}"], found["mirrorfs_lag_seconds"]) == (0, 4.5)


def test_what_is_told_is_openmetrics(datastore: str, tmp_path: Path) -> None:
    registry_of_one = CollectorRegistry()
    registry_of_one.register(collection.MirrorCollector(lambda: [(datastore, registry.find(datastore))]))
    with answering(tmp_path / "state", json.dumps(ANSWER).encode() + b"\n"):
        text = generate_openmetrics(registry_of_one).decode()  # type: ignore[no-untyped-call]
    read = text_string_to_openmetrics_families(text)  # type: ignore[no-untyped-call]
    families = {family.name: family for family in read}
    assert len(families) > 40
    assert not {name for name in families if not name.startswith("mirrorfs_")}
    assert families["mirrorfs_event_queue_overflows"].type == "counter"


def test_an_uploader_that_waits_for_its_store_tells_less(datastore: str, tmp_path: Path) -> None:
    later = ("reconciled", "lag_seconds", "journal", "backlog", "publishing", "scrub")
    early = {key: value for key, value in ANSWER.items() if key not in later}
    early["store"] = {**ANSWER["store"], "up": False, "last_error_at": None}
    early["uploader"] = {**ANSWER["uploader"], "refused": "the prefix is another's"}
    with answering(tmp_path / "state", json.dumps(early).encode() + b"\n"):
        found = values(printed(datastore))
    assert (found["mirrorfs_uploader_up"], found["mirrorfs_reconciled"]) == (1, 0)
    assert (found["mirrorfs_store_up"], found["mirrorfs_uploader_refused"]) == (0, 1)
    assert found["mirrorfs_needs_administrator"] == 1
    assert not {"mirrorfs_lag_seconds", "mirrorfs_backlog_items", "mirrorfs_snapshots_publishing"} & set(found)
    assert "mirrorfs_store_last_error_timestamp_seconds" not in found


@pytest.mark.parametrize("answer", [b"", b"{", b"nonsense\n", b'{"error": "it could not answer"}\n'])
def test_an_uploader_that_does_not_answer_is_down(datastore: str, tmp_path: Path, answer: bytes) -> None:
    with answering(tmp_path / "state", answer):
        found = values(printed(datastore))
    assert found == {"mirrorfs_mount_up": 1, "mirrorfs_uploader_up": 0, "mirrorfs_journal_broken": 0, **QUIET}


def test_one_that_is_not_there_or_silent_is_down(
    datastore: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert values(printed(datastore))["mirrorfs_uploader_up"] == 0
    monkeypatch.setattr(collection, "_ANSWER_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(tmp_path / "state" / "control.sock"))
        listener.listen()
        assert values(printed(datastore))["mirrorfs_uploader_up"] == 0


def test_a_mount_that_is_dead_hangs_or_is_none_is_down(datastore: str, monkeypatch: pytest.MonkeyPatch) -> None:
    down = {"mirrorfs_mount_up": 0, "mirrorfs_uploader_up": 0, "mirrorfs_journal_broken": 0, **QUIET}
    for condition in (Condition.DEAD, Condition.SILENT):
        monkeypatch.setattr(collection, "condition_of", lambda *_, condition=condition: condition)
        assert values(printed(datastore)) == down

    def fail(*_: object) -> Condition:
        raise NotAsked("the machine is too busy")

    monkeypatch.setattr(collection, "condition_of", fail)
    assert values(printed(datastore)) == down
    monkeypatch.setattr(registry, "is_mounted", lambda _: False)
    assert values(printed(datastore)) == down
    assert values(printed(f"{datastore}-of-which-nothing-is-known")) == down
    assert values(printed()) == {}


def test_a_broken_journal_is_counted(datastore: str, tmp_path: Path) -> None:
    registration = Registration(RunningMount(datastore, datastore, str(tmp_path / "state"), os.getpid()))
    registration.begin()
    registration.set_journal_broken_since(1.0)
    assert values(printed())["mirrorfs_journal_broken"] == 1


def test_any_path_is_a_label(datastore: str) -> None:
    odd = 'quo"te back\\slash\nline'
    text = printed(os.fsdecode(os.path.join(os.fsencode(datastore), odd.encode() + b"\xff")))
    (family,) = (family for family in text_string_to_metric_families(text) if family.name == "mirrorfs_mount_up")
    (sample,) = family.samples
    # What is not printable is escaped: these lines are for terminals too.
    assert sample.labels == {"datastore": f'{datastore}/quo"te back\\slash\\nline\\udcff'}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 0)])
def test_they_are_served_anew_at_each_request(number: signal.Signals, code: int) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "mirrorfs.cli", "metrics", "/none", "--listen", f"127.0.0.1:{port}"],
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert process.stderr is not None
        assert select.select([process.stderr], [], [], 30)[0], "it says nothing"
        assert process.stderr.readline() == f"serving metrics on 127.0.0.1, port {port}, at /metrics\n"
        for _ in range(2):
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=")
                assert 'mirrorfs_mount_up{datastore="/none"} 0.0' in response.read().decode()
        process.send_signal(number)
        assert process.wait(10) == code
    finally:
        process.kill()
        process.wait()


def test_an_address_that_is_taken_is_told() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(metrics.command, ["--listen", f"127.0.0.1:{port}"])
    assert (result.exit_code, result.output) == (
        1,
        f"Error: cannot listen on 127.0.0.1, port {port}: Address already in use\n",
    )


@pytest.mark.parametrize(
    "address", ["9860", ":9860", "localhost:", "localhost:http", "localhost:65536", "localhost:0", "a:-1"]
)
def test_an_address_that_is_none_is_wrong_usage(address: str) -> None:
    result = CliRunner().invoke(metrics.command, ["--listen", address])
    assert result.exit_code == 2
    assert "ADDRESS:PORT" in result.output
