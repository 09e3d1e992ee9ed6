"""What has happened is shown whole and once, across two files and bad lines, and steers no terminal."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from mirrorfs import events, own_files
from mirrorfs.cli import log as command
from mirrorfs.cli.events import Changes, EventReader
from mirrorfs.cli.main import main
from mirrorfs.database.directory import StateDirectory
from mirrorfs.events import EventName, EventRecord, about
from mirrorfs.output import JSONFormatter

HOSTILE = "vm/100\n2026-01-01T00:00:00Z  removed  x\x1b[2J\u202e"


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The record of a datastore /srv/a, still without a file."""
    directory = StateDirectory(str(tmp_path))
    monkeypatch.setattr(command, "state_directory", lambda _: directory)
    monkeypatch.setattr(command, "locate", lambda path: path)
    return Path(directory.events_file)


def _write(path: Path, *messages: str, name: EventName = EventName.PUBLISHED, **of: str) -> None:
    logger, handler = logging.Logger("test"), EventRecord(str(path))
    logger.addHandler(handler)
    for message in messages:
        logger.info("%s", message, extra=about(name, **of))
    logger.info("this is no event")
    handler.close()


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["log", "/srv/a", *arguments])


def test_each_event_is_a_line_whatever_is_in_it(record: Path) -> None:
    _write(record, "vm/1 published", HOSTILE)
    done = _run()
    assert done.exit_code == 0, done.output
    first, second = done.stdout.splitlines()
    assert first.endswith("Z  published           vm/1 published")
    assert second.endswith("vm/100\\n2026-01-01T00:00:00Z  removed  x\\x1b[2J\\u202e")
    assert record.stat().st_mode & 0o777 == 0o600


def test_json_loses_nothing(record: Path) -> None:
    _write(record, HOSTILE, name=EventName.PROBLEM, name_="x", message="not this")
    (event,) = [json.loads(line) for line in _run("--json").stdout.splitlines()]
    assert (event["event"], event["level"], event["message"], event["name_"]) == ("problem", "INFO", HOSTILE, "x")


def test_what_is_older_than_asked_for_is_left_out(record: Path) -> None:
    _write(record, "new")
    old = {"time": "2026-01-01T00:00:00.000+00:00", "event": "published", "message": "old"}
    record.write_text(json.dumps(old) + "\n" + record.read_text())
    assert [line.split()[-1] for line in _run().stdout.splitlines()] == ["old", "new"]
    assert [line.split()[-1] for line in _run("--since", "1h").stdout.splitlines()] == ["new"]
    assert _run("--since", "2026-01-02T00:00:00Z").stdout.count("\n") == 1


@pytest.mark.parametrize("since", ["yesterday", "", "-1", "2999-01-01T00:00:00Z", "1e3", "9" * 400 + "d"])
def test_a_time_that_is_none_is_wrong_usage(record: Path, since: str) -> None:
    done = _run("--since", since)
    assert done.exit_code == 2
    assert "Traceback" not in done.output


def test_lines_that_are_none_are_counted_and_cost_no_others(record: Path) -> None:
    _write(record, "first")
    with record.open("ab") as file:
        file.write(b'\xff\n[]\n{"time": 1}\n' + b"[" * 100_000 + b'\n{"time": "2026-')
    _write(record, "last")
    done = _run()
    assert [line.split()[-1] for line in done.stdout.splitlines()] == ["first", "last"]
    assert done.stderr == "(5 lines could not be read: the disk was full, or the power went)\n"


def test_two_files_hold_the_newest_in_order(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST_BYTES", 1000)
    _write(record, *(f"event {number}" for number in range(100)))
    shown = [int(line.split()[-1]) for line in _run().stdout.splitlines()]
    assert shown == list(range(shown[0], 100))
    assert 5 < len(shown) < 40
    assert sorted(path.name for path in record.parent.iterdir()) == ["mirrorfs.events", "mirrorfs.events.1"]


def test_what_comes_is_read_once_also_when_it_begins_a_new_file(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_MOST_BYTES", 300)
    reader, changes, seen = EventReader(str(record)), Changes(str(record.parent)), []
    for number in range(20):
        _write(record, f"event {number}")
        changes.wait()
        seen += [event["message"] for event in reader.read()]
    assert seen == [f"event {number}" for number in range(20)]


def test_the_older_file_alone_is_read_once(record: Path) -> None:
    _write(record, "old")
    record.rename(f"{record}.1")
    reader = EventReader(str(record))
    assert [event["message"] for event in reader.read()] == ["old"]
    assert list(reader.read()) == []
    _write(record, "new")
    assert [event["message"] for event in reader.read()] == ["new"]


def test_a_full_file_that_two_processes_see_becomes_the_older_one_once(
    record: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_MOST_BYTES", 300)
    _write(record, *(f"event {number}" for number in range(3)))
    opened = os.open(record, os.O_RDWR | os.O_APPEND)
    # The other process is faster: the file that is open here is the older one already.
    record.rename(f"{record}.1")
    monkeypatch.setattr(own_files, "open_file", lambda *_: opened)
    record.write_text("")
    _write(record, "event 3")
    assert record.read_text() == ""
    older = Path(f"{record}.1").read_text().splitlines()
    assert [json.loads(line)["message"] for line in older] == [f"event {number}" for number in range(4)]


def test_nothing_noted_and_nothing_mounted_are_sentences(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = _run()
    assert (done.exit_code, done.stderr.startswith("Error: nothing has been noted of /srv/a yet")) == (1, True)
    done = _run("--follow", "--state-dir", "/nowhere")
    assert (done.exit_code, done.stderr) == (1, "Error: /srv/a has not been mounted yet: there is no /nowhere\n")


def test_a_record_that_is_not_roots_is_refused(record: Path) -> None:
    record.write_text("{}\n")
    os.chown(record, 1000, 1000)
    done = _run()
    assert done.exit_code == 1
    assert "it belongs to uid 1000" in done.stderr


def test_a_disk_that_is_full_or_hangs_holds_up_nobody(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(28, "no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(own_files, "open_file", fail)
        _write(record, "lost")
    _write(record, "kept")
    assert [line.split()[-1] for line in _run().stdout.splitlines()] == ["kept"]
    monkeypatch.setattr(events, "_END_SECONDS", 0.05)
    answers = threading.Event()

    def hang(*_: object, **__: object) -> int:
        answers.wait(60)
        raise OSError(5, "it was only slow")

    monkeypatch.setattr(own_files, "open_file", hang)
    written = threading.Thread(target=_write, args=(record, *["x"] * 20_000))
    written.start()
    written.join(50)
    assert not written.is_alive()
    answers.set()


def test_the_log_in_json_names_events_too() -> None:
    record = logging.LogRecord("a", logging.INFO, "", 1, "%s published", ("vm/1",), None)
    for name, value in about(EventName.PUBLISHED, snapshot="vm/1", message="not this").items():
        setattr(record, name, value)
    told: dict[str, Any] = json.loads(JSONFormatter("uploader").format(record))
    assert (told["event"], told["snapshot"], told["message"]) == ("published", "vm/1", "vm/1 published")


_FOLLOW = """
import signal, sys
from mirrorfs.cli import log
from mirrorfs.cli.main import main
from mirrorfs.database.directory import StateDirectory
log.locate = lambda path: path
log.state_directory = lambda _: StateDirectory({directory!r})
main(["log", "/srv/a", "--follow"])
"""


def test_following_shows_what_comes_and_ends_in_order_at_an_interrupt(record: Path) -> None:
    _write(record, "before")
    source = _FOLLOW.format(directory=str(record.parent))
    with subprocess.Popen([sys.executable, "-c", source], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as following:
        assert following.stdout is not None
        assert following.stderr is not None
        try:
            assert following.stdout.readline().endswith(b"before\n")
            _write(record, "after")
            assert following.stdout.readline().endswith(b"after\n")
            following.send_signal(2)
            assert following.wait(30) == 0
            assert following.stderr.read() == b""
        finally:
            following.kill()
